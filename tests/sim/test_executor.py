"""The simulated device: its time is its latency model's, its secrets stay its own."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sim_world import TIGHT, request, short_rows

from engine.core.batch import Batch, Chunk, Copy, StepResult
from engine.core.latency_model import LatencyModel
from engine.core.request import SamplingParams
from engine.sim.executor import EOS, SimulatedExecutor, SimulatedFault
from engine.sim.faults import CopyFaults, Faults, StepFaults
from engine.sim.orders import OrderMaker, output_cap

SAMPLING = SamplingParams(max_tokens=99)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Decodes first, then chunks, now and then copies; as the planner makes them."""
    decodes = draw(st.lists(st.integers(1, 5000), max_size=20))
    prompts = draw(st.lists(st.tuples(st.integers(0, 900), st.integers(1, 200)), max_size=4))
    chunks = [Chunk(f"d{i}", n, (7,), (), SAMPLING, 1) for i, n in enumerate(decodes)]
    chunks += [
        Chunk(f"p{i}", start, (7,) * n, (), draw(st.sampled_from([None, SAMPLING])), i % 2)
        for i, (start, n) in enumerate(prompts)
    ]
    copies = tuple(
        Copy(f"c{i}", tuple(range(n)), tuple(range(n)), i + 1)
        for i, n in enumerate(draw(st.lists(st.integers(1, 90), max_size=2)))
    )
    assume(chunks or copies)
    return Batch(1, tuple(chunks), copies[:1], copies[1:])


@given(batches())
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_a_step_takes_what_the_latency_model_says(batch: Batch) -> None:
    """The quick sum of the executor is the sum of the model; copies beside it change nothing."""
    lengths = {c.request_id: 10_000 for c in batch.chunks}
    executor = SimulatedExecutor(TIGHT.capacity(), LatencyModel(TIGHT), lengths)
    result = executor.execute(batch)
    if batch.chunks:
        assert result.elapsed_ns == max(1, LatencyModel(TIGHT).step_ns(batch))
    assert [t.request_id for t in result.tokens] == [
        c.request_id for c in batch.chunks if c.sampling
    ]


def out(number: int, num_blocks: int) -> Copy:
    """Something to carry: 200 us and 20 us for each of four tokens of a block, out on TIGHT."""
    return Copy(f"c{number}", (1,) * num_blocks, (1,) * num_blocks, number, 4 * num_blocks)


def test_copies_go_one_after_the_other_beside_the_steps() -> None:
    """Each direction is a pipe; a copy is told by the first step that ends no earlier."""
    executor = SimulatedExecutor(TIGHT.capacity(), LatencyModel(TIGHT), {"a": 99})
    work = Chunk("a", 3, (7,), (), SAMPLING, 1)
    us = 1000
    step_ns = LatencyModel(TIGHT).step_ns(Batch(1, (work,)))
    assert 6_000 * us <= step_ns < 7_000 * us
    # Out: 200 + 80 * 60 = 5,000 us, and the same behind it; in: 200 + 40 * 10 = 600 us.
    first = executor.execute(Batch(1, (work,), (out(1, 60), out(2, 60)), (out(3, 10),)))
    assert (first.elapsed_ns, first.copied) == (step_ns, (3, 1))
    # The pipe out is busy until 10,000 us, so the third one is over at 10,280 us.
    second = executor.execute(Batch(2, (), (out(4, 1),)))
    assert (second.elapsed_ns, second.copied) == (10_000 * us - step_ns, (2,))
    third = executor.execute(Batch(3, ()))
    assert (third.elapsed_ns, third.copied) == (280 * us, (4,))
    # Nothing is under way: one that begins now does not wait.
    fourth = executor.execute(Batch(4, (), (), (out(5, 10),)))
    assert (fourth.elapsed_ns, fourth.copied, fourth.lost_copies) == (600 * us, (5,), ())


def test_copies_are_late_and_lost_by_seed() -> None:
    """A late one takes up to the factor; a lost one is told when it would have been over."""
    batch = Batch(1, (), (out(1, 60),))

    def result(seed: int, **faults: float) -> StepResult:
        copy_faults = CopyFaults(Faults(**faults), seed)
        model = LatencyModel(TIGHT)
        executor = SimulatedExecutor(TIGHT.capacity(), model, {}, copy_faults=copy_faults)
        return executor.execute(batch)

    usual = 5_000_000
    times = sorted(result(seed, late_copy_share=1).elapsed_ns / usual for seed in range(200))
    assert 1 <= times[0] < 2
    assert times[100] == pytest.approx(25.5, rel=0.2)
    assert 48 < times[-1] <= 50
    lost = result(0, lost_copy_share=1)
    assert (lost.elapsed_ns, lost.copied, lost.lost_copies) == (usual, (), (1,))


def test_a_fault_brings_copies_to_a_standstill() -> None:
    """They are never told of again, and the link is free."""
    faults = StepFaults(Faults(error_share=1), 0)
    executor = SimulatedExecutor(TIGHT.capacity(), LatencyModel(TIGHT), {"a": 5}, faults)
    with pytest.raises(SimulatedFault):
        executor.execute(Batch(1, (Chunk("a", 3, (7,), (), SAMPLING, 1),), (out(1, 6000),)))
    with pytest.raises(SimulatedFault) as fault:
        executor.execute(Batch(2, (), (out(2, 60),)))
    assert fault.value.elapsed_ns == 5_000_000


def test_the_answer_ends_at_its_true_length() -> None:
    """Token n of n is the end token, no other is."""
    executor = SimulatedExecutor(TIGHT.capacity(), LatencyModel(TIGHT), {"a": 3, "b": 1})
    tokens = [
        executor.execute(Batch(i, (Chunk("a", i, (7,), (), SAMPLING, i),))).tokens[0].token_id
        for i in range(3)
    ]
    assert [token == EOS for token in tokens] == [False, False, True]
    first = executor.execute(Batch(9, (Chunk("b", 0, (7, 7), (), SAMPLING, 0),)))
    assert first.tokens[0].token_id == EOS


def test_faults_stretch_steps_fail_them_and_lose_rows() -> None:
    """Each fault at share 1 hits every step; the time of a failed step is told with it."""
    batch = Batch(1, (Chunk("a", 0, (7, 7), (), SAMPLING, 0),))

    def executor(**shares: float) -> SimulatedExecutor:
        faults = StepFaults(Faults(**shares), 0)
        return SimulatedExecutor(TIGHT.capacity(), LatencyModel(TIGHT), {"a": 5}, faults)

    usual = executor().execute(batch).elapsed_ns
    assert executor(slow_share=1, slow_factor=3).execute(batch).elapsed_ns == 3 * usual
    lost = executor(failed_row_share=1).execute(batch)
    assert (lost.failed, lost.tokens) == (("a",), ())
    with pytest.raises(SimulatedFault) as fault:
        executor(error_share=1).execute(batch)
    assert fault.value.elapsed_ns == usual


def test_an_order_does_not_show_the_true_length() -> None:
    """Law L26: requests that differ in nothing but their answers make the same order."""
    orders = OrderMaker(TIGHT.capacity(), 64)
    short, long = request("a", 0, 20, 3), request("a", 0, 20, 60)
    assert orders.order(short) == orders.order(long)
    assert orders.order(short).sampling.max_tokens == 64
    near_the_window = orders.order(request("a", 0, 150, 3))
    assert near_the_window.sampling.max_tokens == 10


def test_who_can_never_fit_asks_for_more_than_there_is() -> None:
    """So that the core refuses it, rather than cutting its answer short."""
    order = OrderMaker(TIGHT.capacity(), 64).order(request("a", 0, 150, 11))
    assert len(order.prompt) + order.sampling.max_tokens == 161
    longest = OrderMaker(TIGHT.capacity(), 64).order(request("a", 0, 9000, 1))
    assert len(longest.prompt) == 9000


def test_the_cap_is_the_longest_answer_up_to_a_power_of_two() -> None:
    """So the trace's own bound, and nobody's own length."""
    rows = short_rows()
    longest = max(row.num_output_tokens for row in rows)
    assert longest <= output_cap(rows) < 2 * longest
    one = dataclasses.replace(rows[0], num_output_tokens=64)
    assert output_cap([one]) == 64


def test_equal_prefix_blocks_are_equal_tokens_and_the_rest_is_ones_own() -> None:
    """What the prefix cache may share is what the trace says, block for block of 512 tokens."""
    orders = OrderMaker(TIGHT.capacity(), 64, has_prefixes=True)
    base = request("a", 0, 1100, 1)
    a, b, c, d = (
        orders.order(dataclasses.replace(base, id=name, prefix_block_ids=ids)).prompt
        for name, ids in (("a", (5, 6)), ("b", (5, 7, 8)), ("c", ()), ("d", ()))
    )
    assert all(len(prompt) == 1100 for prompt in (a, b, c, d))
    assert a[:512] == b[:512]
    assert not set(a[512:]) & set(b[512:])
    assert not set(c) & set(d)
    assert len(set(a)) == len(set(b)) == 3
