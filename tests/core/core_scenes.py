"""Single requests and views for asking a policy its questions, and steps of a world as rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from core_orders import make_capacity, make_order
from core_world import World

from engine.core.executor import Capacity
from engine.core.policy import View
from engine.core.request import LengthEstimate, Request, Slo, Status

EMPTY_VIEW = View(
    now_ns=0,
    capacity=make_capacity(num_blocks=1000),
    free_blocks=1000,
    num_waiting=0,
    prefilling=(),
    decoding=(),
)


def waiting(
    name: str,
    prompt: int = 20,
    *,
    arrival_ns: int = 0,
    guess: float = 100.0,
    max_tokens: int = 1000,
    slo: Slo | None = None,
) -> Request:
    """A request that arrived and was never started; `guess` is its predicted output."""
    order = make_order(name, prompt, max_tokens=max_tokens, arrival_ns=arrival_ns, slo=slo)
    request = Request(order, now_ns=arrival_ns)
    request.estimate = LengthEstimate(guess, guess)
    return request


def decoding(
    name: str,
    prompt: int = 20,
    *,
    arrival_ns: int = 0,
    started_ns: int | None = None,
    generated: int = 1,
    now_ns: int = 0,
    guess: float = 100.0,
    slo: Slo | None = None,
) -> Request:
    """A running request that lacks just its last token, got at `now_ns`."""
    request = waiting(name, prompt, arrival_ns=arrival_ns, guess=guess, slo=slo)
    request.move_to(Status.RUNNING, arrival_ns if started_ns is None else started_ns)
    for _ in range(generated):
        request.add_token(0, now_ns)
    request.num_computed = request.num_tokens - 1
    return request


def prefilling(name: str, prompt: int = 20, *, done: int = 4, started_ns: int = 0) -> Request:
    """A running request whose prompt is computed in part."""
    request = waiting(name, prompt)
    request.move_to(Status.RUNNING, started_ns)
    request.num_computed = done
    return request


def parked(name: str, prompt: int = 20, *, at_ns: int = 0, guess: float = 100.0) -> Request:
    """A decoding request whose context is on the host since `at_ns`."""
    request = decoding(name, prompt, guess=guess)
    request.move_to(Status.PARKED, at_ns)
    return request


def view(
    now_ns: int = 0,
    *,
    free_blocks: int = 1000,
    num_waiting: int = 0,
    prefilling: Collection[Request] = (),
    decoding: Collection[Request] = (),
    parked: Collection[Request] = (),
    free_host_blocks: int = 0,
    capacity: Capacity | None = None,
) -> View:
    """A present with these requests in it."""
    return dataclasses.replace(
        EMPTY_VIEW,
        now_ns=now_ns,
        free_blocks=free_blocks,
        num_waiting=num_waiting,
        prefilling=prefilling,
        decoding=decoding,
        parked=parked,
        free_host_blocks=free_host_blocks,
        capacity=capacity or EMPTY_VIEW.capacity,
    )


def step(world: World) -> list[tuple[str, int]]:
    """Run a step; who computed how many tokens, in the batch's order."""
    batch = world.start()
    rows = [] if batch is None else [(c.request_id, c.num_tokens) for c in batch.chunks]
    if batch is not None:
        world.finish()
    return rows


def find(world: World, name: str) -> Request:
    """The live request of that name."""
    request = world.core._scheduler.find(name)
    assert request is not None
    return request
