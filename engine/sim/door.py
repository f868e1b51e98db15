"""The gateway's door in virtual time: the very classes that judge in service, and nothing else.

It stands between an arrival and the core, is shown the core's snapshots as the gateway is, and
knows no true length. Every tier behind the first asks to be refused where its promise cannot be
kept; a request is downgraded only by the gateway.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from engine.core.admission import (
    Action,
    AdmissionRules,
    Gatekeeper,
    Mode,
    OnOverload,
    Verdict,
)
from engine.core.forecast import Newcomer
from engine.core.length_predictor import LengthPredictor
from engine.core.request import RequestOrder
from engine.core.stats import Snapshot, TokenEvent

Listener = Callable[[Newcomer, Verdict, int], None]


class SimulatedDoor:
    """Judges every order; `listener` is told of each verdict."""

    __slots__ = ("_listener", "_predictor", "keeper", "num_refused", "num_would_refuse")

    def __init__(
        self, rules: AdmissionRules, predictor: LengthPredictor, listener: Listener | None = None
    ) -> None:
        self.keeper = Gatekeeper(rules)
        self._predictor = predictor
        self._listener = listener
        self.num_refused = self.num_would_refuse = 0

    def ask(self, order: RequestOrder, now_ns: int) -> tuple[RequestOrder, Verdict]:
        """Return the order with its predicted length, and the verdict; `took` comes by itself."""
        estimate = order.estimate or self._predictor.predict(order)
        order = dataclasses.replace(order, estimate=estimate)
        newcomer = Newcomer(order.id, order.tier, order.slo, len(order.prompt), estimate)
        verdict = self.keeper.judge(newcomer, OnOverload.REJECT, now_ns)
        self.num_would_refuse += verdict.would is not Action.ADMIT
        if verdict.action is Action.ADMIT:
            self.keeper.took(newcomer, verdict, order.arrival_ns)
        else:
            self.num_refused += 1
            self.keeper.refused(newcomer, verdict, now_ns)
        if self._listener is not None:
            self._listener(newcomer, verdict, now_ns)
        return order, verdict

    def see(self, events: Sequence[TokenEvent], snapshot: Snapshot) -> None:
        """A step is over: its first tokens and ends, and what the engine looks like now."""
        keeper = self.keeper
        for event in events:
            if event.token_id is not None:
                keeper.first_token(event.request_id, event.at_ns)
            if event.finish_reason is not None:
                keeper.left(event.request_id)
        keeper.look(snapshot.load, snapshot.at_ns)

    def left(self, events: Sequence[TokenEvent]) -> None:
        """Somebody left of its own accord."""
        for event in events:
            self.keeper.left(event.request_id)

    def fields(self) -> dict[str, Any]:
        """Return what a point tells of admission: verdicts, and what the ledger made of them."""
        counts = self.keeper.ledger
        return {
            "mode": self.keeper.rules.mode.value,
            "refused": self.num_refused,
            "would_refuse": self.num_would_refuse,
            **dataclasses.asdict(counts),
        }


def parse_mode(text: str) -> Mode:
    """Return the mode of that name; raises ValueError, one sentence."""
    try:
        return Mode(text)
    except ValueError:
        known = ", ".join(mode.value for mode in Mode)
        raise ValueError(f"admission {text!r}: must be one of {known}") from None
