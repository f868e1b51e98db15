"""How a peer talks to the benchmark: one JSON line in, one out; it knows no engine.

A peer is a script that loads a model once and then answers as many jobs as it is given. It is run
by its own interpreter, so this file needs nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

MARK = "PEER "  # libraries print what they like; lines that count begin with this

Generate = Callable[[list[list[int]], list[int]], list[int]]


def settings() -> dict[str, Any]:
    """Return what the benchmark told this peer on its command line."""
    value: dict[str, Any] = json.loads(sys.argv[1])
    return value


def say(**what: object) -> None:
    sys.stdout.write(MARK + json.dumps(what) + "\n")
    sys.stdout.flush()


def serve(version: str, load_s: float, generate: Generate) -> None:
    """Answer jobs until the input ends.

    `generate(prompts, max_new)` returns how many tokens each request got; all requests are handed
    over at time 0 and end at their own length, never at an end token.
    """
    say(version=version, load_s=round(load_s, 1), pid=os.getpid())
    for line in sys.stdin:
        job = json.loads(line)
        began = time.perf_counter()
        counts = generate(job["prompts"], job["max_new"])
        seconds = time.perf_counter() - began
        if counts != job["max_new"]:
            raise SystemExit(f"wrong number of tokens: {counts} for {job['max_new']}")
        say(seconds=seconds)
