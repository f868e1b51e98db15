"""What a streamed token costs the client of `tiergate replay`, and how late it reads it.

A server in a process of its own writes one token a tick to every stream and computes nothing, so
what is measured is the client. Beside it the same streams read with httpx, for the difference.

python -m benchmarks.replay_cost [--streams 50,200,500] [--tick-ms 20] [--seconds 10] [--out FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import subprocess
import sys
from bisect import bisect_right
from pathlib import Path
from typing import Any

import httpx
import orjson
import uvloop

from engine.core.clock import NS_PER_MS, NS_PER_S, MonotonicClock, cpu_time_ns
from engine.core.request import Slo
from engine.sim.workload import SimRequest, SimTier
from gateway.replay.dialect import Dialect, Form, Pin
from gateway.replay.evidence import spread
from gateway.replay.exchange import Connections, parse_address, request_bytes
from gateway.replay.player import Player, Seen
from gateway.replay.prompts import PromptMaker

CLOCK = MonotonicClock()
PROMPT_TOKENS = 200
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TIER = SimTier("all", Slo(), 1.0, 1.0)


def sse(value: dict[str, Any]) -> bytes:
    """Return an event as a chunk, about as long as a gateway's."""
    fields = {"id": "cmpl-" + "0" * 32, "object": "text_completion", "created": 1_700_000_000,
              "model": "paced", "service_tier": "priority", "system_fingerprint": "fp_000000000000",
              **value}  # fmt: skip
    event = b"data: " + orjson.dumps(fields) + b"\n\n"
    return f"{len(event):x}\r\n".encode() + event + b"\r\n"


TOKEN = sse({"choices": [{"index": 0, "text": " word", "logprobs": None, "finish_reason": None}]})
END = sse({"choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]})
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def usage_event(tokens: int) -> bytes:
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens}
    return sse({"choices": [], "usage": usage})


async def serve(tick_s: float) -> None:
    """Be the server: `{port}` on stdout, then the ticks' times when stdin ends."""
    streams: dict[asyncio.StreamWriter, list[int]] = {}  # writer -> [tokens left, tokens in all]
    ticks: list[int] = []

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                at = head.lower().find(b"content-length: ")
                body = await reader.readexactly(int(head[at + 16 :].split(b"\r\n")[0]))
                count = int(orjson.loads(body)["max_tokens"])
                writer.write(HEAD)
                streams[writer] = [count, count]
        except (asyncio.IncompleteReadError, ConnectionError):
            streams.pop(writer, None)
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    closed = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    due_ns = CLOCK.now_ns()
    while not closed.done():
        due_ns += int(tick_s * NS_PER_S)
        await asyncio.sleep(max(0.0, (due_ns - CLOCK.now_ns()) / NS_PER_S))
        ticks.append(CLOCK.now_ns())
        for writer, left in list(streams.items()):
            left[0] -= 1
            if left[0]:
                writer.write(TOKEN)
            else:
                writer.write(TOKEN + END + usage_event(left[1]) + DONE)
                del streams[writer]
    server.close()
    print(json.dumps(ticks), flush=True)


async def play_lean(url: str, streams: int, tokens: int) -> dict[str, Any]:
    """Read all streams with the client of the replay."""
    requests = [
        SimRequest(f"r{n:07d}", n * NS_PER_MS, PROMPT_TOKENS, tokens, TIER, "t")
        for n in range(streams)
    ]
    dialect, prompts = Dialect("paced", Form.TOKENS, Pin.NONE), PromptMaker(1)
    address = parse_address(url)
    connections = Connections(address, CLOCK)
    seen: list[Seen] = []

    def write(request: SimRequest, number: int) -> bytes:
        body = dialect.body(request, number, prompts)
        return request_bytes(address, "POST", dialect.path, "key", body)

    player = Player(
        requests, connections, write, CLOCK, bound=streams, timeout_s=600, on_seen=seen.append
    )
    cpu_ns, wall_ns = cpu_time_ns(), CLOCK.now_ns()
    await player.play(asyncio.Event())
    cpu_ns, wall_ns = cpu_time_ns() - cpu_ns, CLOCK.now_ns() - wall_ns
    await connections.close()
    times = [at_ns for one in seen for at_ns in one.token_times]
    assert len(times) == streams * tokens, "a token was lost"
    return {
        "cpu_ns": cpu_ns,
        "wall_ns": wall_ns,
        "times": times,
        "loop_delay_ms": spread(player.beats),
    }


async def play_httpx(url: str, streams: int, tokens: int) -> dict[str, Any]:
    """Read all streams with httpx, as simply as it goes."""
    times: list[int] = []
    body = {"model": "paced", "prompt": [5] * PROMPT_TOKENS, "max_tokens": tokens, "stream": True}
    limits = httpx.Limits(max_connections=streams)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def one(number: int) -> None:
            await asyncio.sleep(number / 1000)
            async with client.stream("POST", "/v1/completions", json=body) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: {") and orjson.loads(line[6:])["choices"]:
                        times.append(CLOCK.now_ns())  # noqa: PERF401 - as it comes

        cpu_ns, wall_ns = cpu_time_ns(), CLOCK.now_ns()
        await asyncio.gather(*map(one, range(streams)))
        cpu_ns, wall_ns = cpu_time_ns() - cpu_ns, CLOCK.now_ns() - wall_ns
    return {"cpu_ns": cpu_ns, "wall_ns": wall_ns, "times": times}


def measure(play: Any, streams: int, tick_ms: float, seconds: float) -> dict[str, Any]:
    """Run one client against a fresh server."""
    command = [sys.executable, "-m", "benchmarks.replay_cost", "--serve", str(tick_ms / 1000)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
    tokens = int(seconds * 1000 / tick_ms)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(play(url, streams, tokens))
    server.stdin.close()
    ticks = json.loads(server.stdout.readline())
    server.wait()
    late = [at_ns - ticks[bisect_right(ticks, at_ns) - 1] for at_ns in found["times"]]
    count = len(found["times"])
    return {
        "client": play.__name__.removeprefix("play_"),
        "streams": streams,
        "tokens_per_s": round(count / (found["wall_ns"] / NS_PER_S)),
        "cpu_us_per_token": round(found["cpu_ns"] / 1000 / count, 2),
        "cpu_share": round(found["cpu_ns"] / found["wall_ns"], 3),
        # From the beginning of a tick, so with the server's own writing to all streams in it.
        "read_after_tick_ms": spread(late),
        "loop_delay_ms": found.get("loop_delay_ms"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--streams", default="50,200,500")
    parser.add_argument("--tick-ms", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--out", default="benchmarks/results/replay_cost.json")
    asked = parser.parse_args()
    if asked.serve is not None:
        uvloop.run(serve(asked.serve))
        return
    rows = []
    for streams in map(int, asked.streams.split(",")):
        for play in (play_lean, play_httpx):
            rows.append(measure(play, streams, asked.tick_ms, asked.seconds))
            print(json.dumps(rows[-1]), flush=True)
    result = {
        "machine": f"{platform.processor() or platform.machine()}, Python "
        f"{platform.python_version()}, uvloop {uvloop.__version__}, httpx {httpx.__version__}",
        "tick_ms": asked.tick_ms,
        "rows": rows,
    }
    Path(asked.out).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
