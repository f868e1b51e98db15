"""The pepper: made once, for its owner's eyes only, never replaced."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tenants.errors import PepperUnusable
from tenants.pepper import load_or_create_pepper, load_pepper, make_pepper


def test_the_file_is_made_once_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "data" / "pepper"
    first = load_or_create_pepper(path)
    assert load_or_create_pepper(path) == first == load_pepper(path)
    assert len(first.secret) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["pepper"]


def test_the_file_is_private_whatever_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        load_or_create_pepper(tmp_path / "pepper")
    finally:
        os.umask(old)
    assert (tmp_path / "pepper").stat().st_mode & 0o777 == 0o600


def test_processes_that_start_together_agree_on_one(tmp_path: Path) -> None:
    for round_ in range(20):
        path = tmp_path / str(round_) / "pepper"
        with ThreadPoolExecutor(8) as pool:
            peppers = set(pool.map(load_or_create_pepper, [path] * 8))
        assert len(peppers) == 1


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pepper"
    load_or_create_pepper(path)
    path.chmod(0o640)
    with pytest.raises(PepperUnusable, match=r"can be read by others: chmod 600 .*pepper"):
        load_or_create_pepper(path)


@pytest.mark.parametrize("content", ["", "hello", "ab" * 31, "zz" * 32, "é"])
def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "pepper"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(PepperUnusable, match=r"damaged|cannot be read"):
        load_or_create_pepper(path)
    assert path.read_text() == content


def test_a_missing_file_is_not_made_by_reading(tmp_path: Path) -> None:
    with pytest.raises(PepperUnusable, match="no pepper file"):
        load_pepper(tmp_path / "pepper")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PepperUnusable, match="cannot be written"):
        load_or_create_pepper(tmp_path / "file" / "pepper")


def test_the_id_tells_peppers_apart_and_the_secret_stays_out_of_sight() -> None:
    one, other = make_pepper(b"a" * 32), make_pepper(b"b" * 32)
    assert one.id != other.id
    assert make_pepper(b"a" * 32).id == one.id
    assert "aaaa" not in repr(one)
