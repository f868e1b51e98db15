"""What the engine's process finds in its environment, and how many cores it is told to use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from engine_kit import config_of

from engine.serving.cores import usable_cores
from engine.serving.process import child_environment
from engine.serving.spawn import describe_exit


def test_torch_is_told_how_to_run_before_it_is_imported() -> None:
    """Threads, spinning and malloc are set; what the operator has set himself stays."""
    made = child_environment(config_of(threads=3, spin=500), {"HF_HUB_OFFLINE": "1", "A": "b"})
    assert made["OMP_NUM_THREADS"] == "3"
    assert made["GOMP_SPINCOUNT"] == "500"
    assert int(made["MALLOC_MMAP_THRESHOLD_"]) >= 1 << 30
    assert int(made["MALLOC_TRIM_THRESHOLD_"]) >= 1 << 30
    assert made["TOKENIZERS_PARALLELISM"] == "false"
    assert (made["HF_HUB_OFFLINE"], made["A"]) == ("1", "b")
    assert "HF_HUB_OFFLINE" not in child_environment(config_of(), {})


def test_the_operators_environment_wins_but_not_over_the_config() -> None:
    """OMP_NUM_THREADS from outside counts unless the config names a number."""
    outside = {"OMP_NUM_THREADS": "7", "GOMP_SPINCOUNT": "9"}
    assert child_environment(config_of(), outside)["OMP_NUM_THREADS"] == "7"
    assert child_environment(config_of(), outside)["GOMP_SPINCOUNT"] == "9"
    assert child_environment(config_of(threads=2), outside)["OMP_NUM_THREADS"] == "2"


def test_the_child_finds_the_package_and_the_operators_executors() -> None:
    """The search path holds this package, the config's folders, then what was there."""
    made = child_environment(config_of(import_paths=("/mine",)), {"PYTHONPATH": "/theirs"})
    root, *rest = made["PYTHONPATH"].split(os.pathsep)
    assert (Path(root) / "engine" / "serving" / "child.py").exists()
    assert rest == ["/mine", "/theirs"]


def make_processor(system: Path, number: int, siblings: str) -> None:
    folder = system / f"devices/system/cpu/cpu{number}/topology"
    folder.mkdir(parents=True)
    (folder / "thread_siblings_list").write_text(siblings + "\n")


@pytest.mark.parametrize(
    ("quota", "affinity", "cores"),
    [
        (None, {0, 1, 2, 3}, 2),  # two cores of two threads each
        ("max 100000", {0, 1, 2, 3}, 2),
        ("100000 100000", {0, 1, 2, 3}, 1),
        ("150000 100000", {0, 1, 2, 3}, 2),
        ("10000 100000", {0, 1, 2, 3}, 1),
        (None, {0, 2}, 1),  # both threads of one core
        (None, {8, 9}, 2),  # nothing is known of these
    ],
)
def test_cores_are_physical_and_within_the_quota(
    tmp_path: Path, quota: str | None, affinity: set[int], cores: int
) -> None:
    """Threads of one core count once, and a container's quota is not overdrawn."""
    for number, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        make_processor(tmp_path, number, siblings)
    if quota is not None:
        (tmp_path / "fs/cgroup").mkdir(parents=True)
        (tmp_path / "fs/cgroup/cpu.max").write_text(quota + "\n")
    assert usable_cores(tmp_path, affinity) == cores


def test_this_machine_has_a_core() -> None:
    """The real /sys gives between one core and the number of processors."""
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_exit_codes_are_words() -> None:
    """Signals are named, and the killer of big processes is suspected."""
    assert describe_exit(3) == "exit code 3"
    assert describe_exit(-11) == "killed by SIGSEGV"
    assert "memory" in describe_exit(-9)
