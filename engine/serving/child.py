"""The engine's process from the inside: `python -m engine.serving.child FD [LISTENER]`.

Started by spawn.py. It joins the inherited socket to the engine loop, and with a listening socket
whoever connects there; it never outlives its parent. It knows no HTTP, no stream and no restart:
whatever goes wrong, it says one line and ends.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import select
import signal
import socket
import sys
import threading

import msgspec

from engine.core.clock import NS_PER_S, MonotonicClock
from engine.core.errors import ModelLoadError
from engine.serving.build import build_engine
from engine.serving.config import EngineConfig
from engine.serving.loop import EngineLoop
from engine.serving.messages import (
    ChannelClosed,
    Command,
    Failed,
    Output,
    Progress,
    Ready,
    command_codec,
    output_codec,
)
from engine.serving.shared import SharedChannel

EXIT_LOAD_FAILED = 2
EXIT_CRASHED = 70  # EX_SOFTWARE of sysexits.h
EXIT_ORPHANED = 71

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_STDIN = 0
_RECEIVE_BYTES = 1 << 20


class SocketChannel:
    """Inbox and outbox over one blocking stream socket, used by one thread."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._commands = command_codec()
        self._outputs = output_codec()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def receive(self, wait_s: float | None) -> list[Command]:
        """See Inbox: all complete commands that have arrived."""
        commands: list[Command] = []
        while True:
            if commands:
                wait_ms: float | None = 0
            else:
                wait_ms = None if wait_s is None else wait_s * 1000
            if not self._poll.poll(wait_ms):
                return commands
            data = self._socket.recv(_RECEIVE_BYTES)
            if not data:
                raise ChannelClosed("the parent has closed the channel")
            commands += self._commands.feed(data)

    def send(self, output: Output) -> None:
        """See Outbox: waits while the parent is more than a socket buffer behind."""
        try:
            self._socket.sendall(self._outputs.encode(output))
        except OSError as error:
            raise ChannelClosed(f"the parent does not read any more: {error}") from error


def main() -> None:
    """Read the config from standard input, build the engine, serve until told to end."""
    # Service managers signal a whole group: the door drains first, then it ends this process.
    for group_signal in (signal.SIGINT, signal.SIGTERM):
        signal.signal(group_signal, signal.SIG_IGN)
    sock, *listeners = [socket.socket(fileno=int(number)) for number in sys.argv[1:]]
    for inherited in (sock, *listeners):
        inherited.set_inheritable(False)  # a compiler started here must not keep it open
    # Unbuffered: a thread blocked inside a buffered reader would break the interpreter's exit.
    with open(_STDIN, "rb", buffering=0, closefd=False) as stdin:
        config = msgspec.json.decode(stdin.readline(), type=EngineConfig)
    tie_to_parent(_STDIN)
    logging.basicConfig(level=logging.INFO, format="engine: %(levelname)s: %(message)s")
    os.nice(config.nice)
    channel = SharedChannel(sock, listeners[0]) if listeners else SocketChannel(sock)
    try:
        serve(config, channel)
    except ChannelClosed:
        sys.exit(EXIT_ORPHANED)


def serve(config: EngineConfig, channel: SocketChannel | SharedChannel) -> None:
    """Load and run; leaves by SystemExit with a code that says why unless told to shut down."""
    clock = MonotonicClock()
    began_ns = clock.now_ns()

    def progress(stage: str, fraction: float) -> None:
        channel.send(Progress(stage, fraction))

    try:
        engine = build_engine(config, progress)
    except ModelLoadError as error:
        channel.send(Failed(str(error), loading=True))
        sys.exit(EXIT_LOAD_FAILED)
    # What was loaded lives as long as the process: the collector need not walk it ever again.
    gc.collect()
    gc.freeze()
    loop = EngineLoop(engine, clock, channel, channel)
    load_s = (clock.now_ns() - began_ns) / NS_PER_S
    channel.send(Ready(engine.describe(os.getpid(), load_s), engine.core.snapshot(clock.now_ns())))
    if not loop.run():
        sys.exit(EXIT_CRASHED)


def tie_to_parent(lifeline: int) -> None:
    """End this process when its parent ends, however that happens.

    The kernel does it on Linux, even while this process is stuck in native code. Everywhere, a
    thread waits for the end of the pipe `lifeline`, whose other end only the parent holds.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def wait_for_the_end() -> None:
        while os.read(lifeline, 1):
            pass
        os._exit(EXIT_ORPHANED)

    threading.Thread(target=wait_for_the_end, name="lifeline", daemon=True).start()


if __name__ == "__main__":
    main()
