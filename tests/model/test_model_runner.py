"""The executor's contract: one token per sampling chunk, faults named, a whole pool afterwards."""

from __future__ import annotations

import pytest
import torch
from engine_run import Setting, make_runner
from parking_run import with_host
from tiny_models import random_model, tiny_config

from engine.core.batch import Batch, Chunk, Copy
from engine.core.errors import ExecutorFault
from engine.core.request import SamplingParams
from engine.model.hf_model import HFModel
from engine.model.host_cache import HostFormat
from engine.model.model_runner import ModelRunner
from engine.model.step_input import StepInput

GREEDY = SamplingParams(max_tokens=8, temperature=0.0)
SETTING = Setting(8, 24, 64, 8, 0)


@pytest.fixture
def runner() -> ModelRunner:
    return make_runner(HFModel(random_model(tiny_config("llama"))), SETTING)


def test_tokens_come_for_sampling_chunks_only_and_in_order(runner: ModelRunner) -> None:
    batch = Batch(
        3,
        (
            Chunk("a", 0, (5, 6, 7), (1,), GREEDY),
            Chunk("b", 0, (8, 9), (2,), None),
            Chunk("c", 0, (10,), (3,), GREEDY),
        ),
    )
    result = runner.execute(batch)
    assert result.step == 3
    assert [token.request_id for token in result.tokens] == ["a", "c"]
    assert result.failed == ()
    assert result.elapsed_ns >= 0


def test_a_step_without_sampling_gives_no_tokens(runner: ModelRunner) -> None:
    result = runner.execute(Batch(0, (Chunk("a", 0, (5, 6), (1,), None),)))
    assert (result.tokens, result.failed) == ((), ())


def test_a_request_with_broken_numbers_fails_alone() -> None:
    """Token 7 is embedded as NaN: its request is named, its neighbours' tokens do not change."""
    module = random_model(tiny_config("llama"))
    healthy = make_runner(HFModel(module), SETTING)
    chunks = [Chunk(name, 0, (5, 6), (block,), GREEDY) for block, name in enumerate("ac", 1)]
    want = healthy.execute(Batch(0, tuple(chunks)))
    with torch.no_grad():
        module.model.embed_tokens.weight[7] = float("nan")
    sick = make_runner(HFModel(module), SETTING)
    chunks.insert(1, Chunk("b", 0, (5, 7), (9,), GREEDY))
    result = sick.execute(Batch(0, tuple(chunks)))
    assert result.failed == ("b",)
    assert result.tokens == want.tokens
    # Its block goes to the next request, which must not notice.
    follow = sick.execute(Batch(1, (Chunk("d", 0, (5, 6), (9,), GREEDY),)))
    assert follow.tokens[0].token_id == want.tokens[0].token_id


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_running_out_of_memory_is_a_fault_and_the_runner_goes_on(error: RuntimeError) -> None:
    model = HFModel(random_model(tiny_config("llama")))
    runner = make_runner(model, SETTING)
    failing = iter([error])

    def step(inp: StepInput) -> torch.Tensor:
        for raised in failing:
            raise raised
        return model.step(inp)

    runner = ModelRunner(
        model, runner.attention, runner._sampler, runner.capacity, runner.info, step=step
    )
    batch = Batch(4, (Chunk("a", 0, (5, 6), (1,), GREEDY),))
    with pytest.raises(ExecutorFault, match="step 4: out of memory on cpu"):
        runner.execute(batch)
    assert len(runner.execute(batch).tokens) == 1


def test_any_other_error_is_not_a_fault(runner: ModelRunner) -> None:
    """A token outside the vocabulary is a programming error: the engine has to stop."""
    with pytest.raises(IndexError):
        runner.execute(Batch(0, (Chunk("a", 0, (100_000,), (1,), GREEDY),)))


def test_warming_up_changes_no_answer(runner: ModelRunner) -> None:
    batch = Batch(0, (Chunk("a", 0, (5, 6, 7), (1,), GREEDY),))
    before = runner.execute(batch).tokens
    runner.warm_up()
    assert runner.execute(batch).tokens == before


def test_a_batch_without_chunks_waits_for_a_copy(runner: ModelRunner) -> None:
    """A park begins with one step and is told of in that step's result or a later one."""
    runner.execute(Batch(0, (Chunk("a", 0, (5, 6, 7), (1,), GREEDY),)))
    parking = with_host(runner, 8, HostFormat("raw", 8), None)
    first = parking.execute(Batch(1, (), (Copy("a", (1,), (4,), 1, 3),)))
    assert (first.tokens, first.copied, first.lost_copies) == ((), (1,), ())
    assert parking.execute(Batch(2, (), (), (Copy("a", (9,), (4,), 2, 3),))).copied == (2,)
    # The context goes on in its new place as it would have in the old one.
    chunks = [Chunk("a", 3, (8,), (block,), GREEDY, output_index=1) for block in (1, 9)]
    tokens = [parking.execute(Batch(3, (chunk,))).tokens[0].token_id for chunk in chunks]
    assert tokens[0] == tokens[1]


def test_a_fault_ends_every_copy_under_way() -> None:
    """Afterwards nothing is carried and nothing reported: the scheduler counts all as lost."""
    model = HFModel(random_model(tiny_config("llama")))
    plain = make_runner(model, SETTING)
    failing = iter([torch.OutOfMemoryError("CUDA out of memory")])

    def step(inp: StepInput) -> torch.Tensor:
        for raised in failing:
            raise raised
        return model.step(inp)

    broken = ModelRunner(
        model, plain.attention, plain._sampler, plain.capacity, plain.info, step=step
    )
    runner = with_host(broken, 8, HostFormat("raw", 8), None)
    chunk = Chunk("b", 0, (5, 6), (2,), GREEDY)
    with pytest.raises(ExecutorFault, match="step 4: out of memory"):
        runner.execute(Batch(4, (chunk,), (Copy("a", (1,), (4,), 1, 3),)))
    result = runner.execute(Batch(5, (chunk,)))
    assert (result.copied, result.lost_copies) == ((), ())
    assert len(result.tokens) == 1


def test_a_copy_for_an_executor_without_host_blocks_is_a_programming_error(
    runner: ModelRunner,
) -> None:
    with pytest.raises(AssertionError, match="without host blocks"):
        runner.execute(Batch(0, (), (Copy("a", (1,), (1,), 1),)))
