"""One engine, many doors: joins the engine's loop to its parent and to every door that connects.

The parent starts, watches and ends the engine; the doors come through a listening socket that the
parent holds, so it survives engines. Who handed in a request gets its events, and only they may end
it; what a step took, and the engine's state after it, go to all. A door whose connection ends has
its requests aborted before the next step. Neither a door that reads slowly nor one that speaks
nonsense holds up the others: unsent bytes are kept for it up to a bound, then it is let go.

It knows bytes and ids; what a request is, and when a step is due, it does not.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import select
import socket
import struct
from collections.abc import Callable

import msgspec

from engine.core.errors import RefusalReason, RequestRefused
from engine.core.stats import Snapshot, TokenEvent
from engine.serving.loop import refused_event
from engine.serving.messages import (
    Abort,
    ChannelClosed,
    Codec,
    Command,
    Explain,
    Explained,
    Output,
    Ping,
    Pong,
    Ready,
    Shutdown,
    StepOutput,
    Stop,
    Submit,
    command_codec,
    output_codec,
)

logger = logging.getLogger(__name__)

MAX_UNSENT_BYTES = 64 * 1024 * 1024  # for one door; the events of thousands of whole answers
_RECEIVE_BYTES = 1 << 20
_FRAME = struct.Struct("<I")
# A StepOutput as messages.py defines it: an array of four, its tag first.
_STEP_OUTPUT = b"\x94\x02"


class Link:
    """The connection of one door: what came in, what could not be sent yet, whose requests."""

    __slots__ = ("codec", "is_lost", "open", "sock", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.codec: Codec[Command] = command_codec()
        self.open: set[str] = set()
        self.unsent = bytearray()
        self.is_lost = False

    def send(self, frame: bytes) -> None:
        """Send as much as the socket takes and keep the rest; never waits."""
        if self.is_lost:
            return
        if not self.unsent:
            try:
                frame = frame[self.sock.send(frame) :]
            except BlockingIOError:
                pass
            except OSError:
                self.is_lost = True
                return
        self.unsent += frame
        if len(self.unsent) > MAX_UNSENT_BYTES:
            logger.warning("a door has not read for %d bytes; it is let go", len(self.unsent))
            self.is_lost = True

    def send_rest(self) -> None:
        """Send what was kept, as far as the socket takes it."""
        try:
            del self.unsent[: self.sock.send(self.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self.is_lost = True

    def receive(self) -> list[Command]:
        """Return the commands that are complete; marks the link as lost at its end."""
        try:
            data = self.sock.recv(_RECEIVE_BYTES)
            if data:
                return self.codec.feed(data)
        except BlockingIOError:
            return []
        except (OSError, ChannelClosed):
            pass
        self.is_lost = True
        return []


class StepFrames:
    """The frames of one StepOutput for several readers: what all get is packed once."""

    __slots__ = ("_encode", "_rest")

    def __init__(self, encoder: msgspec.msgpack.Encoder, output: StepOutput) -> None:
        self._encode = encoder.encode
        self._rest = self._encode(output.stats) + self._encode(output.snapshot)

    def frame(self, events: tuple[TokenEvent, ...]) -> bytes:
        """Return the frame of the same step with these events."""
        payload = b"".join((_STEP_OUTPUT, self._encode(events), self._rest))
        return _FRAME.pack(len(payload)) + payload


class SharedChannel:
    """Inbox and outbox over the parent's socket and those of all doors; used by one thread.

    Only the parent may shut the engine down, and it gets no events: it hands in no requests.
    """

    def __init__(self, parent: socket.socket, listener: socket.socket) -> None:
        parent.setblocking(True)
        listener.setblocking(False)
        self._parent = parent
        self._listener = listener
        self._parent_codec = command_codec()
        self._outputs = output_codec()
        self._encoder = msgspec.msgpack.Encoder()
        self._links: dict[int, Link] = {}
        self._owners: dict[str, Link] = {}
        self._askers: dict[int, tuple[Link | None, int]] = {}
        self._numbers = itertools.count(1)
        self._ready: Ready | None = None
        self._snapshot: Snapshot | None = None
        self._poll = select.poll()
        self._poll.register(parent, select.POLLIN)

    # ---- inbox ----

    def receive(self, wait_s: float | None) -> list[Command]:
        """See Inbox: all complete commands that have arrived, and an abort for each orphan."""
        commands: list[Command] = []
        while True:
            commands += self._bury_lost()
            if commands:
                wait_ms: float | None = 0
            else:
                wait_ms = None if wait_s is None else wait_s * 1000
            may_be_more = wait_ms is None
            for fd, mask in self._poll.poll(wait_ms):
                may_be_more |= self._serve(fd, mask, commands)
            if not may_be_more and not self._has_lost():
                return commands

    def _serve(self, fd: int, mask: int, commands: list[Command]) -> bool:
        """Do what one descriptor asks for; True where there may be more of it at once."""
        if fd == self._parent.fileno():
            data = self._parent.recv(_RECEIVE_BYTES)
            if not data:
                raise ChannelClosed("the parent has closed the channel")
            for command in self._parent_codec.feed(data):
                commands += self._taken(None, command)
            return True
        if fd == self._listener.fileno():
            self._accept()
            return True
        link = self._links[fd]
        if mask & select.POLLOUT:
            link.send_rest()
            self._watch(link)
        if mask & ~select.POLLOUT:
            for command in link.receive():
                commands += self._taken(link, command)
            return True
        return False

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            sock, _ = self._listener.accept()
            link = self._links[sock.fileno()] = Link(sock)
            self._poll.register(sock, select.POLLIN)
            assert self._ready is not None
            assert self._snapshot is not None
            self._send(link, self._outputs.encode(Ready(self._ready.info, self._snapshot)))

    def _taken(self, link: Link | None, command: Command) -> list[Command]:
        """Return what the loop shall carry out of what `link` (None: the parent) has sent."""
        match command:
            case Submit(order):
                assert link is not None, "the parent hands in no requests"
                if order.id in self._owners:
                    self._refuse(link, command)
                    return []
                self._owners[order.id] = link
                link.open.add(order.id)
            case Abort(request_id) | Stop(request_id, _):
                if self._owners.get(request_id) is not link:
                    return []
            case Ping(number):
                return [Ping(self._asked(link, number))]
            case Explain(number, request_id):
                return [Explain(self._asked(link, number), request_id)]
            case Shutdown():
                if link is not None:
                    link.is_lost = True
                    return []
        return [command]

    def _asked(self, link: Link | None, number: int) -> int:
        """Remember who waits for an answer; return the number it is asked under."""
        ours = next(self._numbers)
        self._askers[ours] = (link, number)
        return ours

    def _refuse(self, link: Link, command: Submit) -> None:
        """Refuse an id that is open already: its record would be another's."""
        assert self._snapshot is not None
        detail = f"a request with the id {command.order.id} is already open"
        refusal = RequestRefused(RefusalReason.DUPLICATE_ID, detail)
        event = refused_event(command.order, refusal, self._snapshot.at_ns)
        self._send(link, self._outputs.encode(StepOutput((event,), None, self._snapshot)))

    # ---- doors that are gone ----

    def _has_lost(self) -> bool:
        return any(link.is_lost for link in self._links.values())

    def _bury_lost(self) -> list[Command]:
        """Close the links that have ended; return an abort for each of their requests."""
        if not self._has_lost():
            return []
        aborts: list[Command] = []
        for fd, link in [(fd, link) for fd, link in self._links.items() if link.is_lost]:
            self._poll.unregister(link.sock)
            link.sock.close()
            del self._links[fd]
            aborts += [Abort(request_id) for request_id in sorted(link.open)]
            self._askers = {n: asker for n, asker in self._askers.items() if asker[0] is not link}
        return aborts

    # ---- outbox ----

    def send(self, output: Output) -> None:
        """See Outbox: never waits for a door; raises ChannelClosed when the parent is gone."""
        match output:
            case StepOutput():
                self._hand_out(output)
            case Pong(number):
                self._answer(number, Pong)
            case Explained(number, record):
                self._answer(number, lambda own: Explained(own, record))
            case Ready():
                self._ready, self._snapshot = output, output.snapshot
                self._tell_parent(output)
                self._poll.register(self._listener, select.POLLIN)
            case _:
                self._tell_parent(output)

    def _answer(self, number: int, make: Callable[[int], Output]) -> None:
        asker = self._askers.pop(number, None)
        if asker is None:
            return  # whoever asked is gone
        link, own = asker
        if link is None:
            self._tell_parent(make(own))
        else:
            self._send(link, self._outputs.encode(make(own)))

    def _tell_parent(self, output: Output) -> None:
        try:
            self._parent.sendall(self._outputs.encode(output))
        except OSError as error:
            raise ChannelClosed(f"the parent does not read any more: {error}") from error

    def _hand_out(self, output: StepOutput) -> None:
        """Give each door the events of its own requests; all get the rest."""
        self._snapshot = output.snapshot
        mine: dict[Link, list[TokenEvent]] = {}
        for event in output.events:
            owner = self._owners.get(event.request_id)
            if owner is None:
                continue
            mine.setdefault(owner, []).append(event)
            if event.finish_reason is not None:
                del self._owners[event.request_id]
                owner.open.discard(event.request_id)
        frames = StepFrames(self._encoder, output)
        nothing = frames.frame(())
        for link in self._links.values():
            events = mine.get(link)
            if events is not None:
                self._send(link, frames.frame(tuple(events)))
            # Who lags behind can do without what does not concern it.
            elif not link.unsent:
                self._send(link, nothing)

    def _send(self, link: Link, frame: bytes) -> None:
        had_unsent = bool(link.unsent)
        link.send(frame)
        if bool(link.unsent) != had_unsent:
            self._watch(link)

    def _watch(self, link: Link) -> None:
        """Hear of the moment when a door takes more, where something waits for it."""
        if not link.is_lost:
            waits = select.POLLOUT if link.unsent else 0
            self._poll.modify(link.sock, select.POLLIN | waits)
