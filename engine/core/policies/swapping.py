"""Who travels to the host and back when jobs are served by priority; it knows no priority itself.

FastServe's published scheduler (https://github.com/LLMServe/FastServe), which the reconstruction
of ALISE's "dynamic swapping" follows. Each step, jobs are taken in order until seats and blocks are
used up; that is the batch. Then either

1. blocks are short of what the batch needs and a reserve: jobs outside of the batch leave, the last
   first; or
2. they are not: jobs of the batch that are on the host come back, the first first, as long as the
   reserve stays untouched.

Never both in one step, so nothing travels to and fro; and blocks that copies under way will free
are there for rule 1 and not yet for rule 2. 3. While less than a tenth of the host is free, no new
prompt is begun.

Chosen here: the reserve is one block per running job (the source reserves the largest batch, which
would be a quarter of a small pool). The first job that waits for its start counts as one of the
batch in its place, so that the one who left for it does not take the room back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from engine.core.latency_model import LatencyModel, StepCost
from engine.core.policy import Rank, Traffic, View
from engine.core.request import Request, Status

HOST_SHARE = 0.1
OPERATING_BATCH = 32
OPERATING_CONTEXT = 1024  # tokens

MayLeave: TypeAlias = Callable[[Request, Request | None], bool]


def operating_step_ns(model: LatencyModel) -> float:
    """Return the price of a usual step: 32 decodes with 1,024 cached tokens each."""
    step = StepCost(model)
    step.add_decodes(OPERATING_BATCH, OPERATING_BATCH * OPERATING_CONTEXT)
    return step.total_ns


def host_is_full(view: View) -> bool:
    """True where rule 3 forbids to begin prompts."""
    host = view.capacity.num_host_blocks
    return bool(view.parked) and view.free_host_blocks < HOST_SHARE * host


def num_growing(view: View) -> int:
    """Return how many decodes need a block for their next token."""
    size = view.capacity.block_size
    return sum([request.num_computed % size == 0 for request in view.decoding])


def swap(
    view: View,
    rank: Callable[[Request], Rank],
    newcomer: Request | None,
    *,
    seats: int,
    may_leave: MayLeave,
) -> Traffic:
    """Return the traffic of one step.

    `newcomer` is the first of the waiting, where known. `may_leave(job, wanted)` says whether a
    running job may leave for that absent one, or, where it is None, because blocks run out.
    """
    reserve = view.num_running
    growth = num_growing(view)
    soon = view.free_blocks + view.coming_blocks
    is_short = soon < growth + reserve
    if not view.parked and not is_short:
        return Traffic()
    present = [*view.prefilling, *view.decoding]
    jobs = sorted((*present, *view.parked, *_waiting(newcomer)), key=rank)
    batch = jobs[: _batch_size(jobs, view, view.capacity.num_blocks - reserve, seats)]
    absent = [job for job in batch if job.status is not Status.RUNNING and not job.is_returning]
    wanted = growth + reserve + sum([num_blocks(job, view) for job in absent])
    outside = [job for job in jobs[len(batch) :] if job.status is Status.RUNNING]
    first = absent[0] if absent else None
    return Traffic(
        park=_leaving(outside, first, wanted - soon, view, may_leave),
        back=_fitting(absent, view, view.free_blocks - growth - reserve),
    )


def num_blocks(job: Request, view: View) -> int:
    """Return the blocks a job holds or needs: its history, and its next token."""
    return -(-(job.num_tokens + 1) // view.capacity.block_size)


def _waiting(newcomer: Request | None) -> tuple[Request, ...]:
    if newcomer is None or newcomer.status is not Status.WAITING:
        return ()
    return (newcomer,)


def _batch_size(jobs: Sequence[Request], view: View, blocks: int, seats: int) -> int:
    """Return how many jobs from the front fit into the device together."""
    for count, job in enumerate(jobs):
        blocks -= num_blocks(job, view)
        if blocks < 0 or count >= seats:
            return count
    return len(jobs)


def _leaving(
    outside: Sequence[Request], first: Request | None, missing: int, view: View, may_leave: MayLeave
) -> list[Request]:
    """Return who leaves so that what is missing becomes free, the last in order first."""
    leaving: list[Request] = []
    for job in reversed(outside):
        if missing <= 0:
            break
        if job.is_decoding and may_leave(job, first):
            leaving.append(job)
            missing -= num_blocks(job, view)
    return leaving


def _fitting(absent: Iterable[Request], view: View, free: int) -> list[Request]:
    """Return who comes back: in order, nobody past the first that finds no room."""
    back: list[Request] = []
    for job in absent:
        free -= num_blocks(job, view)
        if free < 0:
            break
        if job.status is Status.PARKED:
            back.append(job)
    return back
