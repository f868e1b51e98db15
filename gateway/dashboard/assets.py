"""The pages' own files and those of others, in memory, by name with their digest; serves nothing.

Others' files come from npm (dashboards/admin/package.json, vendor.json) into `static/vendor`; where
they were never brought, pages work without them and say which command brings them.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import orjson

ADMIN = Path(__file__).resolve().parents[2] / "dashboards" / "admin"
BUILD_COMMAND = "make assets"
MOST_BYTES = 4 * 2**20
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file; `version` is the beginning of its digest."""

    body: bytes
    media_type: str
    version: str


class Assets:
    """All files below `static`, read once."""

    def __init__(self, folder: Path = ADMIN) -> None:
        self._files = _read(folder / "static")
        wanted: dict[str, dict[str, str]] = orjson.loads((folder / "vendor.json").read_bytes())
        self._digests: Mapping[str, str] = {
            f"vendor/{name}": entry["sha384"] for name, entry in wanted.items()
        }
        # A file that is not the recorded one is as good as none: browsers would refuse it.
        self.is_complete = all(
            name in self._files and _sha384(self._files[name].body) == digest
            for name, digest in self._digests.items()
        )

    def find(self, name: str) -> Asset | None:
        """Return a file by its name below `static`."""
        return self._files.get(name)

    def url(self, name: str) -> str:
        """Return where a file is, with its version; raises KeyError for one that is not there."""
        return f"/admin/static/{name}?v={self._files[name].version}"

    def integrity(self, name: str) -> str:
        """Return what a browser holds a file of others against."""
        return f"sha384-{self._digests[name]}"


def _read(folder: Path) -> Mapping[str, Asset]:
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in MEDIA_TYPES and path.stat().st_size <= MOST_BYTES:
            body = path.read_bytes()
            version = hashlib.sha256(body).hexdigest()[:16]
            name = path.relative_to(folder).as_posix()
            files[name] = Asset(body, MEDIA_TYPES[path.suffix], version)
    return MappingProxyType(files)


def _sha384(body: bytes) -> str:
    return base64.b64encode(hashlib.sha384(body).digest()).decode()
