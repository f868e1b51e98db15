"""One worker's process as its parent sees it: born, spoken to, heard, buried; it restarts nothing.

Both are joined by an inherited socket pair, so that the kernel itself tells of the death of either.
The worker's standard input carries its order and stays open for its life: its end tells a worker
whose event loop stands still that nobody is there any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import cast

import msgspec

from engine.core.clock import Clock
from engine.serving.spawn import ended
from gateway.workers.words import Order, ToParent, ToWorker, encode

Process = subprocess.Popen[bytes]
MakeOrder = Callable[[int], Order]  # of the descriptor to speak through

# It must find the very modules that its parent was made of, wherever those came from.
_START = "import sys; sys.path[:] = {path!r}; from gateway.workers.main import main; main()"


class WorkerChild(asyncio.Protocol):
    """A running worker; made by `spawn`, ended by `bury`. `closed` is set when its channel ends."""

    def __init__(self, clock: Clock, on_word: Callable[[ToParent], None]) -> None:
        self.closed = asyncio.Event()
        self.last_heard_ns = clock.now_ns()
        self._clock = clock
        self._on_word = on_word
        self._decoder: msgspec.json.Decoder[ToParent] = msgspec.json.Decoder(ToParent)
        self._buffer = bytearray()
        self._process: Process | None = None
        self._channel: asyncio.WriteTransport | None = None

    async def spawn(self, make_order: MakeOrder, inherited: Sequence[int]) -> None:
        """Start the process, which gets the descriptors `inherited`; raises OSError.

        Call `bury` in every case.
        """
        ours = self._launch(make_order, inherited)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)

    def _launch(self, make_order: MakeOrder, inherited: Sequence[int]) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                ours.setblocking(False)
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _START.format(path=sys.path)],
                    stdin=subprocess.PIPE,
                    pass_fds=(theirs.fileno(), *inherited),
                    process_group=0,  # the terminal's Ctrl-C is for the parent, which then drains
                )
            except OSError:
                ours.close()
                raise
            assert self._process.stdin is not None
            # A child that dies at once closes the channel.
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(encode(make_order(theirs.fileno())))
                self._process.stdin.flush()
        return ours

    @property
    def pid(self) -> int:
        """Its process id; 0 before it was born."""
        return 0 if self._process is None else self._process.pid

    def send(self, word: ToWorker) -> None:
        """Say something; what a dead worker does not hear is lost."""
        if self._channel is not None and not self._channel.is_closing():
            self._channel.write(encode(word))

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()

    async def bury(self) -> int:
        """Make sure that process and channel are gone; return the exit code."""
        process = self._process
        if process is None:
            return 0
        if not self.closed.is_set():
            process.kill()
        await ended(process)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        if self._channel is not None:
            self._channel.abort()
            await self.closed.wait()
        assert process.returncode is not None
        return process.returncode

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The channel stands (called by asyncio)."""
        # uvloop's transports are no subclasses of asyncio's, so nothing can be asserted here.
        self._channel = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Bytes have come (called by asyncio)."""
        self.last_heard_ns = self._clock.now_ns()
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = bytearray(rest)
        for line in lines:
            try:
                self._on_word(self._decoder.decode(line))
            except msgspec.MsgspecError:
                self.kill()
                return

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel has ended (called by asyncio)."""
        self.closed.set()
