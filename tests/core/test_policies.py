"""The policies by name, and what the seam asks of every one of them."""

from __future__ import annotations

import math

import pytest
from core_orders import make_capacity, make_order
from hypothesis import given
from hypothesis import strategies as st

from engine.core.policies import POLICIES, make_policy
from engine.core.policies.sarathi import Sarathi
from engine.core.policy import SchedulingPolicy, StepLimits, View
from engine.core.request import Request, Status

VIEW = View(
    now_ns=100,
    capacity=make_capacity(num_blocks=1000),
    free_blocks=250,
    num_waiting=0,
    prefilling=(),
    decoding=(),
)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    """One clear line for whoever wrote the setting."""
    with pytest.raises(ValueError, match=r"unknown policy 'lifo'; known: .*fcfs.*sarathi"):
        make_policy("lifo")


def test_an_unknown_option_is_refused() -> None:
    """A mistyped option must not be a silent default."""
    with pytest.raises(ValueError, match="policy 'fcfs' has no option budget"):
        make_policy("fcfs", [("budget", 3)])
    with pytest.raises(ValueError, match=r"option .token_budget. must be .* at least 1, not 0"):
        make_policy("sarathi", [("token_budget", 0)])


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("fcfs", "max_running", 2.5, "must be a whole number"),
        ("fcfs", "max_running", math.nan, "must be a whole number"),
        ("vllm0", "token_budget", math.inf, "must be a whole number"),
        ("slai", "memory_limit", -0.1, "must be at least 0"),
        ("slai", "theta", math.inf, "must be from 0 to"),
        ("rad", "cycle", 0.5, "must be at least 1"),
        ("alise", "ratio", 1.0, "must be at least 1.01"),
        ("alise", "swap", 2, "must be 0 or 1"),
        ("fastserve", "quantum_ms", 0, "must be at least"),
    ],
)
def test_a_senseless_option_is_refused_by_name(
    name: str, option: str, value: float, message: str
) -> None:
    """Whoever wrote the setting reads which one, and what it may be."""
    with pytest.raises(ValueError, match=f"option '{option}' {message}"):
        make_policy(name, [(option, value)])


def test_options_reach_their_policy() -> None:
    """Sarathi's budget and its number of requests are the operator's."""
    policy = make_policy("sarathi", [("token_budget", 2048), ("max_running", 7)])
    assert policy.limits(VIEW) == StepLimits(max_tokens=2048, max_running=7)
    # Never more than a step has rows, 16 here.
    assert make_policy("sarathi").limits(VIEW) == StepLimits(max_tokens=512, max_running=16)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_policy_answers_to_its_own_name(name: str) -> None:
    """Reports and settings mean the same thing by a name; two makes share no state."""
    assert make_policy(name).name == name
    assert make_policy(name) is not make_policy(name)


@pytest.mark.parametrize("name", sorted(POLICIES))
@given(arrivals=st.lists(st.integers(0, 5), min_size=2, max_size=8), running=st.booleans())
def test_ranks_are_total_orders_that_end_in_arrival_and_id(
    name: str, arrivals: list[int], running: bool
) -> None:
    """No ties, so that equal runs are equal; all elements comparable."""
    policy = make_policy(name)
    requests = [
        Request(make_order(str(i), 1 + i, arrival_ns=arrival), now_ns=5)
        for i, arrival in enumerate(arrivals)
    ]
    if running:
        requests[0].move_to(Status.RUNNING, 6)
    for question in (policy.prefill_rank, policy.keep_rank):
        ranks = [question(request, VIEW) for request in requests]
        assert len(set(ranks)) == len(ranks)
        assert sorted(ranks)
        for rank, request in zip(ranks, requests, strict=True):
            assert rank[-2:] == (request.order.arrival_ns, request.id)


@pytest.mark.parametrize(
    "policy", [make_policy(name) for name in ("fcfs", "sarathi", "sarathi-spf")]
)
def test_stall_free_baselines_run_every_decode_and_keep_a_hundredth_free(
    policy: SchedulingPolicy,
) -> None:
    """Decodes never stall, and admission leaves room for their growth."""
    request = Request(make_order("a", 20), now_ns=0)
    assert policy.due(request, VIEW)
    assert policy.room(request, VIEW).spare_blocks == 10


def test_sarathi_claims_the_whole_history_and_continues_what_it_began() -> None:
    """Prompts under way go before new ones, whatever their arrival."""
    policy = Sarathi()
    older = Request(make_order("older", 20, arrival_ns=1), now_ns=2)
    begun = Request(make_order("begun", 20, arrival_ns=2), now_ns=2)
    begun.move_to(Status.RUNNING, 3)
    assert policy.prefill_rank(begun, VIEW) < policy.prefill_rank(older, VIEW)
    assert policy.room(older, VIEW).claim_tokens == 20


def test_device_use_is_the_share_of_blocks_in_use() -> None:
    """The one memory signal of the house (law L46)."""
    assert VIEW.device_use == 0.75
