"""Is a forecast at the door right, and what are refusals by forecast worth? In virtual time.

Shadow mode lets everybody in, so what those to be refused would have seen is known exactly: how far
forecasts are off, how often intervals hold, whether who would be refused would have missed. Soft
mode refuses: what that does to attainment, what the ledger's ghosts say of it, and, in a second run
in which everyone refused comes back at the hinted time, what the hints are worth. Rates are shares
of the hybrid's capacity for the trace; the Azure traces come as they were recorded, bursts and all,
in faster time. Every run is kept in `build/scheduling/learning_admission.jsonl`.
Run: python -m benchmarks.learning.admission --seeds 2
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.scheduling.points import DATA, RESULTS, WORK, data_file, engine_digest, machine
from engine.core.admission import Action, AdmissionRules, Mode, Verdict
from engine.core.clock import NS_PER_MS
from engine.core.forecast import Newcomer
from engine.sim.door import SimulatedDoor
from engine.sim.grid import Grid, default_jobs
from engine.sim.point import PointSpec, Scene, run_point
from engine.sim.records import Journal, RequestRecord
from engine.sim.simulator import Simulator

CAPACITY = 2.235  # requests a second: the hybrid's on this trace and device
SHARES = (0.8, 1.0, 1.1, 1.2, 1.3)
OTHERS = (("sarathi", (0.8, 1.0)), ("slai", (0.8, 1.0)))
BURSTY = (0.8, 1.0)
TRACE = "traces/sharegpt8k_llama2_lengths.csv.gz"
# Recorded ones, with the rate at which the hybrid has some 95 % of free requests on time.
RECORDED = {"traces/azure2023_conv.csv.gz": 5.8, "traces/azure2023_code.csv.gz": 5.2}
RECORDED_SHARES = (0.8, 1.0, 1.3)
SOFT_SHARES = (1.1, 1.3)

Heard = list[tuple[Newcomer, Verdict, int]]


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One run: `kind` is shadow, soft or returns (soft, and who was refused comes back once)."""

    kind: str
    policy: str
    share: float
    seed: int
    arrivals: str
    trace: str
    requests: int

    @property
    def name(self) -> str:
        """What a row of the result is called: everything but the seed."""
        trace = "" if self.trace.endswith(TRACE) else f" {Path(self.trace).name.split('.')[0]}"
        return f"{self.kind} {self.policy} {self.arrivals} {self.share:g}{trace}"

    @property
    def capacity(self) -> float:
        """The hybrid's requests a second of this trace."""
        return next((r for name, r in RECORDED.items() if self.trace.endswith(name)), CAPACITY)

    def spec(self) -> PointSpec:
        """Return the point to simulate."""
        return PointSpec(
            trace=self.trace,
            policy=self.policy,
            rate=self.share * self.capacity,
            requests=self.requests,
            seed=self.seed,
            arrivals=self.arrivals,
            admission="shadow" if self.kind == "shadow" else "soft",
        )


def run_case(case: Case) -> dict[str, Any]:
    """Run one case and return its figures."""
    heard: Heard = []
    result = run_point(
        case.spec(), listener=lambda who, said, at_ns: heard.append((who, said, at_ns))
    )
    records = {record.id: record for record in result.records}
    tiers = result.point["tiers"]
    row: dict[str, Any] = {
        "attainment": {name: tier["attainment"] for name, tier in tiers.items()},
        "goodput": result.point["goodput"],
        "ledger": result.point["admission"],
        "offered": len(records),
        "errors": forecast_errors(heard, records),
    }
    would = [(who, said) for who, said, _ in heard if said.would is Action.REFUSE]
    known = [records[who.id] for who, said in would if said.action is Action.ADMIT]
    row["would_refuse"], row["known"] = len(would), len(known)
    row["known_missed"] = sum(not r.met_ttft for r in known)
    row["known_missed_any"] = sum(not r.met for r in known)
    row["missed"] = sum(not r.met_ttft for r in result.records if r.tier == "free")
    row["hints_s"] = dict(Counter(str((said.retry_after_ms or 0) // 1000) for _, said in would))
    if case.kind == "returns":
        row["returns"] = run_returns(case, heard)
    return row


def forecast_errors(heard: Heard, records: Mapping[str, RequestRecord]) -> dict[str, Any]:
    """Return relative errors and coverage by tier, of all with a forecast and a first token."""
    rows: dict[str, list[tuple[float, bool, bool]]] = {}
    for who, said, at_ns in heard:
        found, first_ns = said.forecast, records[who.id].first_token_ns
        if found is None or first_ns is None:
            continue
        actual = first_ns - at_ns
        row = (
            abs(found.ttft_ns - actual) / actual,
            found.low_ns <= actual <= found.high_ns,
            actual > LONG_NS,
        )
        for name in (who.tier, "all"):
            rows.setdefault(name, []).append(row)
    return {
        name: {
            "count": len(some),
            "median": _quantile([error for error, _, _ in some], 0.5),
            "p90": _quantile([error for error, _, _ in some], 0.9),
            "median_long": _quantile([error for error, _, is_long in some if is_long], 0.5),
            "covered": sum(is_in for _, is_in, _ in some),
        }
        for name, some in sorted(rows.items())
    }


LONG_NS = 200 * NS_PER_MS  # longer than any step: waiting, not the grid of steps


def run_returns(case: Case, heard: Heard) -> dict[str, int]:
    """Run again with everyone who was refused coming back once, at the hinted time."""
    scene = Scene(case.spec())
    by_id = {request.id: request for request in scene.workload.requests}
    back = []
    for who, said, at_ns in heard:
        if said.action is Action.REFUSE:
            assert said.retry_after_ms is not None
            due_ns = at_ns + said.retry_after_ms * NS_PER_MS
            back.append(dataclasses.replace(by_id[who.id], id=f"{who.id}+", arrival_ns=due_ns))
    scene.lengths.update({request.id: request.num_output_tokens for request in back})
    requests = sorted([*by_id.values(), *back], key=lambda request: request.arrival_ns)
    predictor = scene.predictor()
    again: Heard = []
    door = SimulatedDoor(
        AdmissionRules(Mode.SOFT),
        predictor,
        lambda who, said, at_ns: again.append((who, said, at_ns)),
    )
    journal = Journal(tier.name for tier in case.spec().tiers)
    core = scene.core(None, predictor)
    Simulator(core, scene.executor(), scene.orders(), journal, (), door).run(requests)
    records = {r.id: r for r in journal.records(requests)}
    mine = [said for who, said, _ in again if who.id.endswith("+")]
    return {
        "returned": len(back),
        "admitted": sum(said.action is Action.ADMIT for said in mine),
        "on_time": sum(records[r.id].met_ttft for r in back),
        "met": sum(records[r.id].met for r in back),
    }


def _quantile(values: list[float], share: float) -> float | None:
    values.sort()
    return round(values[min(len(values) - 1, int(share * len(values)))], 4) if values else None


def cases(asked: argparse.Namespace) -> list[Case]:
    """Return what to run: what is claimed first."""
    trace = str(data_file(asked.data, TRACE))
    claimed = [("shadow", "hybrid", share, "poisson") for share in SHARES]
    others = [("returns", "hybrid", share, "poisson") for share in SOFT_SHARES]
    others += [("returns", name, some[-1], "poisson") for name, some in OTHERS]
    others += [("shadow", "hybrid", share, "gamma:3") for share in BURSTY]
    others += [("shadow", name, share, "poisson") for name, some in OTHERS for share in some]
    every = [(seed, one) for one in claimed for seed in range(1, asked.seeds + 1)]
    every += [(seed, one) for one in others for seed in range(1, asked.other_seeds + 1)]
    made = [
        Case(kind, policy, share, seed, arrivals, trace, asked.requests)
        for seed, (kind, policy, share, arrivals) in every
    ]
    return made + [
        Case("shadow", "hybrid", share, seed, "trace", str(asked.data / name), asked.requests)
        for name in RECORDED
        for share in RECORDED_SHARES
        for seed in range(1, asked.other_seeds + 1)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not known yet, and write the result."""
    asked = _parser().parse_args(argv)
    asked.work.mkdir(parents=True, exist_ok=True)
    path, engine = asked.work / "learning_admission.jsonl", engine_digest()
    known: dict[str, dict[str, Any]] = {}
    for text in path.read_text().splitlines() if path.exists() and not asked.fresh else []:
        row = json.loads(text)
        known[row["key"]] = row
    todo = [case for case in cases(asked) if _key(case) not in known and not asked.known]
    began = time.monotonic()
    with path.open("a") as file:

        def keep(index: int, row: dict[str, Any]) -> None:
            case = todo[index]
            row = {"key": _key(case), "name": case.name, "engine": engine, **row}
            known[row["key"]] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
            told = row["errors"]["all"]
            print(
                f"{time.monotonic() - began:5.0f} s  {case.name} seed {case.seed}: "
                f"error {told['median']}, covered {told['covered'] / told['count']:.3f}, "
                f"refuse {row['would_refuse']}, of {row['known']} missed {row['known_missed']}",
                file=sys.stderr,
                flush=True,
            )

        if todo:
            with Grid(run_case, min(asked.jobs, len(todo))) as grid:
                grid.run(todo, keep)
    rows = [known[_key(case)] for case in cases(asked) if _key(case) in known]
    result = {"machine": machine(), "run": _run(asked, rows), "rows": add_up(rows)}
    result["claims"] = claims(rows)
    print(json.dumps(result["claims"], indent=1))
    if not asked.dry_run:
        (RESULTS / "learning_admission.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def add_up(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per case, over its seeds: counts added, shares and medians averaged."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row["name"], []).append(row)
    return [_one_row(name, some) for name, some in by_name.items()]


def _one_row(name: str, some: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    offered = sum(row["offered"] for row in some)
    known, missed = (sum(row[key] for row in some) for key in ("known", "known_missed"))
    made: dict[str, Any] = {
        "case": name,
        "seeds": len(some),
        "attainment": {
            tier: round(sum(row["attainment"][tier] for row in some) / len(some), 4)
            for tier in some[0]["attainment"]
        },
        "goodput": round(sum(row["goodput"] for row in some) / len(some), 4),
        "errors": {tier: _errors(some, tier) for tier in some[0]["errors"]},
        "would_refuse": sum(row["would_refuse"] for row in some),
        "of_those_let_in": known,
        "would_have_missed": round(missed / known, 4) if known else None,
        "false_rejects_of_offered": round((known - missed) / offered, 5),
        "free_that_missed": sum(row["missed"] for row in some),
        "hints_s": dict(sum((Counter(row["hints_s"]) for row in some), Counter())),
        "ledger": _sums([row["ledger"] for row in some]),
    }
    if "returns" in some[0]:
        made["returns"] = _sums([row["returns"] for row in some])
    return made


def _errors(some: Sequence[Mapping[str, Any]], tier: str) -> dict[str, float | None]:
    told = [row["errors"][tier] for row in some]
    count = sum(t["count"] for t in told)
    made: dict[str, float | None] = {"covered": round(sum(t["covered"] for t in told) / count, 4)}
    for key in ("median", "p90", "median_long"):
        values = [t[key] for t in told if t[key] is not None]
        made[key] = round(math.fsum(values) / len(values), 4) if values else None
    return made


def _sums(some: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in some:
        total.update({key: value for key, value in one.items() if isinstance(value, int)})
    return dict(total)


def claims(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures that are claimed, each from the hybrid's shadow runs at all loads."""
    mine = [row for row in rows if row["name"].startswith("shadow hybrid poisson")]
    offered = sum(row["offered"] for row in mine)
    known, missed = (sum(row[key] for row in mine) for key in ("known", "known_missed"))
    ledger = _sums([row["ledger"] for row in rows if row["name"].startswith("shadow")])
    return {
        "worst_median_error_of_a_run": max(row["errors"]["all"]["median"] for row in mine),
        "median_error": _errors(mine, "all")["median"],
        "covered": _errors(mine, "all")["covered"],
        "refused_would_have_missed": round(missed / known, 4) if known else None,
        "would_refuse": known,
        "false_rejects_of_offered": round((known - missed) / offered, 5),
        "ledger_checked": ledger.get("checked"),  # let in, and missed
        "ledger_agreed": ledger.get("agreed"),
    }


def _run(asked: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "trace": TRACE,
        "device": PointSpec.__dataclass_fields__["profile"].default,
        "predictor": PointSpec.__dataclass_fields__["predictor"].default,
        "capacity_requests_per_s": {TRACE: CAPACITY} | RECORDED,
        "requests": asked.requests,
        "seeds": asked.seeds,
        "other_seeds": asked.other_seeds,
        "rules": dataclasses.asdict(AdmissionRules()),
        "engines": sorted({row["engine"] for row in rows}),
        "error": "relative to the time to first token itself; median_long: of those above "
        f"{LONG_NS // NS_PER_MS} ms, longer than a step",
    }


def _key(case: Case) -> str:
    return f"{case.name} {case.seed} {case.requests} {Path(case.trace).name}"


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--data", type=Path, default=DATA, help="folder with traces/ and prompts/")
    made.add_argument("--requests", type=int, default=1500, help="a run")
    made.add_argument("--seeds", type=int, default=2, help="5 means 1 to 5")
    made.add_argument("--other-seeds", type=int, default=1, help="of all but the claims")
    made.add_argument("--jobs", type=int, default=default_jobs())
    made.add_argument("--work", type=Path, default=WORK, help="where runs are kept")
    made.add_argument("--fresh", action="store_true", help="run everything again")
    made.add_argument("--known", action="store_true", help="run nothing, write what is known")
    made.add_argument("--dry-run", action="store_true", help="print, write no result")
    return made


if __name__ == "__main__":
    sys.exit(main())
