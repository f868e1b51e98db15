"""The learned predictor of lengths inside the simulator; the one place here that knows of it.

It learns at once and in order, so that equal seeds give equal bytes. It is told what the gateway
would be told: what is asked, how long the conversation's earlier answers were, and how long an
answer was once it has ended (law L26). It needs numpy and xgboost, and is imported late.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from engine.core.clock import NS_PER_S
from engine.core.request import LengthEstimate, RequestOrder
from engine.learning.predictor import LearnedPredictor
from engine.learning.question import Question, bounded
from engine.sim.predictors import PredictorError
from engine.sim.trace import TraceRow
from engine.sim.workload import SimRequest, Workload

EVERY = 16  # answers learned from together
NS_PER_HOUR = 3600 * NS_PER_S


class LearnedLengths:
    """What the scheduler asks, over the predictor of the gateway."""

    __slots__ = ("_asked", "_predictor", "_texts")

    def __init__(self, predictor: LearnedPredictor, workload: Workload) -> None:
        self._predictor = predictor
        self._asked = {r.id: _asked(r) for r in workload.requests}
        self._texts = {r.id: bounded(r.text) for r in workload.requests if r.text}

    @property
    def learner(self) -> LearnedPredictor:
        """The predictor itself."""
        return self._predictor

    def predict(self, order: RequestOrder) -> LengthEstimate:
        """Return the guess for this order."""
        question = Question(
            tenant=order.tenant,
            text=self._texts.get(order.id, ""),
            num_prompt_tokens=len(order.prompt),
            max_tokens=order.sampling.max_tokens,
            previous_outputs=order.previous_outputs,
            hour=order.arrival_ns / NS_PER_HOUR % 24,
            asked_tokens=self._asked.get(order.id, ()),
        )
        return self._predictor.predict(order.id, question)

    def observe(self, order: RequestOrder, num_output_tokens: int) -> None:
        """Learn of an answer; one as long as it was allowed to be was cut."""
        is_whole = num_output_tokens < order.sampling.max_tokens
        self._predictor.observe(order.id, num_output_tokens, is_whole=is_whole)


def make_learned(
    num_warm: int,
    rows: Sequence[TraceRow],
    workload: Workload,
    *,
    max_output_tokens: int,
    tenants: int,
    seed: int,
) -> LearnedLengths:
    """Return a predictor that knows nothing yet, or that many other rows of the trace.

    Other rows are of no conversation that the workload has a turn of. Raises PredictorError where
    there are too few.
    """
    predictor = LearnedPredictor(every=EVERY)
    if num_warm:
        others = _others(rows, workload)
        if len(others) < num_warm:
            raise PredictorError(
                f"predictor learned:{num_warm}: the trace has only {len(others)} rows that the "
                "workload does not use"
            )
        rng = random.Random(f"{seed}/warm")
        chosen = rng.sample(others, num_warm)
        predictor.teach(
            (
                _question(row, f"tenant-{rng.randrange(tenants)}", max_output_tokens),
                row.num_output_tokens,
            )
            for row in chosen
        )
    return LearnedLengths(predictor, workload)


def _others(rows: Sequence[TraceRow], workload: Workload) -> list[TraceRow]:
    used = {request.row for request in workload.requests}
    talks = {(rows[i].tenant, rows[i].conversation) for i in used if rows[i].conversation}
    return [
        row
        for i, row in enumerate(rows)
        if i not in used and (row.tenant, row.conversation) not in talks
    ]


def _question(row: TraceRow, tenant: str, max_tokens: int) -> Question:
    return Question(
        tenant=row.tenant or tenant,
        text=bounded(row.text),
        num_prompt_tokens=row.num_prompt_tokens,
        max_tokens=row.max_tokens or max_tokens,
        previous_outputs=row.previous_outputs,
        asked_tokens=_asked(row),
    )


def _asked(one: TraceRow | SimRequest) -> tuple[int, ...]:
    """Return what was asked in each turn; outside conversations it is the whole prompt."""
    return one.asked_tokens or (one.num_prompt_tokens,)
