"""The chat client against a scripted server: what it shows, measures, and says when it fails."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from engine.core.clock import NS_PER_MS, VirtualClock
from gateway.cli.chat_client import AnswerTimes, ChatClient
from gateway.cli.output import printable

Script = Callable[["Gateway", dict[str, Any]], None]
KEY = "tgk_live_" + "a" * 36
MODELS = {"object": "list", "data": [{"id": "small", "object": "model"}]}


class Gateway(BaseHTTPRequestHandler):
    """Offers one model and answers a chat as the script of the test says."""

    script: Script
    asked: list[dict[str, Any]]
    offer: Any

    def do_GET(self) -> None:
        self.json(200, self.offer)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({"path": self.path, "key": self.headers["Authorization"], **body})
        type(self).script(self, body)

    def json(self, status: int, value: Any, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def start_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()

    def event(self, value: Any) -> None:
        data = value if isinstance(value, str) else json.dumps(value)
        self.wfile.write(f"data: {data}\n\n".encode())
        self.wfile.flush()

    def piece(self, text: str | None, finish: str | None = None) -> None:
        delta = {} if text is None else {"content": text}
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        self.event({"choices": [choice], "service_tier": "priority", "usage": None})

    def log_message(self, *_arguments: object) -> None:
        pass


@contextmanager
def serving(script: Script, offer: Any = MODELS) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    asked: list[dict[str, Any]] = []
    parts = {"script": script, "asked": asked, "offer": offer}
    handler = type("Handler", (Gateway,), parts)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def hello(gateway: Gateway, _body: dict[str, Any]) -> None:
    gateway.start_stream()
    gateway.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    gateway.wfile.write(b": keep-alive\n\n")
    for text in ("Hel", "lo ", "you"):
        gateway.piece(text)
    gateway.piece(None, "stop")
    gateway.event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}})
    gateway.event("[DONE]")


def test_one_question_one_answer(tiergate: Any) -> None:
    """The answer alone is on stdout, its times on stderr."""
    with serving(hello) as (url, asked):
        done = tiergate("chat", "--url", url, "--key", KEY, "--prompt", "hi", "--system", "be kind")
    assert (done.code, done.out) == (0, "Hello you\n")
    assert done.err.startswith("TTFT ")
    for part in ("TBT p50 ", "max ", "4 tokens", "tier priority"):
        assert part in done.err
    assert asked == [
        {
            "path": "/v1/chat/completions",
            "key": f"Bearer {KEY}",
            "model": "small",
            "messages": [
                {"role": "system", "content": "be kind"},
                {"role": "user", "content": "hi"},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


def test_flags_reach_the_gateway(tiergate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIERGATE_KEY", KEY)
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe\n"))
    with serving(hello) as (url, asked):
        flags = ("--model", "big", "--max-tokens", "7", "--prompt", "-")
        assert tiergate("chat", "--url", f"{url}/v1/", *flags).code == 0
    assert asked[0]["model"] == "big"
    assert asked[0]["max_completion_tokens"] == 7
    assert asked[0]["messages"] == [{"role": "user", "content": "from a pipe"}]


def test_a_conversation_is_kept_and_forgotten(
    tiergate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "one\n\n/help\ntwo\n/reset\nthree\n/exit\nfour\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    with serving(hello) as (url, asked):
        done = tiergate("chat", "--url", url, "--key", KEY)
    assert done.code == 0
    assert done.out == "Hello you\n" * 3
    said = [[m["content"] for m in request["messages"]] for request in asked]
    assert said == [["one"], ["one", "Hello you", "two"], ["three"]]


def test_a_failed_question_leaves_the_conversation_as_it_was(
    tiergate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second_fails(gateway: Gateway, body: dict[str, Any]) -> None:
        if body["messages"][-1]["content"] == "two":
            gateway.json(429, {"error": {"message": "Too many."}}, Retry_After="3")
        else:
            hello(gateway, body)

    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\nthree\n"))
    with serving(second_fails) as (url, asked):
        done = tiergate("chat", "--url", url, "--key", KEY)
    assert done.code == 0
    assert "error: the gateway refused (429): Too many. (try again in 3 s)" in done.err
    assert [m["content"] for m in asked[2]["messages"]] == ["one", "Hello you", "three"]


def refuse(status: int, message: str) -> Script:
    return lambda gateway, _body: gateway.json(status, {"error": {"message": message}})


def break_off(gateway: Gateway, _body: dict[str, Any]) -> None:
    gateway.start_stream()
    gateway.piece("Hel")


def fail_late(gateway: Gateway, _body: dict[str, Any]) -> None:
    gateway.start_stream()
    gateway.piece("Hel")
    gateway.event({"error": {"message": "The engine restarted.", "code": "engine_failed"}})
    gateway.event("[DONE]")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (refuse(401, "no"), "refused the key: it may be mistyped, revoked or expired"),
        (refuse(503, "The queue is full."), "the gateway refused (503): The queue is full."),
        (refuse(400, "a\nb"), "the gateway refused (400): a b"),
        (break_off, "the answer broke off: the connection ended before it did"),
        (fail_late, "the answer broke off: The engine restarted."),
    ],
)
def test_a_refusal_is_one_clear_line(tiergate: Any, script: Script, said: str) -> None:
    with serving(script) as (url, _asked):
        done = tiergate("chat", "--url", url, "--key", KEY, "--model", "m", "--prompt", "hi")
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert said in done.err
    assert done.err.count("\n") == 1
    assert done.out in ("", "Hel\n")


@pytest.mark.parametrize("model", [(), ("--model", "m")])
def test_a_gateway_that_is_away_is_one_clear_line(tiergate: Any, model: tuple[str, ...]) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        done = tiergate("chat", "--url", url, "--key", KEY, "--prompt", "hi", *model)
    assert done.code == 2
    assert done.err == (
        f"error: no gateway answers at {url}: start one with `tiergate serve`, or name another "
        "with --url\n"
    )


def test_without_a_key_it_says_how_to_get_one(tiergate: Any) -> None:
    done = tiergate("chat", "--prompt", "hi")
    assert done.code == 2
    assert "pass --key or set TIERGATE_KEY" in done.err


@pytest.mark.parametrize("url", ["ftp://h", "http://", "no url", "http://[::1"])
def test_what_is_no_url_is_one_clear_line(tiergate: Any, url: str) -> None:
    done = tiergate("chat", "--url", url, "--key", KEY, "--prompt", "hi")
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


def test_times_are_taken_at_text_and_at_nothing_else() -> None:
    """The clock moves by hand: 250 ms to the first piece, then gaps of 40 and 60 ms."""
    clock = VirtualClock()
    held = threading.Event()

    def after_role(gateway: Gateway, body: dict[str, Any]) -> None:
        gateway.start_stream()
        gateway.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        held.wait(30)
        for text in ("a", "b", "c"):
            gateway.piece(text)
        gateway.piece(None, "length")
        gateway.event("[DONE]")

    with serving(after_role) as (url, _), ChatClient(url, KEY, clock) as client:
        stream = client.stream("m", [{"role": "user", "content": "hi"}], None)
        timer = threading.Timer(0.05, lambda: (clock.advance_to(250 * NS_PER_MS), held.set()))
        timer.start()
        pieces = [next(stream)]
        clock.advance_to(290 * NS_PER_MS)
        pieces.append(next(stream))
        clock.advance_to(350 * NS_PER_MS)
        pieces.append(next(stream))
        assert list(stream) == []
        timer.join()
        assert pieces == ["a", "b", "c"]
        assert client.times == AnswerTimes(
            ttft_ns=250 * NS_PER_MS,
            gaps_ns=(40 * NS_PER_MS, 60 * NS_PER_MS),
            num_tokens=3,
            finish_reason="length",
            service_tier="priority",
        )


@pytest.mark.parametrize(
    ("gaps_ms", "num_tokens", "line"),
    [
        ((40, 60, 20), 4, "TTFT 100 ms · TBT p50 40 ms, max 60 ms · 25.0 tokens/s · 4 tokens"),
        # Four tokens in three pieces: one token had no text of its own yet.
        ((50, 50), 5, "TTFT 100 ms · TBT p50 50 ms, max 50 ms · 40.0 tokens/s · 5 tokens"),
        ((), 1, "TTFT 100 ms · 1 token"),
    ],
)
def test_the_line_of_times(gaps_ms: tuple[int, ...], num_tokens: int, line: str) -> None:
    gaps = tuple(gap * NS_PER_MS for gap in gaps_ms)
    assert AnswerTimes(100 * NS_PER_MS, gaps, num_tokens, "stop").line() == line


def test_ctrl_c_ends_the_answer_and_not_the_conversation(
    tiergate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was said until then stays in the conversation, and the connection is closed."""
    closed = threading.Event()

    def endless(gateway: Gateway, body: dict[str, Any]) -> None:
        if body["messages"][-1]["content"] != "one":
            hello(gateway, body)
            return
        gateway.start_stream()
        try:
            while True:
                gateway.piece("la ")
        except OSError:
            closed.set()

    count = iter(range(1_000_000))

    def press_ctrl_c(text: str) -> str:
        if text == "la " and next(count) == 2:
            raise KeyboardInterrupt
        return text

    monkeypatch.setattr("gateway.cli.chat.printable", press_ctrl_c)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    with serving(endless) as (url, asked):
        done = tiergate("chat", "--url", url, "--key", KEY)
        assert closed.wait(30)
    assert done.code == 0
    assert "(stopped)" in done.err
    assert [m["content"] for m in asked[1]["messages"]] == ["one", "la la la ", "two"]


def test_an_answer_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07c\x9bd\n\te é 漢 👍") == "a[2Jbcd\n\te é 漢 👍"


@pytest.mark.parametrize("offer", [[], {"data": []}, {"data": [7]}, "text"])
def test_a_server_that_is_no_gateway_is_told_apart(tiergate: Any, offer: Any) -> None:
    with serving(hello, offer) as (url, asked):
        done = tiergate("chat", "--url", url, "--key", KEY, "--prompt", "hi")
    assert (done.code, done.err) == (2, f"error: {url} does not answer like a gateway\n")
    assert asked == []
