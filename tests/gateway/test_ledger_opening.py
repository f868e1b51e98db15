"""Opening the ledger of the settings: what is made by itself, and what is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine.core.clock import utc_now
from gateway.ledger import existing_pepper, ledger
from gateway.settings import Settings
from migrations import runner
from tenants.errors import PepperUnusable, SchemaOutdated


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", database_url=f"sqlite:///{tmp_path}/data/l.db")


async def test_a_first_run_makes_its_database_and_says_so(settings: Settings) -> None:
    said: list[str] = []
    async with ledger(settings, said.append) as opened:
        assert [t.name for t in await opened.repository.list_tiers()] == ["premium", "free"]
    assert said == [f"created database {settings.data_dir}/l.db at revision 0004"]
    async with ledger(settings, said.append):
        assert len(said) == 1


async def test_a_demo_brings_its_own_old_database_along(settings: Settings) -> None:
    """`make serve` after an update; any other start leaves that to who knows what it means."""
    settings.data_dir.mkdir()
    await runner.upgrade(settings.database_url, "0002")
    with pytest.raises(SchemaOutdated, match="run `tiergate migrate`"):
        async with ledger(settings, lambda _line: None):
            pass
    said: list[str] = []
    async with ledger(settings.model_copy(update={"demo": True}), said.append):
        pass
    assert said == [
        f"upgraded database {settings.data_dir}/l.db from revision 0002 to {runner.head_revision()}"
    ]


async def test_several_that_start_together_share_one(settings: Settings) -> None:
    async def open_one() -> str:
        async with ledger(settings, lambda _line: None) as opened:
            return opened.pepper.id

    assert len(set(await asyncio.gather(*(open_one() for _ in range(4))))) == 1


async def test_a_schema_of_another_version_is_not_touched(settings: Settings) -> None:
    async with ledger(settings, lambda _line: None) as opened:
        from sqlalchemy import text

        async with opened.database.write() as session:
            await session.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    with pytest.raises(SchemaOutdated, match="run `tiergate migrate`"):
        async with ledger(settings, lambda _line: None):
            pass
    assert await runner.current_revision(settings.database_url) == "0000"


async def test_a_lost_pepper_is_not_replaced_in_silence(settings: Settings) -> None:
    async with ledger(settings, lambda _line: None) as opened:
        await opened.repository.create_tenant("acme", "free", utc_now())
        await opened.repository.create_key("acme", utc_now())
    settings.pepper_file.unlink()
    with pytest.raises(PepperUnusable, match="restore the pepper file"):
        async with ledger(settings, lambda _line: None):
            pass


async def test_the_pepper_may_come_from_a_setting(settings: Settings, tmp_path: Path) -> None:
    given = Settings(**{**settings.model_dump(), "pepper": "x" * 32})
    async with ledger(given, lambda _line: None) as opened:
        assert opened.pepper.secret == b"x" * 32
    assert not settings.pepper_file.exists()


def test_looking_at_the_pepper_makes_no_file(settings: Settings) -> None:
    existing_pepper(settings)
    assert not settings.data_dir.exists()
