"""A gateway with its admin API on each database, and people of every role."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import pytest_asyncio
from admin_kit import Office, open_office


def _ledger_fixtures() -> ModuleType:
    """Return the fixtures of the ledger's own tests: the same Postgres, made the same way."""
    path = Path(__file__).parents[2] / "tenants" / "conftest.py"
    spec = importlib.util.spec_from_file_location("ledger_fixtures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ledger_fixtures = _ledger_fixtures()
postgres = ledger_fixtures.postgres
migrated_sqlite = ledger_fixtures.migrated_sqlite


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def ledger_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A database with the schema for the tests of one module."""
    if request.param == "sqlite":
        file = tmp_path_factory.mktemp("ledger") / "ledger.db"
        shutil.copy(request.getfixturevalue("migrated_sqlite"), file)
        yield f"sqlite:///{file}"
        return
    cluster: Any = request.getfixturevalue("postgres")
    names: list[str] = []

    async def create() -> None:
        names.append(await cluster.create(ledger_fixtures.TEMPLATE))

    ledger_fixtures.run_apart(create())
    yield cluster.url(names[0])
    ledger_fixtures.run_apart(cluster.drop(names[0]))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def office(
    ledger_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Office]:
    """One gateway for the tests of one module, on each database."""
    async with open_office(tmp_path_factory.mktemp("door"), ledger_url) as opened:
        yield opened


@pytest_asyncio.fixture
async def small_office(tmp_path: Path) -> AsyncIterator[Office]:
    """A gateway for one test, on SQLite."""
    async with open_office(tmp_path) as opened:
        yield opened
