"""Prompts without a first token, class by class in the order of their due times; and the lost.

It knows when each is due, when it is due again, and how much of it is left; it ranks nobody. A
step looks only at the first prompts of a class, so that its cost does not grow with their number.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import TypeAlias

from engine.core.latency_model import LatencyModel
from engine.core.policies.triage import Job
from engine.core.request import Request, Status

# Where a request stands with its first token: `note` holds its due time and one of these.
FIRST, SECOND, LOST = 0, 1, 2

MOST_MOVED = 64  # to their next stage in one step, of each class
SLACK = 64  # entries of those who left are swept out when they are more than the living and this

# Due time, id, request, stage; prompt and decoding in the profile's time, without the factor.
_Entry: TypeAlias = tuple[int, str, Request, int, float, float]


def _insert(entries: list[_Entry], entry: _Entry) -> None:
    """Put an entry in its place by due time and id; tuples compare without a key's calls."""
    entries.insert(bisect_left(entries, entry[:2]), entry)


def _is_open(request: Request) -> bool:
    return request.first_token_ns is None and request.status is not Status.FINISHED


class OpenPrompts:
    """`second_ns` after its arrival a prompt that missed is due again, `second_weight` as dear."""

    __slots__ = ("_by_class", "_lost", "_model", "_second_ns", "_second_weight", "moved")

    def __init__(self, model: LatencyModel, second_ns: int, second_weight: float) -> None:
        self._model = model
        self._second_ns = second_ns
        self._second_weight = second_weight
        self._by_class: dict[int, list[_Entry]] = {}  # not empty, in order of due time and id
        self._lost: deque[Request] = deque()  # in the order in which they were
        self.moved: dict[str, int] = {}  # to which stage, by id; whoever reads it empties it

    def __len__(self) -> int:
        """Entries kept, of requests that have left unnoticed too."""
        return sum(map(len, self._by_class.values())) + len(self._lost)

    @property
    def classes(self) -> list[int]:
        """Return the ranks of the classes that have open prompts, the first to serve first."""
        return sorted(self._by_class)

    def enter(self, request: Request, decode_ns: float) -> None:
        """Take a new prompt; `decode_ns` is what its decoding adds to what it costs to keep it."""
        order = request.order
        due = order.slo.first_token_due_ns(order.arrival_ns, request.num_prompt_tokens)
        request.note = (due, FIRST)
        prompt_ns = self._model.prefill_ns(0, request.num_prompt_tokens)
        factor = self._model.factor
        self._file((due, request.id, request, FIRST, prompt_ns / factor, decode_ns / factor))

    def _file(self, entry: _Entry) -> None:
        entries = self._by_class.setdefault(entry[2].order.slo.rank, [])
        _insert(entries, entry)

    def jobs(self, rank: int, now_ns: int, speed: float, most: int) -> list[Job]:
        """Return a class's first prompts by due time; those too late move to their next stage.

        `speed` is the share of the device's time that prompts get.
        """
        factor = self._model.factor
        entries, new = self._by_class[rank], tuple.__new__  # a third of what `Job(...)` takes
        jobs: list[Job] = []
        gone: list[int] = []
        again: list[_Entry] = []
        for index, (due, name, request, stage, prompt_ns, decode_ns) in enumerate(entries):
            if len(jobs) >= most:
                break
            if request.first_token_ns is not None or request.status is Status.FINISHED:
                gone.append(index)
                continue
            done = request.num_computed
            if done:
                left_ns = self._model.prefill_ns(done, request.num_prompt_tokens - done)
            else:
                left_ns = factor * prompt_ns
            length_ns = left_ns / speed
            if now_ns + length_ns > due and len(gone) < MOST_MOVED:
                gone.append(index)
                second_ns = request.order.arrival_ns + self._second_ns
                if stage != FIRST or now_ns + length_ns > second_ns:
                    request.note, self.moved[name] = (due, LOST), LOST
                    self._lost.append(request)
                    continue
                due, stage = second_ns, SECOND
                request.note, self.moved[name] = (due, stage), stage
                again.append((due, name, request, stage, prompt_ns, decode_ns))
            weight = length_ns + factor * decode_ns
            if stage == SECOND:
                weight *= self._second_weight
            num_tokens = request.num_prompt_tokens
            jobs.append(new(Job, (name, due, length_ns, weight, done > 0, num_tokens)))
        if gone:  # all of them stand near the beginning: one move of the rest
            end, left = gone[-1] + 1, set(gone)
            entries[:end] = [entries[index] for index in range(end) if index not in left]
        for entry in again:
            _insert(entries, entry)
        if again:
            jobs.sort(key=lambda job: (job.due_ns, job.id))
        if not entries:
            del self._by_class[rank]
        return jobs

    def oldest_lost(self) -> Request | None:
        """Return the prompt that was lost first of those that still have no token."""
        lost = self._lost
        while lost:
            if _is_open(lost[0]):
                return lost[0]
            lost.popleft()
        return None

    def sweep(self, num_live: int) -> None:
        """Forget those who left, when they are many: memory stays bounded, the cost amortised."""
        if len(self) <= 2 * num_live + SLACK:
            return
        self._lost = deque(request for request in self._lost if _is_open(request))
        kept = {
            rank: [entry for entry in entries if _is_open(entry[2])]
            for rank, entries in self._by_class.items()
        }
        self._by_class = {rank: entries for rank, entries in kept.items() if entries}
