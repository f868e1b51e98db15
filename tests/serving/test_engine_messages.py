"""Every message survives its bytes, in whatever portions they arrive; nonsense is noticed."""

from __future__ import annotations

import struct
from dataclasses import fields

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.batch import TopLogprob
from engine.core.decision import Decision, DecisionKind, Reason, RequestRecord
from engine.core.errors import RefusalReason
from engine.core.load import ClassLoad, EngineLoad, OpenPrompt, Release
from engine.core.prompt_plan import PromptOrder, PromptPlan
from engine.core.request import FinishReason, RequestOrder, SamplingParams, Slo, TbtMode
from engine.core.stats import RequestStats, Snapshot, StepStats, TokenEvent
from engine.serving.client import EngineInfo
from engine.serving.messages import (
    MAX_FRAME_BYTES,
    Abort,
    ChannelClosed,
    Codec,
    Command,
    Explain,
    Explained,
    Failed,
    Output,
    Ping,
    Pong,
    Progress,
    Ready,
    Shutdown,
    StepOutput,
    Stop,
    Submit,
    command_codec,
    output_codec,
)

counts = st.integers(0, 2**62)
numbers = st.floats(allow_nan=False)  # NaN is carried too, but is not equal to itself
ids = st.text(max_size=40)
maybe_ns = st.none() | counts

sampling = st.builds(
    SamplingParams,
    max_tokens=counts,
    seed=st.integers(0, 2**64 - 1),
    temperature=numbers,
    logit_bias=st.lists(st.tuples(counts, numbers), max_size=3).map(tuple),
    stop_token_ids=st.lists(counts, max_size=3).map(tuple),
    logprobs=st.none() | counts,
)
slos = st.builds(Slo, rank=counts, tbt_mode=st.sampled_from(TbtMode), pace_ns=counts)
orders = st.builds(
    RequestOrder,
    id=ids,
    prompt=st.lists(counts, max_size=50).map(tuple),
    sampling=sampling,
    arrival_ns=counts,
    tenant=ids,
    cache_salt=ids,
    weight=numbers,
    slo=slos,
)
request_stats = st.builds(
    RequestStats,
    request_id=ids,
    tenant=ids,
    tier=ids,
    finish_reason=st.sampled_from(FinishReason),
    arrival_ns=counts,
    finished_ns=counts,
    first_scheduled_ns=maybe_ns,
    first_token_ns=maybe_ns,
    last_token_ns=maybe_ns,
    num_prompt_tokens=counts,
    num_cached_tokens=counts,
    num_output_tokens=counts,
    preemptions=counts,
    late_tokens=counts,
    detail=st.text(max_size=80),
)
events = st.builds(
    TokenEvent,
    request_id=ids,
    token_id=st.none() | counts,
    at_ns=counts,
    logprob=st.none() | numbers,
    top=st.lists(st.builds(TopLogprob, counts, numbers), max_size=3).map(tuple),
    finish_reason=st.none() | st.sampled_from(FinishReason),
    stats=st.none() | request_stats,
)
step_stats = st.builds(StepStats, **{f.name: counts for f in fields(StepStats)})
class_loads = st.builds(
    ClassLoad,
    ids,
    counts,
    st.lists(
        st.builds(OpenPrompt, counts, counts, counts, st.booleans(), st.booleans()), max_size=3
    ).map(tuple),
    lost_tokens=counts,
)
plans = st.builds(PromptPlan, order=st.sampled_from(PromptOrder), second_weight=numbers)
loads = st.builds(
    EngineLoad,
    counts,
    st.lists(class_loads, max_size=3).map(tuple),
    plans,
    prompt_rate=numbers,
    releases=st.lists(st.builds(Release, counts, counts, counts), max_size=3).map(tuple),
    draining=st.booleans(),
)
KINDS = {
    "EngineLoad | None": st.none() | loads,
    "bool": st.booleans(),
    "str": ids,
    "int": counts,
    "float": numbers,
    "float | None": st.none() | numbers,
    "tuple[tuple[str, int], ...]": st.lists(st.tuples(ids, counts), max_size=3).map(tuple),
    "tuple[tuple[str, float], ...]": st.lists(st.tuples(ids, numbers), max_size=3).map(tuple),
}
snapshots = st.builds(Snapshot, **{f.name: KINDS[str(f.type)] for f in fields(Snapshot)})
infos = st.builds(EngineInfo, **{f.name: KINDS[str(f.type)] for f in fields(EngineInfo)})
waits = st.lists(st.tuples(st.sampled_from(Reason), counts), max_size=3).map(tuple)
decisions = st.builds(
    Decision,
    st.sampled_from(DecisionKind),
    counts,
    counts,
    counts,
    counts,
    st.none() | st.sampled_from(Reason),
    st.booleans(),
    counts,
    counts,
    counts,
    maybe_ns,
    others=st.lists(st.tuples(ids, ids), max_size=3).map(tuple),
    waits=waits,
    first_waits=waits,
    detail=ids,
)
RECORD_KINDS = KINDS | {
    "int | None": maybe_ns,
    "bool": st.booleans(),
    "TbtMode": st.sampled_from(TbtMode),
    "tuple[Decision, ...]": st.lists(decisions, max_size=4).map(tuple),
    "RefusalReason | None": st.none() | st.sampled_from(RefusalReason),
    "RequestStats | None": st.none() | request_stats,
}
records = st.builds(
    RequestRecord, **{f.name: RECORD_KINDS[str(f.type)] for f in fields(RequestRecord)}
)
unhurried = settings(deadline=None, max_examples=60)

commands = st.one_of(
    st.builds(Submit, orders),
    st.builds(Abort, ids),
    st.builds(Stop, ids, counts),
    st.builds(Ping, counts),
    st.just(Shutdown()),
    st.builds(Explain, counts, ids),
)
outputs = st.one_of(
    st.builds(Progress, ids, numbers),
    st.builds(Ready, infos, snapshots),
    st.builds(
        StepOutput, st.lists(events, max_size=4).map(tuple), st.none() | step_stats, snapshots
    ),
    st.builds(Pong, counts),
    st.builds(Failed, ids, st.booleans()),
    st.builds(Explained, counts, st.none() | records),
)


Message = Command | Output


def through(codec: Codec, messages: list[Message], cuts: list[int]) -> list[Message]:
    """Encode the messages, deliver the bytes in portions of the sizes `cuts`, then the rest."""
    data = b"".join(codec.encode(message) for message in messages)
    received: list[Message] = []
    for size in [*cuts, len(data)]:
        received += codec.feed(data[:size])
        data = data[size:]
    return received


cuts = st.lists(st.integers(0, 200), max_size=8)


@unhurried
@given(st.lists(commands, max_size=5), cuts)
def test_commands_survive_their_bytes(messages: list[Command], sizes: list[int]) -> None:
    """Whatever the door says arrives equal and in order, however the bytes are cut."""
    assert through(command_codec(), messages, sizes) == messages


@unhurried
@given(st.lists(outputs, max_size=5), cuts)
def test_outputs_survive_their_bytes(messages: list[Output], sizes: list[int]) -> None:
    """Whatever the engine says arrives equal and in order, however the bytes are cut."""
    assert through(output_codec(), messages, sizes) == messages


def test_a_step_of_sixty_four_streams_is_small() -> None:
    """A full decode step costs some 130 bytes a stream: a socket buffer holds dozens of steps."""
    now_ns = 10**15
    step = StepOutput(
        tuple(TokenEvent(f"chatcmpl-{i:032x}", 150_000, now_ns) for i in range(64)),
        StepStats(*range(len(fields(StepStats)))),
        Snapshot(10**6, now_ns, 1, 64, 0, 10**6, 10**5, 10**5, (("free", 1),), (("free", 64),)),
    )
    size = len(output_codec().encode(step))
    assert 64 * 41 < size < 64 * 145


def test_nonsense_closes_the_channel() -> None:
    """Bytes that are no message, or announce an absurd one, raise instead of waiting for ever."""
    payload = msgspec.msgpack.encode(["no", "such", "message"])
    with pytest.raises(ChannelClosed, match="unreadable"):
        command_codec().feed(struct.pack("<I", len(payload)) + payload)
    with pytest.raises(ChannelClosed, match="announced"):
        command_codec().feed(struct.pack("<I", MAX_FRAME_BYTES + 1))
    with pytest.raises(ChannelClosed, match="unreadable"):
        output_codec().feed(command_codec().encode(Submit(AN_ORDER)))


AN_ORDER = RequestOrder("a", (1, 2), SamplingParams(max_tokens=1), 0)
