"""Fixtures of the serving tests: a gate, and clients that are closed whatever happens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from engine_kit import Client, ClientMaker, Gate, ProcessMaker

from engine.serving.config import EngineConfig
from engine.serving.inprocess import InProcessEngine
from engine.serving.process import EngineProcess


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


@pytest_asyncio.fixture(params=[InProcessEngine, EngineProcess], ids=["thread", "process"])
async def make_client(request: pytest.FixtureRequest, gate: Gate) -> AsyncIterator[ClientMaker]:
    """Make clients of either kind; the gate is opened and they are closed at the end."""
    made: list[Client] = []

    def make(config: EngineConfig) -> Client:
        made.append(request.param(config))
        return made[-1]

    yield make
    gate.open()
    for client in made:
        await client.close()


@pytest_asyncio.fixture
async def make_process(gate: Gate) -> AsyncIterator[ProcessMaker]:
    """Make engine processes; the gate is opened and they are closed at the end."""
    made: list[EngineProcess] = []

    def make(config: EngineConfig, **arguments: object) -> EngineProcess:
        made.append(EngineProcess(config, **arguments))  # type: ignore[arg-type]
        return made[-1]

    yield make
    gate.open()
    for client in made:
        await client.close()
