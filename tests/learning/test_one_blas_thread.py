"""A predictor in service keeps numpy's products on one thread; others spin between guesses."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import numpy as np
from threadpoolctl import threadpool_info
from engine.learning.predictor import LearnedPredictor

before = [one["num_threads"] for one in threadpool_info() if one["internal_api"] == "openblas"]
predictor = LearnedPredictor("some model")
predictor.start()
after = [one["num_threads"] for one in threadpool_info() if one["internal_api"] == "openblas"]
predictor.close()
print(len(before), max(after, default=1))
"""


def test_a_started_predictor_leaves_openblas_one_thread() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True
    )
    libraries, threads = map(int, done.stdout.split())
    assert threads == 1
    assert libraries >= 1 or sys.platform == "darwin"
