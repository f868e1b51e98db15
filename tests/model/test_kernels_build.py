"""The kernel library is compiled once, found again, shared by processes, and never required."""

from __future__ import annotations

import logging
import multiprocessing
import stat
from pathlib import Path

import pytest

from engine.model.kernels import build
from engine.model.kernels.build import KernelBuildError, Toolchain, built_library, find_toolchain
from engine.model.kernels.native import load_native


@pytest.fixture
def toolchain() -> Toolchain:
    try:
        return find_toolchain()
    except KernelBuildError:
        pytest.skip("no compiler on this machine")


@pytest.fixture
def tiny_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile the smallest file only: these tests are about the folder, not about the kernels."""
    monkeypatch.setattr(build, "SOURCES", ("argmax.cpp", "parallel.cpp"))


def _build(folder: Path) -> str:
    with built_library(folder) as path:
        return f"{path.name} {path.stat().st_mtime_ns}"


def _build_tiny(folder: Path) -> str:
    build.SOURCES = ("argmax.cpp", "parallel.cpp")
    return _build(folder)


@pytest.mark.usefixtures("toolchain", "tiny_sources")
def test_a_second_start_finds_the_library_of_the_first(tmp_path: Path) -> None:
    """Same name, same file, nothing beside it but the lock."""
    folder = tmp_path / "cache"
    assert _build(folder) == _build(folder)
    assert sorted(path.suffix for path in folder.iterdir()) == ["", ".so"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.usefixtures("toolchain")
def test_two_processes_that_start_together_compile_once(tmp_path: Path) -> None:
    """Both get the very same file."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(_build_tiny, [tmp_path / "cache"] * 2)
    assert first == second


def test_the_name_changes_with_whatever_goes_into_the_library(
    toolchain: Toolchain, tmp_path: Path
) -> None:
    """Sources, compiler, CPU: a library for another machine is never loaded by mistake."""
    source_folder = Path(build.__file__).parent
    for name in (*build.SOURCES, *build.HEADERS):
        (tmp_path / name).write_bytes((source_folder / name).read_bytes())
    names = {toolchain.fingerprint(source_folder)}
    assert names == {toolchain.fingerprint(tmp_path)}
    (tmp_path / build.HEADERS[0]).write_text("// other")
    names.add(toolchain.fingerprint(tmp_path))
    for other in (
        Toolchain(toolchain.compiler, "another version", toolchain.cpu),
        Toolchain(toolchain.compiler, toolchain.version, "another CPU"),
    ):
        names.add(other.fingerprint(source_folder))
    assert len(names) == 4


@pytest.mark.usefixtures("toolchain", "tiny_sources")
def test_a_folder_that_others_may_write_to_is_not_trusted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Someone else's library must not run as this user: compile in a private folder instead."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    with built_library(folder) as path:
        assert path.parent != folder
        assert path.exists()
    assert not path.exists()
    assert list(folder.iterdir()) == []
    assert "compiling them anew" in caplog.text


@pytest.mark.usefixtures("toolchain")
def test_a_damaged_library_is_removed_and_made_again(tmp_path: Path) -> None:
    """The first start says so and runs on torch, the next one is whole."""
    with built_library(tmp_path) as path:
        path.write_bytes(b"not a library")
    assert load_native(tmp_path) is None
    assert not path.exists()
    assert load_native(tmp_path) is not None


def test_no_compiler_means_no_kernels_and_one_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "_COMPILERS", ("no-such-compiler",))
    with caplog.at_level(logging.WARNING):
        assert load_native(tmp_path) is None
    assert "no C++ compiler found" in caplog.text


@pytest.mark.usefixtures("toolchain")
def test_a_source_that_does_not_compile_is_reported_with_its_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-Dbf16=int;"))
    assert load_native(tmp_path) is None
    assert "error" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
