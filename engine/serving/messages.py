"""The words the door and the engine's process exchange, and their bytes; it knows no socket.

Every message is an immutable value, encoded as MessagePack with a four-byte little-endian length
in front. The records of engine/core cross as they are: msgspec packs and unpacks a step with 64
events in well under 100 microseconds (benchmarks/engine_ipc.py), less than a columnar form of half
the size takes once its records are rebuilt in Python.
"""

from __future__ import annotations

import struct
from typing import Generic, TypeVar

import msgspec

from engine.core.decision import RequestRecord
from engine.core.errors import EngineError
from engine.core.request import RequestOrder
from engine.core.stats import Snapshot, StepStats, TokenEvent
from engine.serving.client import EngineInfo

MAX_FRAME_BYTES = 256 * 1024 * 1024
_HEADER = struct.Struct("<I")


class ChannelClosed(EngineError):
    """The other side is gone, or speaks nonsense; nothing more can be sent or received."""


class Submit(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Take this request."""

    order: RequestOrder


class Abort(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """End the request as CANCELLED."""

    request_id: str


class Stop(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """End the request as STOP after its first `num_output_tokens`."""

    request_id: str
    num_output_tokens: int


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Answer with the same number as soon as the running step is over."""

    number: int


class Shutdown(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Fail what is open, say so, and end."""


class Explain(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Say what was decided about this request, in an answer with the same number."""

    number: int
    request_id: str


Command = Submit | Abort | Stop | Ping | Shutdown | Explain


class Progress(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """How far loading has come; `fraction` of `stage`, 0 to 1."""

    stage: str
    fraction: float


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The engine takes requests from now on."""

    info: EngineInfo
    snapshot: Snapshot


class StepOutput(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Everything one step produced; `stats` is None where only commands were applied."""

    events: tuple[TokenEvent, ...]
    stats: StepStats | None
    snapshot: Snapshot


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The answer to a Ping."""

    number: int


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The engine ends: one clear line; `loading` tells a bad model from a crash in service."""

    detail: str
    loading: bool


class Explained(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The answer to an Explain; None where the engine knows nothing of the request."""

    number: int
    record: RequestRecord | None


Output = Progress | Ready | StepOutput | Pong | Failed | Explained

T = TypeVar("T")


class Codec(Generic[T]):
    """Messages of one direction to framed bytes and back; the reading side keeps a partial frame.

    `Codec(Command)` on the engine's side reads what `Codec(Command)` on the door's side wrote.
    """

    __slots__ = ("_buffer", "_decoder", "_encoder")

    def __init__(self, message_type: object) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(message_type)
        self._buffer = bytearray()

    def encode(self, message: T) -> bytes:
        """Return the frame of one message: length, then MessagePack."""
        payload = self._encoder.encode(message)
        return _HEADER.pack(len(payload)) + payload

    def feed(self, data: bytes) -> list[T]:
        """Take bytes in any portions; return the messages that are now complete, in order.

        Raises ChannelClosed when the bytes are no message of this direction.
        """
        buffer = self._buffer
        buffer += data
        messages: list[T] = []
        start = 0
        while len(buffer) - start >= _HEADER.size:
            (length,) = _HEADER.unpack_from(buffer, start)
            if length > MAX_FRAME_BYTES:
                raise ChannelClosed(f"a message of {length} bytes announced; the channel is broken")
            end = start + _HEADER.size + length
            if end > len(buffer):
                break
            with memoryview(buffer) as view:
                messages.append(self._decode(view[start + _HEADER.size : end]))
            start = end
        del buffer[:start]
        return messages

    def _decode(self, payload: memoryview) -> T:
        try:
            with payload:
                return self._decoder.decode(payload)
        except msgspec.MsgspecError as error:
            raise ChannelClosed(f"an unreadable message: {error}") from error


def command_codec() -> Codec[Command]:
    """Return a codec of the direction door to engine."""
    return Codec(Command)


def output_codec() -> Codec[Output]:
    """Return a codec of the direction engine to door."""
    return Codec(Output)
