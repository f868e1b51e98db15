"""`/admin/live/...`: what a page shows, renewed every second while somebody looks at it.

A stream sends the page's HTML as unnamed events, which replace what is on the page, and the points
of its charts as events named `points`. Every few seconds it looks whether its login still holds,
and ends with it; it ends after some minutes anyhow, and the page asks again. It is no use of a
login.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.core.clock import NS_PER_S
from gateway.admin.caller import find_caller
from gateway.admin.reading import nothing_there, query_of
from gateway.admin.roles import may
from gateway.admin.route import caller_of, desk_of
from gateway.dashboard import engine_view, overview_view
from gateway.dashboard.frame import fragment, frame_of
from gateway.dashboard.points import SPAN_S
from gateway.dashboard.pulse import Look, Pulse
from gateway.dashboard.roles import PAGES as ROLES
from gateway.dashboard.route import LIVE, PageRoute
from gateway.errors import ApiError, Problem
from tenants.errors import LedgerError

if TYPE_CHECKING:
    from gateway.services import Services

router = APIRouter(route_class=PageRoute, include_in_schema=False)

EVERY_S = 1.0
BETWEEN_S = 0.3  # of points and HTML, so that a browser does not have to do both at once
LOGIN_NS = 5 * NS_PER_S  # so often it is asked whether the login still holds
MOST_AT_ONCE, PIECE_S = 1000, 0.03  # dots in one event, and the pause to the next
LONGEST_S = 300.0
STALL_S = 10.0
MOST_STREAMS = 64
MOST_OF_ONE = 8  # tabs of one user
RETRY_MS = 3000

Values = Callable[[Pulse, Look, Any], Mapping[str, Any]]
# Page -> its template of what is renewed, and what that is given.
PAGES: Mapping[str, tuple[str, Values]] = {
    "overview": ("overview_live.html", overview_view.values),
    "engine": ("engine_live.html", engine_view.values),
}


class Live:
    """The look that all streams share, and how many there are."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.pulse = Pulse(services)
        self._open: Counter[str] = Counter()
        self._drawn: dict[str, tuple[int, str]] = {}

    def __len__(self) -> int:
        """Streams that are open."""
        return self._open.total()

    def html(self, request: Request, page: str, look: Look) -> str:
        """Return what is renewed of a page: the same for all who look at it."""
        drawn = self._drawn.get(page)
        if drawn is None or drawn[0] != look.now_ns:
            template, values = PAGES[page]
            text = fragment(request, template, **values(self.pulse, look, self.services))
            drawn = self._drawn[page] = (look.now_ns, text)
        return drawn[1]

    def enter(self, who: str) -> bool:
        """Take a place for one more stream; False where there is none."""
        if self._open.total() >= MOST_STREAMS or self._open[who] >= MOST_OF_ONE:
            return False
        self._open[who] += 1
        return True

    def leave(self, who: str) -> None:
        """Give it back."""
        self._open[who] -= 1
        if not self._open[who]:
            del self._open[who]


def live_of(request: Request) -> Live:
    """Return what all streams of this gateway share."""
    frame = frame_of(request)
    if frame.live is None:
        frame.live = Live(request.app.state.services)
    return frame.live


@router.get(LIVE)
async def live(request: Request, page: str) -> Response:
    """Begin a stream."""
    query_of(request)
    if page not in PAGES:
        raise nothing_there()
    return LiveResponse(request, page)


class LiveResponse(Response):
    """The events of one page until its reader leaves, the gateway drains, or the time is over."""

    def __init__(self, request: Request, page: str) -> None:
        super().__init__(media_type="text/event-stream")
        del self.headers["content-length"]
        self.headers["x-accel-buffering"] = "no"
        self._request = request
        self._page = page
        self._who = f"{caller_of(request).actor.kind} {caller_of(request).actor.name}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them; there is a bound on how many streams there are."""
        live = live_of(self._request)
        if not live.enter(self._who):
            refusal = ApiError(
                Problem.RATE_LIMITED, "Too many live pages are open.", retry_after_ms=RETRY_MS
            )
            await refusal.response()(scope, receive, send)
            return
        gone = asyncio.create_task(_disconnect(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with asyncio.timeout(LONGEST_S):
                await self._send_all(live, send, gone)
        except TimeoutError:
            pass  # its time is over, or nobody reads: the page asks again
        finally:
            live.leave(self._who)
            gone.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, live: Live, send: Send, gone: asyncio.Task[None]) -> None:
        seen = since_ms = 0
        clock = live.services.clock
        asked_ns = clock.now_ns()
        while not (gone.done() or live.services.admission.draining):
            if clock.now_ns() - asked_ns >= LOGIN_NS:
                if not await _may_still(self._request):
                    return
                asked_ns = clock.now_ns()
            look = await live.pulse.look()
            for points in _points(look, seen, since_ms):
                await _send(send, event(orjson.dumps(points).decode(), "points"))
                if len(points["dots"]) == MOST_AT_ONCE:
                    await asyncio.wait([gone], timeout=PIECE_S)
            seen, since_ms = look.num_dots, round(look.now.timestamp() * 1000)
            await asyncio.wait([gone], timeout=BETWEEN_S)
            await _send(send, event(live.html(self._request, self._page, look)))
            await asyncio.wait([gone], timeout=EVERY_S - BETWEEN_S)


async def _may_still(request: Request) -> bool:
    """True while whoever opened the stream may have it, or where the ledger cannot say."""
    access = ROLES["GET", LIVE]
    try:
        caller = await find_caller(request, desk_of(request), touch=False)
    except ApiError:
        return False
    except LedgerError:
        return True
    return access.role is not None and may(caller.role, access.role)


def _points(look: Look, seen: int, since_ms: int) -> Iterator[dict[str, Any]]:
    """Yield what is new since a moment and so many dots; at first everything, to begin anew.

    In pieces that a browser can read without holding up its other work.
    """
    places = {tier: n for n, tier in enumerate(look.tiers)}
    other = len(places)  # of a tier that is gone
    dots = [[round(d[0]), places.get(d[1], other), d[2], d[3]] for d in look.new_dots(seen)]
    for start in range(0, max(len(dots), 1), MOST_AT_ONCE):
        yield {
            "now": round(look.now.timestamp() * 1000),
            "span_s": SPAN_S,
            "reset": since_ms == 0 and start == 0,
            "tiers": look.tiers,
            "dots": dots[start : start + MOST_AT_ONCE],
            "samples": [one for one in look.samples if one["t"] > since_ms and start == 0],
        }


async def _send(send: Send, text: str) -> None:
    async with asyncio.timeout(STALL_S):
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


def event(data: str, name: str = "") -> str:
    """Return one event of a stream."""
    lines = "".join(f"data: {line}\n" for line in data.replace("\r", "").split("\n"))
    return (f"event: {name}\n" if name else "") + lines + "\n"


async def _disconnect(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
