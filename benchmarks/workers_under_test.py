"""A gateway of several workers in processes of their own, for the benchmarks: as `tiergate serve`.

Keys are checked, limits counted on Redis, usage is written, metrics are kept. The engine is the
paced executor. Run by the benchmarks only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import uvloop

from benchmarks.gateway_under_test import START_LIMIT_S, engine_config
from gateway import logging as gateway_logging
from gateway.server import listen
from gateway.settings import Settings
from gateway.workers.parent import WorkersRun

HOST = "127.0.0.1"
STEP_MS = 4
MEAN_TOKENS = 15  # of answers that end by themselves


def settings_of(
    folder: Path, redis_url: str, workers: int, more: Mapping[str, Any] = MappingProxyType({})
) -> Settings:
    values: dict[str, Any] = {
        "data_dir": folder,
        "port": 0,
        "redis_url": redis_url,
        "workers": workers,
        "tenant_queue_factor": 1e6,
        "log_level": "warning",
    }
    return Settings(**(values | more))


async def serve(
    folder: Path, redis_url: str, workers: int, admin_token: str, more: Mapping[str, Any]
) -> None:
    """Be the parent of the workers, in a process of its own, until a stop signal."""
    config = engine_config("paced", STEP_MS)
    options = (*config.executor_options, ("mean_tokens", str(MEAN_TOKENS)))
    config = dataclasses.replace(config, executor_options=options)
    settings = settings_of(folder, redis_url, workers, more)
    with listen(HOST, 0) as bound:
        run = WorkersRun(settings, config, admin_token, bound, lambda _stage, _share: None)
        port = bound.getsockname()[1]

        def tell(_info: object) -> None:
            draft = folder / "draft"
            draft.write_text(str(port))
            draft.rename(folder / "port")

        await run.run(on_started=tell)


@contextlib.asynccontextmanager
async def workers_process(
    folder: Path,
    redis_url: str,
    workers: int,
    admin_token: str,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> AsyncIterator[int]:
    """Run workers for the length of a block, with `more` settings; yields their port."""
    flags = ["--data", str(folder), "--redis", redis_url, "--workers", str(workers)]
    flags += ["--settings", json.dumps(dict(more))]
    command = [
        sys.executable,
        "-m",
        "benchmarks.workers_under_test",
        *flags,
        "--token",
        admin_token,
    ]
    log = folder / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr)  # noqa: ASYNC220
    try:
        async with asyncio.timeout(START_LIMIT_S):
            while not (folder / "port").exists():
                if process.poll() is not None:
                    raise SystemExit(f"the workers did not start:\n{log.read_text()[-2000:]}")
                await asyncio.sleep(0.1)
        yield int((folder / "port").read_text())
    finally:
        process.terminate()
        process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--settings", type=json.loads, default={}, help="as JSON")
    args = parser.parse_args()
    gateway_logging.set_up("warning")
    uvloop.run(serve(args.data, args.redis, args.workers, args.token, args.settings))


if __name__ == "__main__":
    main()
