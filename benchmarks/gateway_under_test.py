"""A gateway in a process of its own for the benchmarks: everything on, as `tiergate serve` runs it.

Keys are checked, usage is written, metrics are kept, every request is logged. The engine is the
paced executor or a real model. Run by the benchmarks; by hand:
python -m benchmarks.gateway_under_test --data DIR --ready FILE --step-ms 5
A tier is changed with --tier free pace_ms=50, the engine with --engine and fields of EngineConfig
as JSON, the gateway with --settings and settings as JSON; --ends writes the engine's last word on
every request, --forecasts every forecast of a first token with what came, one JSON object a line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import uvloop

from engine.core.forecast import Forecast
from engine.model.builtin import builtin_path
from engine.serving.config import EngineConfig
from engine.serving.process import EngineProcess
from gateway import logging as gateway_logging
from gateway.app import create_app
from gateway.cli.tier import parse_pairs
from gateway.demo import ensure_demo
from gateway.door_run import settle_memory
from gateway.forecasts import ScoreBoard
from gateway.ledger import ledger
from gateway.process import prepare_process
from gateway.server import Server, listen, server_config
from gateway.settings import Settings

HERE = Path(__file__).parent
START_LIMIT_S = 300.0
MAX_QUEUE = 512


def engine_config(model: str, step_ms: float | None, threads: int | None = None) -> EngineConfig:
    """The engine of one measurement: paced where `step_ms` is given, else a real model."""
    if step_ms is None:
        return EngineConfig(model=model, policy="fcfs", threads=threads)
    options = (("step_s", str(step_ms / 1000)), ("model_path", str(builtin_path())))
    return EngineConfig(
        model="paced",
        executor="paced_executor:make",
        executor_options=options,
        import_paths=(str(HERE),),
        policy="fcfs",
    )


@dataclass(frozen=True, slots=True)
class Target:
    """Where a gateway is, and with what keys."""

    host: str
    port: int
    keys: dict[str, str]
    model: str
    pid: int
    engine_pid: int


@contextlib.contextmanager
def gateway_process(folder: Path, *flags: str) -> Iterator[Target]:
    """Run a gateway for the length of a block; its log goes to a file in `folder`."""
    ready, log = folder / "ready.json", folder / "gateway.log"
    command = [sys.executable, "-m", "benchmarks.gateway_under_test", "--data", str(folder)]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, "--ready", str(ready), *flags], cwd=HERE.parent, stderr=stderr
        )
    try:
        end = time.monotonic() + START_LIMIT_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the gateway did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield Target(**json.loads(ready.read_text()))
    finally:
        process.terminate()
        process.wait(60)


class WrittenScores(ScoreBoard):
    """Keeps scores as ever, and writes each forecast down with the time that it took in truth."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._lines = path.open("a", buffering=1)

    def add(self, tier: str, forecast: Forecast, actual_ns: int) -> None:
        """See ScoreBoard."""
        super().add(tier, forecast, actual_ns)
        row = {"tier": tier, "actual_ns": actual_ns, **dataclasses.asdict(forecast)}
        print(json.dumps(row), file=self._lines)


async def serve(
    data: Path,
    ready: Path,
    config: EngineConfig,
    tier: tuple[str, ...] = (),
    ends: Path | None = None,
    more: Mapping[str, Any] = MappingProxyType({}),
    forecasts: Path | None = None,
) -> None:
    settings = Settings(**({"data_dir": data, "port": 0, "max_queue": MAX_QUEUE} | more))
    stop = asyncio.Event()
    with listen("127.0.0.1", 0) as bound:
        async with ledger(settings, lambda _line: None) as opened:
            keys = await ensure_demo(opened, data)
            if tier:
                await opened.repository.change_tier(tier[0], parse_pairs(list(tier[1:])))
            tiers = await opened.repository.list_tiers()
            app = create_app(settings, EngineProcess(config), opened, tiers)
            server = Server(server_config(app), lambda _count: stop.set())
            server.loop = asyncio.get_running_loop()
            serving = asyncio.create_task(server.serve(sockets=[bound]))
            host = app.state.services.host
            if ends is not None:
                lines = ends.open("a", buffering=1)
                host.engine.add_finish_listener(
                    lambda stats: print(json.dumps(dataclasses.asdict(stats)), file=lines)
                )
            if forecasts is not None:
                app.state.services.gate.forecasts.scores = WrittenScores(forecasts)
            await host.started.wait()
            settle_memory()
            info = host.engine.info
            target = Target(*bound.getsockname()[:2], keys, info.model, os.getpid(), info.pid)
            draft = ready.with_suffix(".draft")
            draft.write_text(json.dumps({n: getattr(target, n) for n in Target.__slots__}))
            draft.rename(ready)
            await stop.wait()
            server.should_exit = True
            await serving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--ready", type=Path, required=True)
    parser.add_argument("--step-ms", type=float, help="pace of the executor; none: a real model")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--engine", type=json.loads, default={}, help="fields of EngineConfig")
    parser.add_argument("--tier", nargs="+", default=(), metavar="NAME FIELD=VALUE")
    parser.add_argument("--settings", type=json.loads, default={}, help="settings of the gateway")
    parser.add_argument("--mean-tokens", type=float, help="answers of the paced executor end")
    parser.add_argument("--ends", type=Path)
    parser.add_argument("--forecasts", type=Path)
    args = parser.parse_args()
    gateway_logging.set_up("info")
    prepare_process()
    config = engine_config(args.model, args.step_ms, args.threads)
    args.engine["policy_options"] = tuple(map(tuple, args.engine.get("policy_options", ())))
    if args.mean_tokens:
        options = (*config.executor_options, ("mean_tokens", str(args.mean_tokens)))
        config = dataclasses.replace(config, executor_options=options)
    config = dataclasses.replace(config, **args.engine)
    tier = tuple(args.tier)
    more = args.settings
    uvloop.run(serve(args.data, args.ready, config, tier, args.ends, more, args.forecasts))


if __name__ == "__main__":
    main()
