"""The parts of a replay, each alone: HTTP and events cut anywhere, tokens counted, keys kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.request import Slo
from engine.sim.workload import SimRequest, SimTier
from gateway.replay.answer_watch import AnswerWatch, CountedBy
from gateway.replay.dialect import Dialect, Form, Pin
from gateway.replay.event_lines import EventLines
from gateway.replay.exchange import AddressError, parse_address
from gateway.replay.http_reader import HttpFault, ResponseReader
from gateway.replay.keys import KeysError, Redactor, check_tiers, parse_keys, read_keys
from gateway.replay.prompts import PromptMaker

BODY = b'data: {"a": 1}\n\ndata: two\n\n' * 3
CHUNKED = b"".join(
    f"{len(part):X};name=value\r\n".encode() + part + b"\r\n"
    for part in (BODY[:1], BODY[1:30], BODY[30:])
)
RESPONSES = {
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED
    + b"0\r\ntrailer: yes\r\n\r\n",
    "counted": b"HTTP/1.1 429 Slow\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY,
    "interim": b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("kind", RESPONSES)
@given(data=st.data())
def test_a_response_may_be_cut_anywhere(kind: str, data: st.DataObject) -> None:
    """Whatever pieces the bytes come in, status and body are the same and the end is seen."""
    raw = RESPONSES[kind]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    reader, body = ResponseReader(), b""
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        assert reader.is_done == (start == len(raw))
        body += b"".join(reader.feed(raw[start:end]))
    assert reader.is_done
    assert reader.keeps_alive
    assert body == (b"" if kind == "interim" else BODY)


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    reader = ResponseReader()
    assert b"".join(reader.feed(b"HTTP/1.1 200 OK\r\n\r\n" + BODY)) == BODY
    assert not reader.is_done
    reader.end()
    assert reader.is_done
    assert not reader.keeps_alive


@pytest.mark.parametrize("kind", ["chunked", "counted"])
def test_a_response_that_is_cut_off_is_not_whole(kind: str) -> None:
    """A connection that ends one byte early is a fault, not an end."""
    reader = ResponseReader()
    reader.feed(RESPONSES[kind][:-1])
    with pytest.raises(HttpFault, match="before it was whole"):
        reader.end()


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nxyz",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nmore",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000,
    ],
)
def test_what_is_no_http_is_refused(raw: bytes) -> None:
    with pytest.raises(HttpFault):
        ResponseReader().feed(raw)


@given(data=st.data())
def test_events_may_be_cut_anywhere(data: st.DataObject) -> None:
    """Comments and other fields are passed over, both kinds of line ends taken, lines joined."""
    raw = (
        b': ping\r\n\r\nevent: x\ndata: {"a": 1}\n\ndata:two\r\ndata: lines\r\n\r\ndata: [DONE]\n\n'
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    lines, found = EventLines(), []
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        found += lines.feed(raw[start:end])
    assert found == [b'{"a": 1}', b"two\nlines", b"[DONE]"]


def watch(*events: Any) -> AnswerWatch:
    """Return what a client sees of these events, one each nanosecond."""
    seen = AnswerWatch()
    for at_ns, value in enumerate(events):
        seen.take(value if isinstance(value, bytes) else json.dumps(value).encode(), at_ns)
    return seen


def text(words: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"text": words, "finish_reason": reason}], **more}


def usage(count: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": count}}


ROLE = {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
CHAT_A = {"choices": [{"delta": {"content": "a"}, "finish_reason": None}]}
CHAT_END = {"choices": [{"delta": {}, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    ("events", "times", "counted_by"),
    [
        # One token an event; the end holds none.
        ([text("a"), text("b"), text("", "stop"), usage(2)], [0, 1], CountedBy.EACH),
        # The end holds the last token.
        ([text("a"), text("b", "length"), usage(2)], [0, 1], CountedBy.EACH),
        # A token without a text, in the middle and at the end.
        ([text("a"), text(""), text("", "length"), usage(3)], [0, 1, 2], CountedBy.EACH),
        # A role is no token, in whatever chunk it stands.
        ([ROLE, CHAT_A, CHAT_A, CHAT_END, usage(2)], [1, 2], CountedBy.EACH),
        # Several tokens an event, by the length of texts; a token is never before its text.
        ([text("aaa"), text("aaa"), text("", "length"), usage(6)], [0] * 3 + [1] * 3,
         CountedBy.TEXT),
        ([text("a"), text("aaaaaaa"), text("", "length"), usage(4)], [0, 1, 1, 1], CountedBy.TEXT),
        # The server says it chunk by chunk.
        ([text("a", usage={"completion_tokens": 2}), text("aaaa", usage={"completion_tokens": 3}),
          text("", "stop", usage={"completion_tokens": 3}), usage(3)], [0, 0, 1], CountedBy.CHUNK),
        ([{"choices": [{"text": "aa", "token_ids": [5, 6], "finish_reason": None}]},
          {"choices": [{"text": "a", "token_ids": [7], "finish_reason": "length"}]}],
         [0, 0, 1], CountedBy.CHUNK),
        # No usage at all: the texts.
        ([text("a"), text("b"), text("", "stop")], [0, 1], CountedBy.NOTHING),
        ([text("", "stop"), usage(0)], [], CountedBy.NONE),
        ([usage(0)], [], CountedBy.NONE),
    ],
)  # fmt: skip
def test_tokens_are_counted_as_they_came(
    events: list[Any], times: list[int], counted_by: CountedBy
) -> None:
    assert watch(*events).token_times() == (times, counted_by)


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=40),
    st.integers(0, 200),
)
def test_shared_out_tokens_are_all_there_and_in_order(sizes: list[int], count: int) -> None:
    """However texts and tokens relate: as many tokens as the usage says, and time never back."""
    times, _ = watch(*[text("x" * size) for size in sizes], text("", "length"), usage(count))\
        .token_times()  # fmt: skip
    if any(sizes) or count in (0, len(sizes), len(sizes) + 1):
        assert len(times) == count
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("events", "is_whole"),
    [
        ([text("a"), text("", "length"), b"[DONE]"], True),
        ([text("a"), b"[DONE]"], False),
        ([text("a"), {"error": {"message": "no"}}], False),
        ([text("a", "stop"), {"error": "no"}], False),
        ([text("a", "stop"), b"not json"], False),
        ([text("a", "stop"), [1]], False),
    ],
)
def test_only_an_end_with_a_reason_and_without_an_error_is_whole(
    events: list[Any], is_whole: bool
) -> None:
    assert watch(*events).is_whole is is_whole


def test_keys_are_read_from_flags_lines_and_ready_files(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    wanted = {"premium": ["a", "b"], "free": [None]}
    assert parse_keys("premium=a, free=-,premium=b") == wanted
    file.write_text("# mine\npremium=a\npremium=b\n\nfree=-\n")
    assert read_keys(str(file)) == wanted
    file.write_text(json.dumps({"url": "x", "keys": {"premium": ["a", "b"], "free": "-"}}))
    assert read_keys(str(file)) == wanted


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("premium", "entry 1 must be TIER=KEY"),
        ("premium=", "without a key"),
        ("premium=s e c", "characters no key has"),
        ("premium=s\u00e9c", "characters no key has"),
        ("", "there is no key"),
        ("premium=sec", "none for tier 'free'"),
        ("premium=sec,free=sec,gold=sec", "'gold' is no tier; there are premium, free"),
    ],
)
def test_faults_of_keys_are_told_without_the_keys(keys: str, said: str) -> None:
    with pytest.raises(KeysError, match=said) as caught:
        check_tiers(parse_keys(keys), ["premium", "free"])
    assert "sec" not in str(caught.value)
    assert "s e c" not in str(caught.value)


def test_a_servers_words_are_shown_without_keys() -> None:
    """The longer key first: a key may begin another."""
    hide = Redactor({"a": ["key", None], "b": ["key-two"]})
    assert hide("no such key-two, nor key") == "no such ***, nor ***"


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://localhost:8000/v1/", "http://localhost:8000"),
        ("https://example.org/openai/v1", "https://example.org:443/openai"),
        ("http://[::1]:9/", "http://[::1]:9"),
    ],
)
def test_addresses_are_read_with_and_without_v1(url: str, origin: str) -> None:
    assert parse_address(url).origin == origin


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://x", "http://", "http://me:secret@x", "http://x/?k=1",
     "http://x:99999", "http://x\r\ny", "http://x y"],
)  # fmt: skip
def test_addresses_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(AddressError, match="--url") as caught:
        parse_address(url)
    assert "secret" not in str(caught.value)


TIER = SimTier("t", Slo(), 1.0, 1.0)


@settings(deadline=None)
@given(st.integers(1, 3000), st.lists(st.integers(0, 5), max_size=4), st.integers(0, 1 << 20))
def test_token_prompts_are_exactly_as_long_as_wanted(
    count: int, blocks: list[int], number: int
) -> None:
    """All ids within the range, equal for equal seeds, and no two requests begin alike."""
    request = SimRequest("r", 0, count, 1, TIER, "x", tuple(blocks))
    prompts = PromptMaker(1, 300, 999)
    ids = json.loads(prompts.tokens(request, number))
    assert len(ids) == count
    assert 300 <= min(ids) <= max(ids) <= 999
    assert prompts.tokens(request, number) == PromptMaker(1, 300, 999).tokens(request, number)
    salted = json.loads(PromptMaker(1, 300, 999, salt="another run").tokens(request, number))
    if count >= 16:  # a block of a prefix cache is no shorter
        assert ids[:16] != salted[:16]
    other = json.loads(prompts.tokens(request, number + 1))
    shared = min(count, 512 * len(blocks))
    assert ids[:shared] == other[:shared]
    if count >= shared + 4:
        assert ids[shared : shared + 4] != other[shared : shared + 4]


@pytest.mark.parametrize(
    ("dialect", "pins"),
    [
        (Dialect("m", Form.TOKENS, Pin.BOTH), {"min_tokens": 7, "ignore_eos": True}),
        (Dialect("m", Form.TEXT, Pin.MIN_TOKENS), {"min_tokens": 7}),
        (Dialect("m", Form.CHAT, Pin.IGNORE_EOS), {"ignore_eos": True}),
        (Dialect("m", Form.CHAT, Pin.NONE, usage=False), {}),
    ],
)
def test_a_body_asks_for_just_that(dialect: Dialect, pins: dict[str, Any]) -> None:
    request = SimRequest("r", 0, 20, 7, TIER, "x")
    body = json.loads(dialect.body(request, 3, PromptMaker(1)))
    prompt = body.pop("messages")[0]["content"] if dialect.form is Form.CHAT else body.pop("prompt")
    assert len(prompt if isinstance(prompt, list) else prompt.split()) == 20
    if dialect.usage:
        assert body.pop("stream_options")["include_usage"] is True
    assert body == {"model": "m", "max_tokens": 7, "temperature": 0, "stream": True, **pins}
