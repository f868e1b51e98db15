"""Shares the connections of one listening socket fairly among workers: the least busy one takes.

All workers wait for the same socket, and the kernel wakes them all; whoever is quicker would take a
whole burst. So each keeps how many connections it has in a small file that all have mapped, and
leaves a new one to those who have fewer. Who has fewer may be stuck: after a moment the connection
is taken anyway, and the next one after a shorter moment. A worker that cannot answer yet takes none
while another can. It knows sockets and numbers, no request.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from socket import socket
from typing import Protocol, cast

logger = logging.getLogger(__name__)

_NUMBER = struct.Struct("<I")
AWAY = 0xFFFF_FFFF  # of a worker that is not there, or cannot answer
TICK_S = 0.05
STEP_ASIDE_S = 0.001
FAULT_PAUSE_S = 1.0
PATIENCE = 20  # times that a connection is left to others
SHORT_PATIENCE = 4  # once that was in vain


class Counted(Protocol):
    """A connection that says when it is over."""

    on_lost: Callable[[], None]


def make_table(path: Path, count: int) -> None:
    """Make the file, in which nobody is there yet; raises OSError."""
    path.write_bytes(_NUMBER.pack(AWAY) * count)


class LoadTable:
    """How many connections each worker has; every number is written by its own worker.

    Four aligned bytes are written at once, and a number that is a moment old does no harm.
    """

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), 0)

    def write(self, index: int, value: int) -> None:
        """Tell the others."""
        _NUMBER.pack_into(self._bytes, index * _NUMBER.size, value)

    def least_but(self, index: int) -> int:
        """Return the least of all others; AWAY where there is none."""
        numbers = [number for (number,) in _NUMBER.iter_unpack(self._bytes)]
        return min((n for i, n in enumerate(numbers) if i != index), default=AWAY)

    def close(self) -> None:
        """Let go of the file."""
        self._bytes.close()


class Acceptor:
    """Takes connections for one worker; has the two methods by which uvicorn ends a server."""

    def __init__(
        self,
        bound: socket,
        table: LoadTable,
        index: int,
        *,
        make: Callable[[], asyncio.Protocol],
        is_ready: Callable[[], bool],
    ) -> None:
        """`make` returns what speaks on a new connection, a `Counted` protocol."""
        self._loop = asyncio.get_running_loop()
        self._bound = bound
        self._table = table
        self._index = index
        self._make = make
        self._is_ready = is_ready
        self._num_open = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._patience = PATIENCE
        self._later: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._listen()
        self._tick = self._loop.call_later(0, self._on_tick)

    def publish(self) -> None:
        """Tell the others how many connections there are here."""
        if not self._is_closed:
            own = self._num_open if self._is_ready() else AWAY
            self._table.write(self._index, own)

    def close(self) -> None:
        """Take nothing any more."""
        if self._is_closed:
            return
        self._table.write(self._index, AWAY)
        self._is_closed = True
        self._loop.remove_reader(self._bound)
        self._tick.cancel()
        if self._later is not None:
            self._later.cancel()
        self._table.close()

    async def wait_closed(self) -> None:
        """Nothing is left to wait for."""

    def _on_tick(self) -> None:
        self.publish()
        self._tick = self._loop.call_later(TICK_S, self._on_tick)

    def _listen(self) -> None:
        self._later = None
        self._loop.add_reader(self._bound, self._on_readable)

    def _on_readable(self) -> None:
        """Take what is ours to take; leave the rest to others for a moment."""
        while self._is_our_turn():
            self._patience = PATIENCE
            if not self._accept():
                return
        self._patience -= self._is_ready()
        if self._patience <= 0:
            self._patience = SHORT_PATIENCE
            self._accept()
        self._step_aside(STEP_ASIDE_S)

    def _step_aside(self, seconds: float) -> None:
        """Look away from the socket for a while."""
        if self._later is None:
            self._loop.remove_reader(self._bound)
            self._later = self._loop.call_later(seconds, self._listen)

    def _is_our_turn(self) -> bool:
        least = self._table.least_but(self._index)
        return least == AWAY or (self._is_ready() and self._num_open <= least)

    def _accept(self) -> bool:
        """Take one connection; False where there is none."""
        try:
            taken, _ = self._bound.accept()
        except (BlockingIOError, ConnectionError):
            return False
        except OSError as error:  # most likely there are no descriptors left
            logger.error("no connection can be taken: %s", error.strerror)
            self._step_aside(FAULT_PAUSE_S)
            return False
        taken.setblocking(False)
        self._num_open += 1
        self.publish()
        task = self._loop.create_task(self._connect(taken))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _connect(self, taken: socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_counted, taken)
        except OSError:
            taken.close()
            self._lost()

    def _make_counted(self) -> asyncio.Protocol:
        protocol = self._make()
        cast(Counted, protocol).on_lost = self._lost
        return protocol

    def _lost(self) -> None:
        self._num_open -= 1
        self.publish()
