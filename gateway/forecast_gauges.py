"""Says where the metrics of forecasts, refusals, hints and lengths are read; it keeps nothing.

Readers run in the thread that answers `/metrics`. No label is a tenant or a key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from gateway import metric_names as names
from gateway.services import Services

Values = list[tuple[float, dict[str, str]]]

# What the predictor says of itself, by the name of its reading: gauges, and counters.
LENGTH_GAUGES = {
    names.LENGTH_ORDER: "order_accuracy",
    names.LENGTH_COVERAGE: "high_coverage",
    names.LENGTH_ERROR: "log_error",
    names.LENGTH_ROWS: "rows",
    names.LENGTH_MODELS: "models",
    names.LENGTH_LEARNING: "is_learning",
}
LENGTH_COUNTERS = {
    names.LENGTH_LEARNED: "learned",
    names.LENGTH_FITS: "fits",
    names.LENGTH_DRIFTS: "drifts",
    names.LENGTH_FAILURES: "failures",
}


def observe_forecasts(services: Services) -> None:
    """Register how well the future is known."""
    telemetry, gate = services.telemetry, services.gate

    def errors() -> Values:
        found: Values = []
        for tier, score in gate.forecasts.scores.read().items():
            for quantile, error in (("0.5", score.median_error), ("0.9", score.high_error)):
                found.append((error, {names.TIER: tier, names.QUANTILE: quantile}))
        return found

    def coverage() -> Values:
        scores = gate.forecasts.scores.read()
        return [(score.covered, {names.TIER: tier}) for tier, score in scores.items()]

    def refusals() -> Values:
        now = gate.forecasts.ledger
        return by_state(justified=now.justified, false=now.false, unjudged=now.dropped)

    def would() -> Values:
        now = gate.forecasts.ledger
        return by_state(said=now.would_refuse, on_time=now.would_on_time, missed=now.would_missed)

    def checks() -> Values:
        now = gate.forecasts.ledger
        return by_state(agreed=now.agreed, disagreed=now.checked - now.agreed)

    def returns() -> Values:
        now = gate.forecasts.ledger
        return by_state(
            tried=now.returns, admitted=now.returns_admitted, on_time=now.returns_on_time
        )

    telemetry.observe(names.FORECAST_ERROR, errors)
    telemetry.observe(names.FORECAST_COVERAGE, coverage)
    telemetry.observe(names.REFUSALS, refusals, monotonic=True)
    telemetry.observe(names.REFUSALS_FALSE_SHARE, lambda: [(gate.forecasts.ledger.false_share, {})])
    telemetry.observe(names.REFUSALS_WOULD, would, monotonic=True)
    telemetry.observe(names.LEDGER_CHECKS, checks, monotonic=True)
    telemetry.observe(names.RETRY_RETURNS, returns, monotonic=True)
    telemetry.observe(
        names.RETRY_HINTS,
        lambda: by_state(**dataclasses.asdict(gate.hints.score)),
        monotonic=True,
    )
    for name, reading in LENGTH_GAUGES.items():
        telemetry.observe(name, length_reading(services, reading))
    for name, reading in LENGTH_COUNTERS.items():
        telemetry.observe(name, length_reading(services, reading), monotonic=True)


def by_state(**counts: float) -> Values:
    """Return counts under the label `tiergate.state`."""
    return [(count, {names.STATE: state}) for state, count in counts.items()]


def length_reading(services: Services, name: str) -> Callable[[], Values]:
    """Return a reader of one of the predictor's readings; without a value there is no series."""

    def read() -> Values:
        value = services.lengths.readings().get(name)
        return [] if value is None else [(float(value), {})]

    return read
