"""One life of the engine's process as the door sees it: born, heard, spoken to, buried.

It knows processes, pipes and the socket; it neither restarts anything nor knows what a stream is.
The two sides are joined by an inherited socket pair: no file to guard or to leave behind, and the
kernel itself reports the death of either side. The child's standard input stays open for its whole
life and carries only the config; its end tells the child that its parent is gone.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import cast

import msgspec

from engine.core.clock import Clock
from engine.core.errors import EngineUnavailable
from engine.serving.config import EngineConfig
from engine.serving.messages import ChannelClosed, Command, Output, command_codec, output_codec

Process = subprocess.Popen[bytes]

SOCKET_BUFFER_BYTES = 4 * 1024 * 1024  # a wish: the kernel caps it at net.core.wmem_max
_LINE_CHARS = 200
_EXIT_WAIT_S = 5.0  # for a process whose socket has closed to be gone
_STDERR_WAIT_S = 1.0  # for the last lines; a grandchild may hold the pipe for longer


async def ended(process: Process) -> None:
    """Wait until a process is gone; one that takes too long is killed."""
    try:
        await asyncio.to_thread(process.wait, _EXIT_WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        await asyncio.to_thread(process.wait)


class _StderrTail(asyncio.Protocol):
    """Passes the child's output through to this process and remembers the end of it."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._tail = bytearray()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.closed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        """Copy, and keep the newest bytes."""
        text = self._decoder.decode(data)
        # Nobody may be there to read it; the engine must not stumble over that.
        with contextlib.suppress(OSError, ValueError):
            if sys.stderr is not None:
                sys.stderr.write(text)
        self._tail += data
        del self._tail[: -self._limit_bytes]

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing will be written any more."""
        self.closed.set()

    def lines(self, count: int) -> list[str]:
        """Return the last non-empty lines, shortened."""
        text = self._tail.decode("utf-8", "replace")
        written = [line.strip() for line in text.splitlines() if line.strip()]
        return [line[:_LINE_CHARS] for line in written[-count:]]


class EngineChild(asyncio.Protocol):
    """A running child process and the channel to it; made by `spawn`, ended by `bury`.

    `on_output` is called for every message, `closed` is set when the channel has ended for
    whatever reason, right after `on_closed` was called. `last_heard_ns` is when the latest bytes
    came. Where the child is to serve others as well, `listener` is where they connect; it stays
    open here.
    """

    def __init__(
        self,
        clock: Clock,
        on_output: Callable[[Output], None],
        on_closed: Callable[[], None],
        listener: socket.socket | None = None,
    ) -> None:
        self.closed = asyncio.Event()
        self.last_heard_ns = clock.now_ns()
        self._clock = clock
        self._on_output = on_output
        self._on_closed = on_closed
        self._listener = listener
        self._commands = command_codec()
        self._outputs = output_codec()
        self._process: Process | None = None
        self._socket: socket.socket | None = None
        self._stderr: _StderrTail | None = None
        self._channel: asyncio.WriteTransport | None = None
        self._stderr_pipe: asyncio.ReadTransport | None = None

    async def spawn(self, config: EngineConfig, environment: Mapping[str, str]) -> None:
        """Start the process and hand it the config; returns before it has loaded anything.

        Raises OSError when the machine will not start one. Call `bury` in every case.
        """
        loop = asyncio.get_running_loop()
        self._socket, process = self._launch(environment)
        assert process.stdin is not None
        # A child that dies at once closes the channel, and its last words tell why.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(msgspec.json.encode(config) + b"\n")
            process.stdin.flush()
        self._stderr_pipe, self._stderr = await loop.connect_read_pipe(
            lambda: _StderrTail(config.stderr_tail_bytes), process.stdout
        )
        await loop.create_unix_connection(lambda: self, sock=self._socket)

    def _launch(self, environment: Mapping[str, str]) -> tuple[socket.socket, Process]:
        ours, theirs = socket.socketpair()
        handed = [theirs.fileno()]
        if self._listener is not None:
            handed.append(self._listener.fileno())
        with theirs:
            try:
                for end in (ours, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
                ours.setblocking(False)
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "engine.serving.child", *map(str, handed)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=handed,
                    env=dict(environment),
                    process_group=0,  # the terminal's Ctrl-C is for the door, which then drains
                )
            except OSError:
                ours.close()
                raise
        return ours, self._process

    @property
    def pid(self) -> int:
        """The child's process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def backlog_bytes(self) -> int:
        """Bytes of commands that the child has not taken yet, as far as they are queued here."""
        return 0 if self._channel is None else self._channel.get_write_buffer_size()

    def send(self, command: Command) -> None:
        """Queue one command; never waits. Raises EngineUnavailable when the channel has ended."""
        if self._channel is None or self._channel.is_closing():
            raise EngineUnavailable("the engine is gone")
        self._channel.write(self._commands.encode(command))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The channel stands (called by asyncio)."""
        # uvloop's transports are no subclasses of asyncio's, so nothing can be asserted here.
        self._channel = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Bytes have come (called by asyncio)."""
        self.last_heard_ns = self._clock.now_ns()
        try:
            outputs = self._outputs.feed(data)
        except ChannelClosed:
            self.end()
            return
        for output in outputs:
            self._on_output(output)

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel has ended (called by asyncio)."""
        self._on_closed()
        self.closed.set()

    def end(self) -> None:
        """End process and channel at once; `on_closed` is called in the loop's next round."""
        assert self._process is not None
        assert self._channel is not None
        self._process.kill()
        self._channel.abort()

    async def bury(self) -> int:
        """Make sure that process, pipes and socket are gone; return the exit code.

        A process whose channel has ended gets a moment to leave by itself, so that its exit code
        tells why; any other is killed.
        """
        if self._channel is not None:
            self._channel.abort()
        elif self._socket is not None:
            self._socket.close()
        process = self._process
        if process is None:
            return 0
        if not self.closed.is_set():
            process.kill()
        await ended(process)
        await self._close_pipes(process)
        assert process.returncode is not None
        return process.returncode

    async def _close_pipes(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        if self._stderr is None or self._stderr_pipe is None:
            process.stdout.close()
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stderr.closed.wait(), _STDERR_WAIT_S)
            self._stderr_pipe.close()
            await self._stderr.closed.wait()
        if self._channel is not None:
            await self.closed.wait()

    def obituary(self, returncode: int) -> str:
        """Return one line: how the process ended, and its last words."""
        words = self._stderr.lines(3) if self._stderr is not None else []
        return " | ".join([describe_exit(returncode), *words])


def describe_exit(returncode: int) -> str:
    """Return an exit code as a clause that an operator understands."""
    if returncode >= 0:
        return f"exit code {returncode}"
    name = signal.Signals(-returncode).name
    if -returncode == signal.SIGKILL:
        return f"killed by {name} (often: the machine ran out of memory)"
    return f"killed by {name}"
