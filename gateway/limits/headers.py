"""What a client is told of its limits: headers, durations, one sentence; it decides nothing.

Of several limits of a family (a key's, its tenant's; of a minute, of a day) the tightest is shown:
the one with the least left, and among equals the one that stays so longest. A family without any
limit has no headers. Everything is read off the verdict itself, so what is left falls with each
request under way, and resets are when all of it is really there again.

Names: OpenAI API reference, "Rate limits"; Anthropic API reference, "Rate limits"; the retry
headers are those their SDKs read (openai `_base_client.py`, `retry-after-ms`, `x-should-retry`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from gateway.limits.calendar import moment_of
from gateway.limits.rules import Dimension
from gateway.limits.values import US_PER_S, Denial, Grant, Standing

US_PER_MS = 1000
# SDKs wait no longer than this for a hint; a longer one they would rather not follow at all.
MAX_HINT_MS = 120_000

_REQUESTS = (Dimension.REQUESTS_PER_MINUTE, Dimension.REQUESTS_PER_DAY)
_TOKENS = (Dimension.TOKENS_PER_MINUTE, Dimension.TOKENS_PER_DAY)
# What counts all tokens bounds those of the prompt, and those of the answer, as well.
_OPENAI: Mapping[str, tuple[Dimension, ...]] = MappingProxyType(
    {"requests": _REQUESTS, "tokens": _TOKENS}
)
_ANTHROPIC: Mapping[str, tuple[Dimension, ...]] = MappingProxyType(
    {
        "requests": _REQUESTS,
        "tokens": _TOKENS,
        "input-tokens": (Dimension.INPUT_TOKENS_PER_MINUTE, *_TOKENS),
        "output-tokens": (Dimension.OUTPUT_TOKENS_PER_MINUTE, *_TOKENS),
    }
)


def openai_headers(verdict: Grant | Denial) -> dict[str, str]:
    """Return `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`; resets like `6m0s`."""
    headers: dict[str, str] = {}
    for family, tightest in _families(verdict, _OPENAI):
        headers[f"x-ratelimit-limit-{family}"] = str(tightest.rule.limit)
        headers[f"x-ratelimit-remaining-{family}"] = str(tightest.remaining)
        headers[f"x-ratelimit-reset-{family}"] = duration(tightest.reset_us)
    return headers


def anthropic_headers(verdict: Grant | Denial) -> dict[str, str]:
    """Return `anthropic-ratelimit-...-{limit,remaining,reset}`; resets as RFC 3339 in UTC.

    Families: requests, tokens, input-tokens, output-tokens. Where only all tokens together are
    limited, that limit bounds the two kinds of them.
    """
    headers: dict[str, str] = {}
    for family, tightest in _families(verdict, _ANTHROPIC):
        name = f"anthropic-ratelimit-{family}"
        headers[f"{name}-limit"] = str(tightest.rule.limit)
        headers[f"{name}-remaining"] = str(tightest.remaining)
        headers[f"{name}-reset"] = timestamp(verdict.at_us + tightest.reset_us)
    return headers


def retry_headers(denial: Denial) -> dict[str, str]:
    """Return when to come back: `retry-after` and `retry-after-ms`, or that it is of no use.

    A rate has its true wait. A budget has one only where its window ends within two minutes; else,
    and where the ask can never fit, `x-should-retry: false` keeps SDKs from trying. So it does
    beside a wait that is longer than they would keep.
    """
    wait_us = denial.wait_us
    after_ms = None if wait_us is None else max(-(-wait_us // US_PER_MS), 1)
    if after_ms is None or (denial.is_budget and after_ms > MAX_HINT_MS):
        return {"x-should-retry": "false"}
    headers = {"retry-after": str(-(-after_ms // 1000)), "retry-after-ms": str(after_ms)}
    if after_ms > MAX_HINT_MS:
        headers["x-should-retry"] = "false"
    return headers


def explain(denial: Denial) -> str:
    """Return one sentence for the caller; it names kinds and numbers, never an id."""
    standing = denial.blocked_by()
    rule = standing.rule
    owner = f"your {rule.owner.scope}" + (" for this model" if rule.owner.model else "")
    limit = f"The limit of {rule.limit} {rule.dimension.value.replace('_', ' ')}"
    if rule.dimension is Dimension.BUDGET:
        limit = "The budget"
    if standing.wait_us is None:
        return f"{limit} of {owner} is less than this request may take."
    if rule.dimension is Dimension.BUDGET:
        return f"{limit} of {owner} is spent. It begins anew in {duration(standing.wait_us)}."
    return f"{limit} of {owner} is reached. Please retry in {duration(standing.wait_us)}."


def duration(us: int) -> str:
    """Return microseconds, rounded up to whole ms, as `0s`, `12ms`, `1s`, `6m0s`, `23h59m0.5s`."""
    ms = -(-us // US_PER_MS)
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{ms // 1000}.{ms % 1000:03d}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def timestamp(us: int) -> str:
    """Return microseconds since 1970 as `2026-11-21T12:01:01Z`, rounded up to the second."""
    return moment_of(-(-us // US_PER_S) * US_PER_S).strftime("%Y-%m-%dT%H:%M:%SZ")


def _families(
    verdict: Grant | Denial, families: Mapping[str, tuple[Dimension, ...]]
) -> Iterable[tuple[str, Standing]]:
    standings = list(verdict.standings())
    for family, dimensions in families.items():
        candidates = [s for s in standings if s.rule.dimension in dimensions]
        if candidates:
            yield family, min(candidates, key=lambda s: (s.remaining, -s.reset_us))
