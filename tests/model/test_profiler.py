"""The recorder of steps: changes nothing, counts what a batch holds, and knows idle from busy."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_run import Setting, make_runner
from tiny_models import random_model, tiny_config

from engine.core.batch import Batch, Chunk, StepResult
from engine.core.clock import MonotonicClock, VirtualClock
from engine.core.errors import ExecutorFault
from engine.core.executor import Capacity
from engine.core.latency_model import LatencyModel
from engine.core.latency_profile import LatencyProfile
from engine.core.request import SamplingParams
from engine.model.hf_model import HFModel
from engine.model.link_prices import fit_link
from engine.model.model_runner import ModelRunner
from engine.model.profiler import (
    RecordingExecutor,
    device_facts,
    held,
    make,
)

GREEDY = SamplingParams(max_tokens=8, temperature=0.0)
MIXED = Batch(
    1,
    (
        Chunk("a", 30, (5,), (1, 2), GREEDY, output_index=1),
        Chunk("b", 7, (6,), (3,), GREEDY, output_index=4),
        Chunk("c", 16, (1, 2, 3, 4), (4, 5, 6), None),
        Chunk("d", 0, (9,), (7,), GREEDY),
    ),
)


class Busy:
    """Takes as long as it is told, in virtual time."""

    capacity = Capacity(8, 16, 64, 64, 8)
    info = "busy"

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock

    def execute(self, batch: Batch) -> StepResult:
        if batch.step == 99:
            raise ExecutorFault("no memory")
        self.clock.advance_to(self.clock.now_ns() + 1000)
        return StepResult(batch.step, (), 1000)


@pytest.fixture
def runner() -> ModelRunner:
    return make_runner(HFModel(random_model(tiny_config("llama"))), Setting(8, 24, 64, 8, 0))


def lines_of(text: io.StringIO) -> list[Any]:
    return [json.loads(line) for line in text.getvalue().splitlines()]


def test_a_batch_is_counted_as_the_latency_model_prices_it() -> None:
    """A recorded step's features give the very price that the model gives the batch."""
    decodes, prefills, tokens, kv_tokens, pairs, prompt_kv = held(MIXED)
    assert (decodes, prefills, tokens, kv_tokens, pairs, prompt_kv) == (2, 2, 7, 37, 72.5, 16)
    model = LatencyModel(
        LatencyProfile(
            "p",
            base_ns=1e6,
            token_ns=3e3,
            decode_kv_ns=11.0,
            mixed_kv_factor=1.5,
            pair_ns=2.0,
            prompt_kv_ns=5.0,
            row_ns=700.0,
        )
    )
    priced = model.held_ns(tokens, decodes + prefills, prefills, kv_tokens, pairs, prompt_kv)
    assert model.step_ns(MIXED) == int(priced)


def test_what_is_recorded_is_what_came_when_and_behind_whom() -> None:
    """First the facts; then a line a step, told apart by whether the engine may have idled."""
    clock, text = VirtualClock(500), io.StringIO()
    recorder = RecordingExecutor(Busy(clock), text, {"kv_bytes_per_token": 64}, clock)
    assert (recorder.capacity, recorder.info) == (Busy.capacity, "busy")
    recorder.execute(MIXED)
    clock.advance_to(5000)
    recorder.execute(Batch(2, MIXED.chunks[:1]))
    recorder.execute(Batch(3, (Chunk("new", 0, (1, 2), (1,), None),)))
    facts, first, second, third = lines_of(text)
    assert facts == {"kv_bytes_per_token": 64}
    assert first == [500, 1500, 0, 0, 2, 2, 7, 37, 72.5, 16]
    assert second == [5000, 6000, 0, 1, 1, 0, 1, 30, 0.0, 0]
    assert third == [6000, 7000, 0, 0, 0, 1, 2, 0, 2.0, 0]


def test_a_step_that_fails_leaves_no_line() -> None:
    clock, text = VirtualClock(), io.StringIO()
    recorder = RecordingExecutor(Busy(clock), text, {}, clock)
    with pytest.raises(ExecutorFault):
        recorder.execute(Batch(99, MIXED.chunks))
    assert lines_of(text) == [{}]


def test_recording_does_not_change_the_answers(runner: ModelRunner) -> None:
    batch = Batch(0, (Chunk("a", 0, (5, 6, 7), (1,), GREEDY), Chunk("b", 0, (8,), (2,), GREEDY)))
    plain = runner.execute(batch)
    text = io.StringIO()
    recorded = RecordingExecutor(runner, text, {}).execute(batch)
    assert (recorded.tokens, recorded.failed) == (plain.tokens, plain.failed)
    assert len(lines_of(text)) == 2


def test_the_link_is_measured_without_harm_to_the_cache(runner: ModelRunner) -> None:
    """Both formats have prices above zero, INT8 its bytes, and the cache what it held."""
    cache = runner.attention.kv_cache
    cache.data.copy_(torch.rand(cache.data.shape))
    before = cache.data.clone()
    facts = device_facts(runner, MonotonicClock())
    assert torch.equal(cache.data, before)
    assert facts["kv_bytes_per_token"] == cache.shape.bytes_per_token
    assert 1.9 * facts["int8_kv_bytes_per_token"] < facts["kv_bytes_per_token"]
    for way in ("link_out", "link_in", "int8_out", "int8_in"):
        assert facts[f"{way}_ns_per_token"] > 0
    assert facts["raw out: mean error"] <= facts["raw out: largest error"]


def test_prices_of_copies_are_found_again() -> None:
    """Times that lie on straight lines with one price per copy give back those very lines."""
    slopes = {"raw out": 30.0, "raw in": 50.0, "int8 out": 90.0, "int8 in": 70.0}
    series = {
        way: [(tokens, 4000.0 + slope * tokens) for tokens in (16, 64, 256, 1024)]
        for way, slope in slopes.items()
    }
    found = fit_link(series, {"raw": 64.0, "int8": 33.0})
    assert found.copy_ns == pytest.approx(4000.0)
    assert found.out_ns_per_token == pytest.approx({"raw": 30.0, "int8": 90.0})
    assert found.in_ns_per_token == pytest.approx({"raw": 50.0, "int8": 70.0})
    assert max(largest for _, largest in found.errors.values()) < 1e-9


def test_a_cache_of_one_length_of_context_has_no_price_per_copy() -> None:
    series = {f"{name} {way}": [(16, 800.0)] for name in ("raw", "int8") for way in ("out", "in")}
    found = fit_link(series, {"raw": 2.0, "int8": 1.0})
    assert (found.copy_ns, found.in_ns_per_token["raw"]) == (0.0, 50.0)


def test_a_config_makes_a_recorder_of_the_engines_own_runner(
    llama_folder: Path, tmp_path: Path
) -> None:
    """Whatever the loader has a parameter for comes from the config; the file is the option's."""
    path = tmp_path / "steps.jsonl"
    config = SimpleNamespace(
        model=str(llama_folder),
        device="cpu",
        dtype="float32",
        max_model_len=64,
        max_batch_tokens=32,
        max_batch_requests=4,
        block_size=8,
        kv_cache_bytes=1 << 20,
        runner="auto",
        executor_options=(("record", str(path)),),
    )
    recorder = make(config, lambda stage, fraction: None)
    capacity = recorder.capacity
    assert (capacity.block_size, capacity.max_batch_tokens, capacity.max_batch_requests) == (
        8,
        32,
        4,
    )
    recorder.execute(Batch(0, (Chunk("a", 0, (5, 6, 7), (1,), GREEDY),)))
    recorder.close()
    facts, step = [json.loads(line) for line in path.read_text().splitlines()]
    assert facts["kv_bytes_per_token"] > 0
    assert step[3:] == [0, 0, 1, 3, 0, 4.5, 0]
