"""Writes docs/openapi.json, the machine-readable form of the HTTP surface, from a gateway itself.

usage: python tests/openapi_file.py (or `make openapi`); a test compares the file with the code.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docs" / "openapi.json"
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "gateway")]


def as_text(schema: Any) -> str:
    """Return the schema as the file has it: one line for each key, so that changes show."""
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


async def schema_of_a_gateway() -> Any:
    """Start a gateway and ask it."""
    from door_kit import open_door

    with tempfile.TemporaryDirectory() as folder:
        async with open_door(Path(folder)) as door:
            return (await door.http.get("/openapi.json")).json()


if __name__ == "__main__":
    FILE.write_text(as_text(asyncio.run(schema_of_a_gateway())))
