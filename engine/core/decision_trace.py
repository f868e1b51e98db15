"""One request's decisions while they are made: stretches that are open, entries that are kept.

It knows its request while that lives, and afterwards numbers only. What it keeps is bounded: the
first entries and the last ones, and how many between them were dropped.
"""

from __future__ import annotations

from engine.core.decision import Decision, DecisionKind, Reason, RequestRecord
from engine.core.errors import RefusalReason
from engine.core.request import (
    FinishReason,
    LengthEstimate,
    Request,
    RequestOrder,
    Status,
    TbtMode,
)
from engine.core.stats import RequestStats

MOST_DECISIONS = 64
FIRST_KEPT = 16
MOST_OTHERS = 8  # named in one entry
FOLDED_STEPS = 8  # a pause of so many steps, over before its token was due, is no entry


def next_due_ns(request: Request) -> int:
    """Return when the next token is due: the first, or the next by the mode of its promise."""
    slo = request.order.slo
    if request.first_token_ns is None:
        return slo.first_token_due_ns(request.order.arrival_ns, request.num_prompt_tokens)
    if slo.tbt_mode is TbtMode.GAP:
        return request.shown_ns + slo.tbt_ns
    return request.first_token_ns + len(request.output) * slo.tbt_ns


class Trace:
    """What is known of one request; the log that owns it says what happens, and when.

    A stretch is open while `run_step` (it computes) or `held_step` (it is left out) is not 0. Both
    are, while a pause may still turn out too short to be told.
    """

    __slots__ = (
        "arrival_ns",
        "base",
        "decisions",
        "end",
        "estimate",
        "first_due_ns",
        "first_waits",
        "held_is_due",
        "held_ns",
        "held_reason",
        "held_step",
        "id",
        "is_followed",
        "max_tokens",
        "num_dropped",
        "num_prompt_tokens",
        "num_steps",
        "others",
        "refusal",
        "request",
        "run_held",
        "run_ns",
        "run_output",
        "run_step",
        "run_tokens",
        "slo",
        "submitted_ns",
        "tenant",
        "tier",
        "wait_ns",
        "wanted_ns",
        "worst_late_ns",
    )

    def __init__(
        self,
        order: RequestOrder,
        now_ns: int,
        request: Request | None,
        *,
        is_followed: bool,
        refusal: RefusalReason | None = None,
    ) -> None:
        # Not the order itself: it holds the prompt, and the trace outlives the request.
        self.id, self.tenant, self.tier, self.slo = order.id, order.tenant, order.tier, order.slo
        self.arrival_ns, self.submitted_ns = order.arrival_ns, now_ns
        self.num_prompt_tokens, self.max_tokens = len(order.prompt), order.sampling.max_tokens
        self.first_due_ns = self.slo.first_token_due_ns(order.arrival_ns, self.num_prompt_tokens)
        self.request = request
        self.estimate: LengthEstimate | None = order.estimate
        self.is_followed = is_followed
        self.refusal = refusal
        self.end: RequestStats | None = None
        self.worst_late_ns = 0
        self.decisions: list[Decision] = []
        self.num_dropped = 0
        self.num_steps = 0
        self.wait_ns = now_ns  # since when it waits
        self.base: dict[Reason, int] | None = None  # what all had waited for before it did
        self.first_waits: dict[Reason, int] | None = None
        self.others: list[tuple[str, str]] | None = None  # who made room for its next start
        self.wanted_ns = 0  # since when it has been wanted back from the host
        self.run_step = self.run_ns = self.run_tokens = self.run_output = self.run_held = 0
        self.held_step = self.held_ns = 0
        self.held_reason: Reason | None = None
        self.held_is_due = False

    def add(self, decision: Decision) -> None:
        """Keep a decision; the oldest behind the first few makes room for it."""
        if len(self.decisions) >= MOST_DECISIONS:
            del self.decisions[FIRST_KEPT]
            self.num_dropped += 1
        self.decisions.append(decision)

    # Stretches

    def run(self, request: Request, step: int, now_ns: int) -> None:
        """It computes from this step on."""
        if self.held_step:
            paused = step - self.held_step
            is_free = self.run_step and not self.held_is_due and now_ns <= next_due_ns(request)
            if is_free and paused <= FOLDED_STEPS:
                self.run_held += paused
                self.held_step = 0
                return
            self.close(request, step - 1, now_ns)
        self.run_step, self.run_ns = step, now_ns
        self.run_tokens, self.run_output = request.num_computed, len(request.output)

    def hold(self, reason: Reason | None, step: int, now_ns: int, *, is_due: bool) -> None:
        """It is left out from this step on; or for another reason than before."""
        self.held_step, self.held_ns = step, now_ns
        self.held_reason, self.held_is_due = reason, is_due

    def change(
        self, request: Request, reason: Reason | None, step: int, now_ns: int, *, is_due: bool
    ) -> None:
        """It is left out for another reason from this step on."""
        if self.held_step < step:
            self.close(request, step - 1, now_ns)
        self.hold(reason, step, now_ns, is_due=is_due)

    def close(self, request: Request, last_step: int, now_ns: int) -> None:
        """Whatever stretch is open ends with this step."""
        if self.run_step:
            last_run = (self.held_step or last_step + 1) - 1
            num_steps = last_run - self.run_step + 1 - self.run_held
            self.num_steps += num_steps
            until_ns = self.held_ns if self.held_step else now_ns
            num_tokens = request.num_computed - self.run_tokens
            num_output = len(request.output) - self.run_output
            # Made for every request, and bare it takes a quarter of what `Decision(...)` does.
            self.add(
                tuple.__new__(
                    Decision,
                    (DecisionKind.RAN, self.run_ns, self.run_step, until_ns, last_run, None, True,
                     num_steps, num_tokens, num_output, None, (), (), (), ""),
                )
            )  # fmt: skip
            self.run_step = self.run_held = 0
        if self.held_step:
            if self.held_step <= last_step:
                self.add(
                    Decision(
                        DecisionKind.HELD,
                        self.held_ns,
                        self.held_step,
                        now_ns,
                        last_step,
                        self.held_reason,
                        self.held_is_due,
                        due_ns=next_due_ns(request),
                    )
                )
            self.held_step = 0

    # Reading

    @property
    def is_notable(self) -> bool:
        """True for whoever was refused, preempted or failed, or missed what was promised."""
        end = self.end
        if end is None:
            return True
        due_ns, first_ns = self.first_due_ns, end.first_token_ns
        if end.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
            return end.finish_reason is not FinishReason.CANCELLED
        is_late = first_ns is None or first_ns > due_ns
        return bool(is_late or end.preemptions or end.late_tokens * 100 > end.num_output_tokens)

    def record(self, step: int, now_ns: int, standing: str) -> RequestRecord:
        """Return the story up to now; `step` is the latest one planned. The trace goes on."""
        slo, arrival_ns, num_prompt = self.slo, self.arrival_ns, self.num_prompt_tokens
        request, end, guess = self.request, self.end, self.estimate
        decisions, num_steps, state = list(self.decisions), self.num_steps, "finished"
        first_ns = None if end is None else end.first_token_ns
        num_output = 0 if end is None else end.num_output_tokens
        late = 0 if end is None else end.late_tokens
        if self.refusal is not None:
            state = "refused"
        elif request is not None:
            open_ones, num_open = self._open(request, step, now_ns)
            decisions += open_ones
            num_steps += num_open
            first_ns, num_output = request.first_token_ns, len(request.output)
            late = request.late_tokens
            state = request.status.value
            if self.held_step and request.status is Status.RUNNING:
                state = "held"
        decisions.sort(key=lambda decision: decision.at_ns)  # stretches are kept when they end
        return RequestRecord(
            request_id=self.id,
            tenant=self.tenant,
            tier=self.tier,
            rank=slo.rank,
            read_ns=now_ns,
            arrival_ns=arrival_ns,
            submitted_ns=self.submitted_ns,
            first_token_due_ns=self.first_due_ns,
            tbt_ns=slo.tbt_ns,
            tbt_mode=slo.tbt_mode,
            pace_ns=slo.pace_ns,
            num_prompt_tokens=num_prompt,
            max_tokens=self.max_tokens,
            state=state,
            predicted_tokens=0.0 if guess is None else guess.middle,
            predicted_high=0.0 if guess is None else guess.high,
            first_token_ns=first_ns,
            num_output_tokens=num_output,
            late_tokens=late,
            worst_late_ns=self.worst_late_ns if request is None else request.worst_late_ns,
            num_steps=num_steps,
            is_followed=self.is_followed,
            standing=standing,
            decisions=tuple(decisions),
            num_dropped=self.num_dropped,
            refusal=self.refusal,
            end=end,
        )

    def _open(self, request: Request, step: int, now_ns: int) -> tuple[list[Decision], int]:
        """Return the open stretches as if they ended now, and the steps run in them."""
        kept = self.decisions, self.num_dropped, self.num_steps
        stretch = (self.run_step, self.run_held, self.held_step)
        self.decisions = []
        self.close(request, step, now_ns)
        found, num_open = self.decisions, self.num_steps - kept[2]
        self.decisions, self.num_dropped, self.num_steps = kept
        self.run_step, self.run_held, self.held_step = stretch
        return found, num_open
