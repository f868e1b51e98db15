"""The scripted executor behind the recorder of `tiergate profile`: real lines, pretended work."""

from __future__ import annotations

from pathlib import Path

import scripted_executor as scripted

from engine.model.profiler import RecordingExecutor
from engine.serving.build import ProgressReport
from engine.serving.config import EngineConfig

FACTS = {
    "kv_bytes_per_token": 64,
    "int8_kv_bytes_per_token": 33.5,
    "link_ns": 500.0,
    "link_out_ns_per_token": 3.0,
    "link_in_ns_per_token": 2.0,
    "int8_out_ns_per_token": 9.0,
    "int8_in_ns_per_token": 5.0,
    "raw out: mean error": 0.01,
}


def make(config: EngineConfig, progress: ProgressReport) -> RecordingExecutor:
    inner = scripted.make(config, progress)
    path = Path(dict(config.executor_options)["record"])
    return RecordingExecutor(inner, path.open("w", encoding="utf-8"), FACTS)
