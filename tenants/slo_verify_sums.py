"""Judges the raw facts of a report's requests once more, and adds them up once more.

It shares no code with tenants/slo.py nor with what wrote the report: the written rule (docs/slo.md)
is put into code a second time here, with arithmetic of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_DOWN, Context, Decimal

from tenants.slo_verify_file import PROMISES, TALLIES, Cells, Differs

_ROLLING_MINUTES = {
    "5m": 5,
    "30m": 30,
    "1h": 60,
    "2h": 120,
    "6h": 360,
    "1d": 1440,
    "3d": 3 * 1440,
    "30d": 30 * 1440,
}
_RATIOS = ("all", "ttft", "tbt", "availability")
_VERDICTS = {"all": "met", "ttft": "ttft_met", "tbt": "tbt_met", "availability": "available"}
_EXACT = Context(prec=120, rounding=ROUND_DOWN)
_MILLION = 1_000_000
_WORDS = {"": None, "true": True, "false": False}

Tally = defaultdict[str, int]
Window = tuple[str, datetime, datetime]
# Tier, version, prompt tokens, due, TBT, its mode (empty: no gaps), stream, whether the client has
# eased it, and what the file says of it.
Kind = tuple[str, int, int, int, int, str, bool, bool, str]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one request, before anybody judged it. Times in ns from its arrival."""

    arrival: datetime
    outcome: str
    stream: bool
    prompt_tokens: int
    total: int
    first: int | None
    due: int
    gaps: int
    late: int
    gap_due: int
    gap_mode: str
    needed: int | None
    eased: bool
    tier: str
    asked: str
    version: int


def facts_of(where: str, line: Mapping[str, str]) -> Facts:
    """Return the facts of a line; raises `Differs` for what cannot be."""
    facts = Facts(
        arrival=moment(where, line.get("arrival", "")),
        outcome=line.get("outcome", ""),
        stream=line.get("stream") == "true",
        prompt_tokens=whole(where, line, "prompt_tokens"),
        total=whole(where, line, "total_ns"),
        first=whole(where, line, "ttft_ns") if line.get("ttft_ns") else None,
        due=whole(where, line, "ttft_due_ns"),
        gaps=whole(where, line, "gaps"),
        late=whole(where, line, "late_gaps"),
        gap_due=whole(where, line, "tbt_ns"),
        gap_mode=line.get("tbt_mode", ""),
        needed=whole(where, line, "needed_tbt_ns") if line.get("needed_tbt_ns") else None,
        eased=line.get("eased") == "true",
        tier=line.get("tier", ""),
        asked=line.get("tier_asked", ""),
        version=whole(where, line, "tier_version"),
    )
    if facts.outcome not in TALLIES[1:8]:
        raise Differs(f"{where}: {facts.outcome!r} is no way for a request to end")
    if facts.late > facts.gaps:
        raise Differs(f"{where}: more gaps are late than there are")
    if (facts.needed is None) != (facts.gaps == 0):
        raise Differs(f"{where}: needed_tbt_ns goes with gaps, of which there are {facts.gaps}")
    if facts.needed is not None and (facts.needed <= facts.gap_due) != _is_steady(facts):
        raise Differs(
            f"{where}: {facts.late} of {facts.gaps} gaps late does not fit needed_tbt_ns "
            f"{facts.needed} against the {facts.gap_due} promised"
        )
    return facts


def _is_steady(facts: Facts) -> bool:
    """At most one gap in a hundred is late."""
    return facts.gaps - 100 * facts.late >= 0


def verdicts(facts: Facts) -> dict[str, bool | None]:
    """Return the verdict on each objective; None where the request is not in its denominator."""
    first, nothing = facts.first, dict[str, bool | None].fromkeys(_RATIOS)
    own_doing = facts.outcome in ("invalid", "limited")
    left_early = facts.outcome == "disconnected" and first is None and facts.total <= facts.due
    if own_doing or left_early:
        return nothing
    if facts.outcome == "completed" and first is None:
        return nothing | {"availability": True}
    availability = None if facts.outcome == "disconnected" else facts.outcome == "completed"
    ttft = first is not None and first <= facts.due
    tbt = _is_steady(facts) if first is not None and facts.gaps > 0 else None
    return {
        "all": ttft and tbt is not False and availability is not False,
        "ttft": ttft,
        "tbt": tbt,
        "availability": availability,
    }


def check_verdicts(where: str, line: Mapping[str, str], right: Mapping[str, bool | None]) -> None:
    """Raise `Differs` unless a line's verdicts are these."""
    for ratio, name in _VERDICTS.items():
        said = line.get(name, "")
        if said not in _WORDS or _WORDS[said] is not right[ratio]:
            must = {None: "empty (not counted)", True: "true", False: "false"}[right[ratio]]
            raise Differs(f"{where}: {name} is {said!r} in the file, by the facts it is {must}")


class Again:
    """The sums of a report, made again from its requests."""

    def __init__(self, since: datetime, until: datetime) -> None:
        self.since = since
        self.until = until
        self.requests = 0
        self.tallies: dict[tuple[Window, str], Tally] = {}
        self.taken: dict[tuple[str, str], list[int]] = {}
        self.reasons: Tally = defaultdict(int)
        self.downgrades: Tally = defaultdict(int)
        self.tiers: set[str] = set()
        self.used: set[tuple[str, int]] = set()
        # One of each kind of promise that requests were judged by, and where it is first met.
        self.promises: dict[Kind, str] = {}
        # (tier, version, prompt tokens, first token, needed TBT) of those that met an eased one.
        self.eased: list[tuple[str, int, int, int | None, int | None]] = []
        self.eased_count: Tally = defaultdict(int)

    def add(self, where: str, line: Mapping[str, str], facts: Facts) -> None:
        """Judge one more request, and count it."""
        right = verdicts(facts)
        check_verdicts(where, line, right)
        added = tally_of(facts, right)
        for window in self._windows(facts.arrival):
            tally = self.tallies.setdefault((window, facts.tier), defaultdict(int))
            for name, amount in added.items():
                tally[name] += amount
        self.requests += 1
        self.tiers |= {facts.tier, facts.asked}
        self.used.add((facts.tier, facts.version))
        first = facts.first
        if right["ttft"] is not None and first is not None:
            self.taken.setdefault(("ttft", facts.tier), []).append(first)
        if right["tbt"] is not None and facts.needed is not None:
            self.taken.setdefault(("tbt", facts.tier), []).append(facts.needed)
        if line.get("reason"):
            self.reasons["\0".join((facts.tier, facts.outcome, line["reason"]))] += 1
        if facts.asked != facts.tier:
            self.downgrades["\0".join((facts.asked, facts.tier))] += 1
        said = line.get("promise", "")
        if said == "eased":
            self.eased_count[facts.tier] += 1
            if right["all"]:
                self.eased.append(
                    (facts.tier, facts.version, facts.prompt_tokens, first, facts.needed)
                )
        kind = (facts.tier, facts.version, facts.prompt_tokens, facts.due, facts.gap_due)
        mode = facts.gap_mode if facts.gaps else ""
        self.promises.setdefault((*kind, mode, facts.stream, facts.eased, said), where)

    def _windows(self, arrival: datetime) -> Iterator[Window]:
        yield ("span", self.since, self.until)
        for name, first in rolling(self.since, self.until).items():
            if arrival >= first:
                yield (name, first, self.until)
        for name, (first, last) in around(arrival).items():
            yield (name, max(first, self.since), min(last, self.until))

    def in_order(self) -> Iterator[tuple[Window, str, Mapping[str, int]]]:
        """Yield the windows in the order of a report."""
        none: Tally = defaultdict(int)
        steady = [("span", self.since, self.until)]
        steady += [(n, first, self.until) for n, first in rolling(self.since, self.until).items()]
        for window in steady:
            for tier in sorted(self.tiers):
                yield window, tier, self.tallies.get((window, tier), none)
        for kind in ("month", "week", "day"):
            some = [key for key in self.tallies if key[0][0] == kind]
            for window, tier in sorted(some):
                yield window, tier, self.tallies[window, tier]


def tally_of(facts: Facts, right: Mapping[str, bool | None]) -> dict[str, int]:
    """Return what one request adds to which sums."""
    added = {"offered": 1, facts.outcome: 1}
    if facts.asked != facts.tier:
        added["downgraded"] = 1
    for ratio in _RATIOS:
        if right[ratio] is not None:
            added[f"counted_{ratio}"] = 1
            added[f"bad_{ratio}"] = int(right[ratio] is False)
    if right["tbt"] is not None:
        added |= {"gaps": facts.gaps, "late_gaps": facts.late}
    return added


@dataclass(frozen=True, slots=True)
class Promised:
    """A tier's version, as a line of the report says it was."""

    changed_at: datetime
    target: str
    ttft_ms: int
    per_1k_ms: int
    gap_ms: int
    gap_mode: str

    def due(self, prompt_tokens: int) -> int:
        """Return when the first token of such a prompt is due, in ns after the arrival."""
        return self.ttft_ms * _MILLION + self.per_1k_ms * prompt_tokens * _MILLION // 1000


def promised_of(where: str, line: Mapping[str, str]) -> Promised:
    """Return the promise of a line; raises `Differs`."""
    first, more, gap = (whole(where, line, name) for name in PROMISES)
    target = line.get("target", "")
    try:
        known = 0 < Decimal(target) <= 1
    except ArithmeticError:
        known = False
    if not known:
        raise Differs(f"{where}: {target!r} is no objective")
    at = moment(where, line.get("changed_at", ""))
    return Promised(at, target, first, more, gap, line.get("tbt_mode", ""))


def check_promise(where: str, facts: Kind, version: Promised | None) -> None:
    """Raise `Differs` unless requests of this kind were judged by what their tier promised."""
    tier, number, prompt, due, gap_due, mode, stream, eased, said = facts
    if version is None:
        state = "unknown"
    else:
        owed, gap_owed = version.due(prompt), version.gap_ms * _MILLION
        if due < owed or gap_due < gap_owed:
            raise Differs(
                f"{where}: it is judged by {due} and {gap_due} ns, more strictly than the "
                f"{owed} and {gap_owed} ns that version {number} of tier {tier} promises"
            )
        must = version.gap_mode if stream else "stream"
        if mode not in ("", must):
            raise Differs(f"{where}: its tokens are timed by {mode!r}, the promise is {must!r}")
        state = "tier" if (due, gap_due) == (owed, gap_owed) else "eased"
        if state == "eased" and not eased:
            raise Differs(
                f"{where}: it is judged by {due} and {gap_due} ns, later than the {owed} and "
                f"{gap_owed} ns that version {number} of tier {tier} promises, and its client did "
                "not ask for that"
            )
    if said != state:
        raise Differs(f"{where}: promise is {said!r} in the file, by the facts it is {state!r}")


def budgets(tally: Mapping[str, int], ratio: str, target: str) -> Cells:
    """Return what a line of a budget must say; without a target only what was counted."""
    counted, bad = tally.get(f"counted_{ratio}", 0), tally.get(f"bad_{ratio}", 0)
    said = {"objective": ratio, "counted": str(counted), "bad": str(bad)}
    if counted:
        said["attainment"] = _cut(_EXACT.divide(Decimal(counted - bad), Decimal(counted)))
    if not target:
        return said
    slack = _EXACT.subtract(Decimal(1), Decimal(target))
    allowed = _EXACT.multiply(slack, Decimal(counted))
    left = _EXACT.subtract(allowed, Decimal(bad))
    said |= {"target": target, "allowed": _cut(allowed), "left": _cut(left)}
    if counted:
        said["kept"] = "true" if bad <= allowed else "false"
    if allowed:
        said["left_share"] = _cut(_EXACT.divide(left, allowed))
        said["burn"] = _cut(_EXACT.divide(Decimal(bad), allowed))
    return said


def _cut(number: Decimal) -> str:
    """Return a number with six digits, the rest cut off."""
    cut = number.quantize(Decimal("0.000001"), rounding=ROUND_DOWN, context=_EXACT)
    return format(abs(cut) if cut == 0 else cut, "f")


def percentiles(values: list[int]) -> Cells:
    """Return nearest-rank percentiles: the least value that so many percent do not exceed."""
    values.sort()
    count = len(values)
    said = {f"p{p}": str(values[(p * count + 99) // 100 - 1]) for p in (50, 90, 95, 99)}
    return {"counted": str(count), **said, "max": str(values[-1])}


def rolling(since: datetime, until: datetime) -> dict[str, datetime]:
    """Return where the burn windows that fit into a span begin; long ones do on an hour."""
    found = {}
    for name, minutes in _ROLLING_MINUTES.items():
        first = (until - timedelta(minutes=minutes)).replace(second=0, microsecond=0)
        if minutes > 3 * 1440:
            first = first.replace(minute=0)
        if first >= since:
            found[name] = first
    return found


def around(arrival: datetime) -> dict[str, tuple[datetime, datetime]]:
    """Return the day, the week from Monday and the month around a moment, in UTC."""
    day = datetime(arrival.year, arrival.month, arrival.day, tzinfo=UTC)
    monday = day - timedelta(days=day.isoweekday() - 1)
    month = datetime(arrival.year, arrival.month, 1, tzinfo=UTC)
    over, following = divmod(arrival.month, 12)
    return {
        "day": (day, day + timedelta(days=1)),
        "week": (monday, monday + timedelta(days=7)),
        "month": (month, datetime(arrival.year + over, following + 1, 1, tzinfo=UTC)),
    }


def whole(where: str, line: Mapping[str, str], name: str) -> int:
    """Return a number that is whole and not below 0; raises `Differs`."""
    text = line.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and str(int(text)) == text):
        raise Differs(f"{where}: {name} is no whole number: {text!r}")
    return int(text)


def moment(where: str, text: str) -> datetime:
    """Return a moment that is written as a report writes it; raises `Differs`."""
    try:
        at = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    except ValueError:
        at = None
    if at is None or stamp(at) != text:
        raise Differs(f"{where}: {text!r} is no moment")
    return at


def stamp(at: datetime) -> str:
    """Return a moment as a report writes it."""
    utc = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    return utc.isoformat(timespec="microseconds").replace("+00:00", "Z")
