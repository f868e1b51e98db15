"""What must be settled before any test module is imported.

Hypothesis is repeatable by default, thorough on request, and never judges by time:
`pytest tests/core --hypothesis-profile=thorough` explores at random and for much longer.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("house", max_examples=60, derandomize=True, **COMMON)
settings.register_profile("thorough", max_examples=2000, stateful_step_count=120, **COMMON)


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("hypothesis_profile", None):
        settings.load_profile("house")


# Triton reads this when it is first imported, by whomever: without a GPU its kernels run
# interpreted, and the tests of their arithmetic need that.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
