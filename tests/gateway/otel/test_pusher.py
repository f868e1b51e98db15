"""Pushing beside collectors that refuse, vanish and hang: nobody waits, everything is counted."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span
from otlp_receiver import Receiver, wait_for

from engine.core.clock import NS_PER_S, MonotonicClock
from gateway.otel import pusher as pushing
from gateway.otel.link import Link
from gateway.otel.push import _rejected_spans
from gateway.otel.pusher import Pusher, PushState, Queue

CLOCK = MonotonicClock()


def encode(names: list[str]) -> bytes:
    spans = [Span(name=name) for name in names]
    message = ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(scope_spans=[ScopeSpans(spans=spans)])]
    )
    return bytes(message.SerializeToString())


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "FIRST_PAUSE_S", 0.01)


class Pushed:
    """A pusher over a queue of names, ended within two seconds."""

    def __init__(self, url: str, most: int = 100, timeout_s: float = 10.0) -> None:
        self.queue = Queue(encode, most, batch=10)
        link = Link(f"{url}/v1/traces", {"x-token": "secret"}, _rejected_spans)
        self.pusher = Pusher("traces", link, self.queue, interval_s=0.02, timeout_s=timeout_s)
        self.queue.on_full = self.pusher.wake

    def __enter__(self) -> Pushed:
        self.pusher.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if not self.pusher._closing.is_set():
            self.end(2.0)

    def end(self, limit_s: float) -> bool:
        self.pusher.end(CLOCK.now_ns() + int(limit_s * NS_PER_S))
        return self.pusher.join()


def test_what_is_put_arrives_once_in_order_with_the_headers(receiver: Receiver) -> None:
    with Pushed(receiver.url) as pushed:
        names = [f"span {number}" for number in range(25)]
        for name in names:
            pushed.queue.put(name)
        wait_for(lambda: len(receiver.spans()) == 25, "all spans are there")
        assert [span.name for span in receiver.spans()] == names
        assert receiver.headers[0]["x-token"] == "secret"
        assert receiver.headers[0]["content-type"] == "application/x-protobuf"
        wait_for(lambda: pushed.pusher.state == PushState(25, 0, 0), "it is counted")


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_collector_that_is_busy_is_asked_again(receiver: Receiver, status: int) -> None:
    receiver.behaviour.statuses = [status] * 3
    with Pushed(receiver.url) as pushed:
        pushed.queue.put("late")
        wait_for(lambda: pushed.pusher.state.sent == 1, "it arrived")
        assert [span.name for span in receiver.spans()] == ["late"]
        assert receiver.num_tries == 4


def test_the_collector_says_how_long_to_wait(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "FIRST_PAUSE_S", 3600.0)  # only the hint can be why it goes on
    monkeypatch.setattr(pushing, "GIVE_UP_S", 7200.0)
    receiver.behaviour.statuses, receiver.behaviour.retry_after = [503], "0"
    with Pushed(receiver.url) as pushed:
        pushed.queue.put("hinted")
        wait_for(lambda: pushed.pusher.state.sent == 1, "it arrived")


def test_what_a_collector_will_never_take_is_counted_as_failed(receiver: Receiver) -> None:
    receiver.behaviour.statuses = [400]
    with Pushed(receiver.url) as pushed:
        pushed.queue.put("bad")
        wait_for(lambda: pushed.pusher.state.failed == 1, "it is given up")
        pushed.queue.put("good")
        wait_for(lambda: pushed.pusher.state.sent == 1, "the next one is sent")
        assert receiver.num_tries == 2


def test_a_part_that_was_rejected_is_counted(receiver: Receiver) -> None:
    receiver.behaviour.rejects_spans = 1
    with Pushed(receiver.url) as pushed:
        pushed.queue.put("one")
        wait_for(lambda: pushed.pusher.state.failed == 1, "it is counted")
        assert pushed.pusher.state.sent == 0


def test_a_full_queue_drops_and_counts_and_never_waits(receiver: Receiver) -> None:
    """While a collector hangs, putting costs the same as always and memory stays bounded."""
    receiver.behaviour.hangs = True
    with Pushed(receiver.url, most=50) as pushed:
        pushed.queue.put("first")
        wait_for(lambda: receiver.num_tries == 1, "a try hangs")
        for number in range(10_000):
            pushed.queue.put(f"span {number}")
        assert len(pushed.queue) == 50
        assert pushed.pusher.state.dropped == 10_000 - 50


def test_the_end_is_bounded_whatever_the_collector_does(receiver: Receiver) -> None:
    """Hanging, gone, or never there: ending takes its limit at most, and says what was lost."""
    receiver.behaviour.hangs = True
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, but nobody listens
        gone = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        for url in (receiver.url, gone, "http://256.256.256.256:1"):
            with Pushed(url, timeout_s=60.0) as pushed:
                for number in range(30):
                    pushed.queue.put(f"span {number}")
                before_ns = CLOCK.now_ns()
                pushed.end(0.5)
                # Generous: what is shown is that it is not the sixty seconds of a try.
                assert CLOCK.now_ns() - before_ns < 20 * NS_PER_S
                assert pushed.pusher.state.sent == 0


def test_what_waits_at_the_end_is_sent(receiver: Receiver) -> None:
    pushed = Pushed(receiver.url)
    pushed.pusher._interval_s = 3600.0
    with pushed:
        pushed.queue.put("last words")
        assert pushed.end(10.0)
        assert [span.name for span in receiver.spans()] == ["last words"]


def test_an_odd_record_ends_nothing(receiver: Receiver) -> None:
    """A fault in making a message costs that message."""
    with Pushed(receiver.url) as pushed:
        pushed.queue.put(3)  # type: ignore[arg-type]
        wait_for(lambda: len(pushed.queue) == 0, "the odd one is taken")
        pushed.queue.put("sound")
        wait_for(lambda: receiver.spans(), "the sound one arrives")
        assert receiver.spans()[-1].name == "sound"


def test_threads_are_told_apart(receiver: Receiver) -> None:
    with Pushed(receiver.url):
        assert "otlp-traces" in {thread.name for thread in threading.enumerate()}
