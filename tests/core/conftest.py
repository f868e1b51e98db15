"""Hypothesis for the core: repeatable by default, thorough on request, never judged by time.

`pytest tests/core --hypothesis-profile=thorough` explores at random and for much longer.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("core", max_examples=60, derandomize=True, **COMMON)
settings.register_profile("thorough", max_examples=2000, stateful_step_count=120, **COMMON)


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("hypothesis_profile", None):
        settings.load_profile("core")
