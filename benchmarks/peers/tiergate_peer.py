"""Tiergate's own engine as a peer: scheduler, sampler and process boundary, all as in service."""

from __future__ import annotations

import asyncio
import itertools

import peer_io

from engine.core.clock import MonotonicClock
from engine.core.request import RequestOrder, SamplingParams
from engine.serving.client import TokenStream
from engine.serving.config import EngineConfig
from engine.serving.process import EngineProcess

CLOCK = MonotonicClock()


async def count_tokens(stream: TokenStream) -> int:
    count = 0
    while events := await stream.next_events():
        count += sum(event.token_id is not None for event in events)
    return count


def main() -> None:
    told = peer_io.settings()
    config = EngineConfig(
        model=told["model"],
        device="cpu",
        dtype=told["dtype"],
        runner=told["runner"],
        max_model_len=told["max_model_len"],
        max_batch_requests=told["max_running"],
        kv_cache_bytes=told["kv_cache_bytes"],
        prefix_caching=False,
        spin=told["spin"],
        nice=0,
    )
    began = CLOCK.now_ns()
    with asyncio.Runner() as runner:

        async def start() -> EngineProcess:
            engine = EngineProcess(config)
            await engine.start()
            return engine

        engine = runner.run(start())
        numbers = itertools.count()

        async def submit_all(prompts: list[list[int]], max_new: list[int]) -> list[int]:
            orders = [
                RequestOrder(
                    f"r{next(numbers)}",
                    tuple(prompt),
                    SamplingParams(max_tokens=new, temperature=0.0),
                    CLOCK.now_ns(),
                )
                for prompt, new in zip(prompts, max_new, strict=True)
            ]
            return list(await asyncio.gather(*(count_tokens(engine.submit(o)) for o in orders)))

        info = engine.info
        assert info is not None
        peer_io.serve(
            f"{info.runner} runner, policy {info.policy}",
            (CLOCK.now_ns() - began) / 1e9,
            lambda prompts, max_new: runner.run(submit_all(prompts, max_new)),
        )
        runner.run(engine.close())


if __name__ == "__main__":
    main()
