"""`tiergate tier ...`: lists, changes and adds tiers; what fields mean is in docs/http.md."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.options import AsJson, DatabaseUrl, DataDir, flag, with_ledger
from gateway.cli.output import CommandError, moment, note, print_json, print_table

if TYPE_CHECKING:
    from gateway.ledger import Ledger
    from tenants.repository import TierPlan
    from tenants.values import TierRecord, TierVersion

Name = Annotated[str, typer.Argument(metavar="NAME", help="The tier's name.")]
Pairs = Annotated[
    list[str],
    typer.Argument(
        metavar="FIELD=VALUE...",
        help="rank, ttft_ms, ttft_ms_per_1k_prompt_tokens, tbt_ms, tbt_mode (gap or stream), "
        "pace_ms, objective, weight, max_queue, max_output_tokens, "
        "on_overload (queue, reject or downgrade), on_limiter_away (local or refuse), "
        "price_prompt_nano, price_cached_nano, price_output_nano (billionths for a token).",
    ),
]


def build_app() -> typer.Typer:
    """Return the sub-command `tier`."""
    app = typer.Typer(help="What each class of service promises.", rich_markup_mode=None)
    app.command("list")(list_all)
    app.command("set")(change)
    app.command("add")(add)
    app.command("versions")(versions)
    app.command("apply")(apply_file)
    return app


def list_all(
    database_url: DatabaseUrl = None, data_dir: DataDir = None, as_json: AsJson = False
) -> None:
    """List the tiers, the one served first in front."""

    async def work(ledger: Ledger) -> list[TierRecord]:
        return await ledger.repository.list_tiers()

    records = with_ledger(database_url, data_dir, work)
    if as_json:
        print_json(records)
        return
    head = ["name", "rank", "ttft_ms", "per_1k", "tbt_ms", "tbt_mode", "pace_ms", "objective"]
    head += ["on_overload", "prices"]
    rows = [
        [
            tier.name,
            *map(str, (tier.rank, tier.ttft_ms, tier.ttft_ms_per_1k_prompt_tokens, tier.tbt_ms)),
            tier.tbt_mode,
            str(tier.pace_ms),
            f"{tier.objective:g}",
            tier.on_overload.value,
            prices_of(tier),
        ]
        for tier in records
    ]
    print_table(head, rows)


def change(
    name: Name,
    values: Pairs,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Change what a tier promises; a running gateway follows within seconds.

    \b
    Examples:
      tiergate tier set free pace_ms=50
      tiergate tier set premium tbt_ms=80 tbt_mode=stream
      tiergate tier set free on_overload=reject
      tiergate tier set premium price_prompt_nano=250 price_output_nano=1000
    """
    from engine.core.clock import utc_now
    from gateway.cli.actor import operator

    fields = parse_pairs(values)

    async def work(ledger: Ledger) -> TierRecord:
        return await ledger.repository.change_tier(name, fields, now=utc_now(), by=operator())

    record = with_ledger(database_url, data_dir, work)
    if as_json:
        print_json(record)
        return
    print(f"changed tier {record.name}: {', '.join(values)}")


def add(
    name: Name,
    values: Pairs,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Add a tier; needs at least rank, ttft_ms and tbt_ms.

    \b
    Example:
      tiergate tier add batch rank=2 ttft_ms=60000 tbt_ms=2000 tbt_mode=stream
    """
    from engine.core.clock import utc_now
    from gateway.cli.actor import operator

    fields = parse_pairs(values)

    async def work(ledger: Ledger) -> TierRecord:
        return await ledger.repository.create_tier(name, fields, now=utc_now(), by=operator())

    record = with_ledger(database_url, data_dir, work)
    if as_json:
        print_json(record)
        return
    print(f"added tier {record.name} of rank {record.rank}")
    note(f"next: tiergate tenant add SOMEONE --tier {record.name}")


def apply_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Tiers as TOML, or as .json.")],
    check: Annotated[
        bool,
        flag("check", "Only say what would change.", variable="TIERGATE_TIER_CHECK"),
    ] = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Set tiers from a file: all of them, or none where one cannot be; nothing is deleted.

    \b
    Running gateways follow within seconds. A file:
      [tiers.premium]
      ttft_ms = 400
      price_output_nano = 1200
    Examples:
      tiergate tier apply tiers.toml --check
      tiergate tier apply tiers.toml
    """
    from engine.core.clock import utc_now
    from gateway.cli.actor import operator
    from gateway.tier_file import MOST_BYTES, read_tiers

    try:
        with file.open("rb") as opened:
            raw = opened.read(MOST_BYTES + 1)
        wanted = read_tiers(raw.decode(), file.name)
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{file} cannot be read: {error}") from None
    if len(raw) > MOST_BYTES:
        raise CommandError(f"{file} is longer than {MOST_BYTES} bytes")

    async def work(ledger: Ledger) -> list[TierPlan]:
        repository = ledger.repository
        if check:
            return await repository.plan_tiers(wanted)
        return await repository.apply_tiers(wanted, now=utc_now(), by=operator())

    plans = with_ledger(database_url, data_dir, work)
    if as_json:
        print_json([{"tier": p.after.name, "changes": changes_of(p)} for p in plans])
        return
    for plan in plans:
        print(f"{plan.after.name}: {_said(plan)}")
    if check:
        note("nothing was changed")


def changes_of(plan: TierPlan) -> dict[str, list[Any]]:
    """Return the fields that change, each as [before, after]; before is null for a new tier."""
    before = None if plan.before is None else dataclasses.asdict(plan.before)
    return {
        field: [None if before is None else before[field], value]
        for field, value in dataclasses.asdict(plan.after).items()
        if field not in ("name", "version") and (before is None or before[field] != value)
    }


def _said(plan: TierPlan) -> str:
    if plan.before is None:
        return "new"
    changes = changes_of(plan)
    return ", ".join(f"{field} {old} -> {new}" for field, (old, new) in changes.items()) or "same"


def versions(
    name: Name,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List what a tier has promised and cost over time; bills are made by these versions."""

    async def work(ledger: Ledger) -> list[TierVersion]:
        return await ledger.repository.list_tier_versions(name)

    records = with_ledger(database_url, data_dir, work)
    if as_json:
        print_json(records)
        return
    rows = [
        [
            str(v.tier.version),
            moment(v.changed_at),
            *map(str, (v.tier.ttft_ms, v.tier.tbt_ms, v.tier.pace_ms)),
            prices_of(v.tier),
        ]
        for v in records
    ]
    print_table(["version", "since", "ttft_ms", "tbt_ms", "pace_ms", "prices"], rows)


def prices_of(tier: TierRecord) -> str:
    """Return the prices for a token of prompt, cached prompt and output, in billionths."""
    return f"{tier.price_prompt_nano}/{tier.price_cached_nano}/{tier.price_output_nano}"


def parse_pairs(pairs: list[str]) -> dict[str, str]:
    """Return `FIELD=VALUE` arguments as a mapping; raises CommandError."""
    fields: dict[str, str] = {}
    for pair in pairs:
        field, equals, value = pair.partition("=")
        if not equals or not field or not value:
            raise CommandError(f"{pair!r} is not FIELD=VALUE, such as pace_ms=50")
        if field in fields:
            raise CommandError(f"{field} is given twice")
        fields[field] = value
    return fields
