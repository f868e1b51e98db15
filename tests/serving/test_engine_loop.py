"""The loop alone, on this very thread: scripted commands in, recorded messages out."""

from __future__ import annotations

import dataclasses

import pytest
import scripted_executor as scripted
from engine_kit import config_of, order_of, tokens_of

from engine.core.clock import MonotonicClock
from engine.core.request import FinishReason
from engine.core.stats import TokenEvent
from engine.serving.build import (
    build_engine,
    has_spare_core,
    policy_name,
    profile_name,
)
from engine.serving.config import EngineConfig
from engine.serving.loop import EngineLoop
from engine.serving.messages import (
    Abort,
    ChannelClosed,
    Command,
    Failed,
    Output,
    Ping,
    Pong,
    Shutdown,
    StepOutput,
    Stop,
    Submit,
)


class Script:
    """An inbox and outbox: at each visit of the loop, hand out the next list of commands.

    With the script at its end, a loop that would sleep for ever is told to shut down, and a loop
    that has work goes on. `waits` are the waiting times it asked for.
    """

    def __init__(self, *visits: list[Command]) -> None:
        self._visits = list(visits)
        self.waits: list[float | None] = []
        self.sent: list[Output] = []

    def receive(self, wait_s: float | None) -> list[Command]:
        self.waits.append(wait_s)
        if self._visits:
            return self._visits.pop(0)
        return [Shutdown()] if wait_s is None else []

    def send(self, output: Output) -> None:
        self.sent.append(output)

    @property
    def steps(self) -> list[StepOutput]:
        return [s for s in self.sent if isinstance(s, StepOutput) and s.stats is not None]

    def events_of(self, request_id: str) -> list[TokenEvent]:
        outputs = [s for s in self.sent if isinstance(s, StepOutput)]
        return [e for s in outputs for e in s.events if e.request_id == request_id]


def run(script: Script, config: EngineConfig | None = None) -> bool:
    engine = build_engine(config or config_of(), lambda stage, fraction: None)
    return EngineLoop(engine, MonotonicClock(), script, script).run()


def test_all_pending_commands_come_before_the_step_and_one_message_after() -> None:
    """Three requests of one visit share every step, and each step is one message."""
    orders = [order_of(name, prompt=(i, 1), max_tokens=4) for i, name in enumerate("abc")]
    script = Script([Submit(order) for order in orders])
    assert run(script)
    assert len(script.steps) == 4
    for step in script.steps:
        assert [event.request_id for event in step.events] == ["a", "b", "c"]
    for order in orders:
        assert tokens_of(script.events_of(order.id)) == scripted.expected_tokens(order)


def test_it_sleeps_when_idle_and_never_when_busy() -> None:
    """With work it only glances at the inbox; without, it waits for ever and takes no step."""
    script = Script([Submit(order_of("a", max_tokens=3))])
    assert run(script)
    assert script.waits == [None, 0, 0, None]


def test_commands_between_steps_take_effect_in_the_next() -> None:
    """An abort ends its request before the next step, at once in a message of its own."""
    script = Script([Submit(order_of("a")), Submit(order_of("b"))], [Abort("a")])
    assert run(script)
    last = script.events_of("a")[-1]
    assert last.finish_reason is FinishReason.CANCELLED
    assert len(tokens_of(script.events_of("a"))) == 1
    assert len(tokens_of(script.events_of("b"))) == 8
    (alone,) = [s for s in script.sent if isinstance(s, StepOutput) and last in s.events]
    assert alone.stats is None
    assert alone.snapshot.running == 1


def test_commands_of_one_visit_keep_their_order() -> None:
    """Submit, stop and submit again under one id: three ends in that order."""
    order = order_of("a", max_tokens=2)
    script = Script([Submit(order), Submit(order), Stop("a", 0), Submit(order)])
    assert run(script)
    reasons = [e.finish_reason for e in script.events_of("a") if e.finish_reason]
    assert reasons == [FinishReason.REJECTED, FinishReason.STOP, FinishReason.LENGTH]


def test_a_ping_is_answered_between_steps() -> None:
    """Pong carries the number back."""
    script = Script([Ping(7)])
    assert run(script)
    assert Pong(7) in script.sent


def test_shutdown_fails_what_is_open_and_says_so() -> None:
    """Open requests get a last event with true counts; commands after Shutdown are void."""
    script = Script([Submit(order_of("a"))], [], [Shutdown(), Submit(order_of("late"))])
    assert run(script)
    last = script.events_of("a")[-1]
    assert last.finish_reason is FinishReason.FAILED
    assert last.stats is not None
    assert last.stats.num_output_tokens == 2
    assert last.stats.detail == "engine shut down"
    assert script.events_of("late") == []


def test_a_broken_executor_fails_all_and_ends_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    """Any exception but ExecutorFault: every request has its end, the loop says why and stops."""
    script = Script([Submit(order_of("a")), Submit(order_of("b", prompt=(scripted.RAISE,)))])
    assert not run(script)
    detail = "engine failure: ValueError: the device is gone"
    assert script.sent[-1] == Failed(detail, loading=False)
    for request_id in "ab":
        (event,) = script.events_of(request_id)
        assert event.finish_reason is FinishReason.FAILED
        assert event.stats is not None
        assert event.stats.detail == detail
    assert "the device is gone" in caplog.text


def test_a_fault_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One ExecutorFault changes no token: the step is repeated (law L33)."""
    plain = scripted.ScriptedExecutor.execute
    calls = 0

    def fail_once(self, batch):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 3:
            raise scripted.ExecutorFault("for once")
        return plain(self, batch)

    monkeypatch.setattr(scripted.ScriptedExecutor, "execute", fail_once)
    order = order_of("a", max_tokens=6)
    script = Script([Submit(order)])
    assert run(script)
    assert tokens_of(script.events_of("a")) == scripted.expected_tokens(order)
    assert script.events_of("a")[-1].finish_reason is FinishReason.LENGTH


def test_nobody_listening_ends_the_loop() -> None:
    """A closed channel is no crash: it leaves the loop as it came."""

    class Deaf(Script):
        def send(self, output: Output) -> None:
            raise ChannelClosed("gone")

    with pytest.raises(ChannelClosed):
        run(Deaf([Submit(order_of("a"))]))


def test_the_served_name_is_the_operators() -> None:
    """An engine introduces itself under the name it was given, else under its model's own."""
    config = config_of()
    for name, shown in (("", "scripted"), ("mine", "mine")):
        named = dataclasses.replace(config, served_name=name)
        engine = build_engine(named, lambda stage, fraction: None)
        assert engine.describe(pid=1, load_s=0.5).model == shown


@pytest.mark.parametrize(
    ("model", "policy", "profile", "wanted"),
    [
        ("builtin", "auto", "auto", ("hybrid", "builtin-cpu")),
        ("org/other", "auto", "auto", ("sarathi", "builtin-cpu")),
        ("org/other", "auto", "llama31-8b-h100", ("hybrid", "llama31-8b-h100")),
        ("builtin", "slai", "auto", ("slai", "builtin-cpu")),
    ],
)
def test_the_hybrid_runs_where_step_times_are_known(
    model: str, policy: str, profile: str, wanted: tuple[str, str]
) -> None:
    """It plans in time: with another device's prices its first steps would be far off."""
    told = EngineConfig(model, policy=policy, latency_profile=profile)
    assert (policy_name(told), profile_name(told)) == wanted


@pytest.mark.parametrize(
    ("threads", "cores", "spare"), [(None, 8, False), (2, 2, False), (4, 2, False), (1, 2, True)]
)
def test_a_core_is_spare_where_torch_is_told_to_leave_one(
    threads: int | None, cores: int, spare: bool
) -> None:
    """Unasked torch takes every usable core; a thread that carries contexts would take its time."""
    assert has_spare_core(threads, cores) is spare
