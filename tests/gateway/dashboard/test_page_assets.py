"""The pages' files: others' are pinned and held against digests; a wheel carries all of them."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest
from jinja2 import meta

from gateway.dashboard.assets import ADMIN, Assets
from gateway.dashboard.frame import Frame

ROOT = Path(__file__).resolve().parents[3]
VENDOR = ADMIN / "static" / "vendor"


def test_what_others_wrote_is_pinned_by_version_and_digest() -> None:
    """Exact versions, the tarballs' digests, no address of a registry, a digest of each file."""
    package = json.loads((ADMIN / "package.json").read_text())
    locked = json.loads((ADMIN / "package-lock.json").read_text())["packages"]
    for name, version in package["dependencies"].items():
        entry = locked[f"node_modules/{name}"]
        assert entry["version"] == version
        assert entry["integrity"].startswith("sha512-")
    assert all("resolved" not in entry for entry in locked.values())
    for name, entry in json.loads((ADMIN / "vendor.json").read_text()).items():
        assert entry["from"].partition("/")[0] in package["dependencies"], name
        assert len(entry["sha384"]) == 64


def test_a_wheel_carries_every_file_of_the_pages() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    carried = {
        path
        for pattern in tools["package-data"]["dashboards.admin"]
        for path in ADMIN.glob(pattern)
    }
    wanted = {p for folder in ("templates", "static") for p in (ADMIN / folder).rglob("*.*")}
    assert {p for p in wanted if p.is_file() and not p.name.startswith(".")} <= carried
    assert ADMIN / "vendor.json" in carried


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_file_that_is_not_the_recorded_one_is_as_good_as_none(
    tmp_path: Path, damage: str
) -> None:
    """The pages then do without, and say which command brings it."""
    shutil.copytree(ADMIN, tmp_path / "admin", ignore=shutil.ignore_patterns("node_modules"))
    folder = tmp_path / "admin"
    (folder / "static" / "vendor").mkdir(exist_ok=True)
    file = folder / "static" / "vendor" / "htmx.min.js"
    file.unlink(missing_ok=True)
    if damage == "changed":
        file.write_text("alert(1)")
    assets = Assets(folder)
    assert not assets.is_complete
    assert assets.integrity("vendor/htmx.min.js").startswith("sha384-")


@pytest.mark.skipif(not VENDOR.exists(), reason="make assets has not been run")
def test_what_make_assets_brings_is_what_was_recorded() -> None:
    assets = Assets()
    assert assets.is_complete
    found = assets.find("app.css")
    assert found is not None
    assert found.version in assets.url("app.css")
    assert assets.find("../vendor.json") is None


def test_every_template_can_be_read_and_names_only_templates_that_are_there() -> None:
    """Each compiles; nothing in one is a style or a script of its own, or marked as safe."""
    environment = Frame().templates
    names = environment.list_templates()
    assert "base.html" in names
    for name in names:
        assert environment.loader is not None
        source, _, _ = environment.loader.get_source(environment, name)
        for other in meta.find_referenced_templates(environment.parse(source)):
            assert other in names, (name, other)
        for banned in (" style=", "<style", "javascript:", "onclick", "| safe", "|safe", "Markup"):
            assert banned not in source, (name, banned)
