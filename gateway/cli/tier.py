"""`tiergate tier ...`: lists, changes and adds tiers; what fields mean is in docs/http.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.options import AsJson, DatabaseUrl, DataDir, with_ledger
from gateway.cli.output import CommandError, moment, note, print_json, print_table

if TYPE_CHECKING:
    from gateway.ledger import Ledger
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
