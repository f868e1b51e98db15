"""Output appears whole or not at all, and nobody's files are lost to it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.sim.safe_output import MARK, OutputError, check_apart, new_file, new_folder


def test_a_folder_appears_at_the_end_with_everything_in_it(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with new_folder(target) as folder:
        (folder / MARK).write_text("{}")
        assert not target.exists()
    assert [p.name for p in target.parent.iterdir()] == ["out"]
    assert stat.S_IMODE(target.stat().st_mode) & 0o500 == 0o500


def break_off_a_folder(target: Path) -> None:
    with new_folder(target) as folder:
        (folder / "half").write_text("written")
        raise KeyError


def break_off_a_file(target: Path) -> None:
    with new_file(target) as file:
        file.write_text("half")
        raise KeyError


@pytest.mark.parametrize("break_off", [break_off_a_folder, break_off_a_file])
def test_a_failure_leaves_nothing(tmp_path: Path, break_off: Callable[[Path], None]) -> None:
    with pytest.raises(KeyError):
        break_off(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_only_an_earlier_run_is_replaced_and_only_when_asked(tmp_path: Path) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    with new_folder(ours) as folder:
        (folder / MARK).write_text("first")
    with pytest.raises(OutputError, match="holds an earlier run"), new_folder(ours):
        pass
    with new_folder(ours, replace=True) as folder:
        (folder / MARK).write_text("second")
    assert (ours / MARK).read_text() == "second"
    other.mkdir()
    (other / "letters.txt").write_text("dear")
    with pytest.raises(OutputError, match="other things"), new_folder(other, replace=True):
        pass
    assert (other / "letters.txt").read_text() == "dear"


def test_an_empty_folder_is_filled_and_a_file_is_not_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as folder:
        (folder / MARK).write_text("{}")
    assert (tmp_path / "empty" / MARK).exists()
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="there is a file of that name"),
        new_folder(tmp_path / "file"),
    ):
        pass
    with pytest.raises(OutputError, match="cannot be"), new_folder(tmp_path / "file" / "below"):
        pass


@pytest.mark.parametrize("place", [".", "", "..", "deep/..", "/"])
def test_where_one_stands_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    """Also an empty folder: what is being written lies in it, so it would be refused at the end."""
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep" if place == "." else tmp_path)
    reached = False
    with pytest.raises(OutputError, match="name one to be made"), new_folder(Path(place)):
        reached = True
    assert not reached


def test_a_file_replaces_the_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "point.json"
    path.write_text("old")
    with new_file(path) as file:
        file.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1
    for wrong, said in ((tmp_path, "is a folder"), (tmp_path / "no" / "x", "cannot be written")):
        with pytest.raises(OutputError, match=said), new_file(wrong):
            pass


def test_a_device_or_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    """A file in the place of /dev/null would be everybody's; here it is a pipe of our own."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with new_file(pipe) as draft:
            draft.write_text("a line")
        assert os.read(reader, 100) == b"a line"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written"), new_folder(tmp_path / "out"):
        pass


def test_what_is_written_is_never_what_was_read(tmp_path: Path) -> None:
    """One file under two names is found out, whatever the way to it."""
    trace, other = tmp_path / "t.csv", tmp_path / "o.json"
    trace.touch()
    (tmp_path / "link").symlink_to(trace)
    check_apart(str(trace), None, "-", "-", str(other))
    for again in (trace, tmp_path / "x" / ".." / "t.csv", tmp_path / "link"):
        with pytest.raises(OutputError, match="named twice"):
            check_apart(str(trace), None, str(again))
    with pytest.raises(OutputError, match="named twice"):
        check_apart(str(trace), str(other), str(other))
