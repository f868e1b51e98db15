"""Who else is busy: the machine's time less our own, and no guess where nobody says."""

from __future__ import annotations

from pathlib import Path

from engine.core.clock import NS_PER_S, VirtualClock
from engine.serving.neighbours import NeighbourMeter


def write(proc: Path, machine: str, processes: dict[int, tuple[int, int]]) -> None:
    (proc / "stat").write_text(f"cpu  {machine}\ncpu0 1 2 3\n")
    for pid, (user, system) in processes.items():
        folder = proc / str(pid)
        folder.mkdir(exist_ok=True)
        # The name may hold anything, spaces and parentheses too.
        folder.joinpath("stat").write_text(
            f"{pid} (a) b (c) S 1 1 1 0 -1 0 0 0 0 0 {user} {system} 9 9 20 0 1 0 77 1 1\n"
        )


def test_what_is_not_ours_is_the_neighbours(tmp_path: Path) -> None:
    """Ten seconds: 900 ticks in all, 600 of them ours, so 0.3 cores at 100 ticks a second."""
    clock = VirtualClock()
    write(tmp_path, "1000 100 50 99999 99999 0 0 0 0 0", {7: (10, 5), 8: (0, 0)})
    meter = NeighbourMeter([7, 8], clock=clock, proc=tmp_path, ticks_per_s=100)
    clock.advance_to(10 * NS_PER_S)
    write(tmp_path, "1600 200 200 0 0 30 20 5 5 5", {7: (310, 105), 8: (150, 50)})
    cores = meter.cores()
    assert cores is not None
    assert abs(cores - 0.3) < 1e-9


def test_it_is_never_less_than_nobody(tmp_path: Path) -> None:
    """Clocks tick apart: our own time may seem to be more than the machine's."""
    clock = VirtualClock()
    write(tmp_path, "100 0 0 0 0 0 0", {7: (0, 0)})
    meter = NeighbourMeter([7], clock=clock, proc=tmp_path, ticks_per_s=100)
    clock.advance_to(NS_PER_S)
    write(tmp_path, "150 0 0 0 0 0 0", {7: (60, 0)})
    assert meter.cores() == 0.0


def test_where_nobody_says_nothing_is_known(tmp_path: Path) -> None:
    clock = VirtualClock()
    assert NeighbourMeter([7], clock=clock, proc=tmp_path).cores() is None
    write(tmp_path, "100 0 0 0 0 0 0", {})
    assert NeighbourMeter([7], clock=clock, proc=tmp_path).cores() is None


def test_this_very_machine_answers() -> None:
    import os

    meter = NeighbourMeter([os.getpid()])
    cores = meter.cores()
    assert cores is None or cores >= 0.0
