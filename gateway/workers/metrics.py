"""Makes one Prometheus text of several workers' texts: every series says whose it is.

What a worker counted gets the label `worker`, its number; a worker that was replaced counts from
zero again, as any process does. What each of them reads off the one engine is told once, without
the label: counters at their highest, because workers hear of a step at slightly different times and
a counter must not fall from scrape to scrape; everything else as the one who was asked sees it.
It parses the text form and knows no metric but the engine's by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gateway import metric_names as names

LABEL = "worker"

# Read off the engine's snapshots, or off the tiers: the same for all.
COMMON = (
    names.ENGINE_REQUESTS,
    names.ENGINE_PREEMPTIONS,
    names.KV_BLOCKS,
    names.HOST_KV_BLOCKS,
    names.PARKS,
    names.COPIED_TOKENS,
    names.LOST_COPIES,
    names.RECOMPUTED_TOKENS,
    names.COMPUTED_TOKENS,
    names.STEP_FACTOR,
    names.STEP_ERROR,
    names.SLO_THRESHOLD,
    names.VLLM_WAITING,
    names.VLLM_RUNNING,
    names.VLLM_KV_USE,
    names.VLLM_CACHE,
)


class Family:
    """One metric: its header lines, and its samples as (series, value) in order, by worker."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.header: list[str] = []
        self.samples: dict[int, list[tuple[str, str]]] = {}


def merge(texts: Mapping[int, str], asked: int) -> str:
    """Return the texts of the workers as one; `asked` is the number of the one who was scraped."""
    families: dict[str, Family] = {}
    for worker, text in sorted(texts.items(), key=lambda item: (item[0] != asked, item[0])):
        _read(text, worker, families)
    common = {name.replace(".", "_") for name in COMMON}
    lines: list[str] = []
    for family in families.values():
        lines += family.header
        lines += _common(family) if _base(family, common) else _labelled(family)
    return "\n".join(lines) + "\n"


def _base(family: Family, common: set[str]) -> bool:
    """True for a family of the engine, with or without the endings that exporters add."""
    name = family.name
    return any(name == base or name.removesuffix(e) == base for base in common for e in _ENDINGS)


_ENDINGS = ("_total", "_seconds", "_ratio", "_bytes")


def _read(text: str, worker: int, families: dict[str, Family]) -> None:
    family: Family | None = None
    for line in text.splitlines():
        if line.startswith("# "):
            name = line.split(" ", 3)[2]
            if family is None or family.name != name:
                family = families.setdefault(name, Family(name))
            if line not in family.header and worker not in family.samples:
                _add_header(family, line)
        elif line and family is not None:
            series, _, value = line.rpartition(" ")
            family.samples.setdefault(worker, []).append((series, value))


def _add_header(family: Family, line: str) -> None:
    kind = line.split(" ", 2)[1]
    if all(known.split(" ", 2)[1] != kind for known in family.header):
        family.header.append(line)


def _labelled(family: Family) -> Iterable[str]:
    for worker, samples in sorted(family.samples.items()):
        for series, value in samples:
            yield f"{with_label(series, worker)} {value}"


def with_label(series: str, worker: int) -> str:
    """Return a series with the label `worker` in front of its own."""
    name, brace, labels = series.partition("{")
    if not brace:
        return f'{name}{{{LABEL}="{worker}"}}'
    return f'{name}{{{LABEL}="{worker}",{labels}'


def _common(family: Family) -> Iterable[str]:
    is_counter = any(line.endswith(" counter") for line in family.header)
    chosen: dict[str, str] = {}
    for samples in family.samples.values():  # the asked worker's first
        for series, value in samples:
            known = chosen.get(series)
            if known is None or (is_counter and float(value) > float(known)):
                chosen[series] = value
    return [f"{series} {value}" for series, value in chosen.items()]
