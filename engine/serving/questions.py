"""Questions to the engine on their way: numbered, bounded, answered or failed; no transport.

Everything here runs on the event loop's thread. An engine answers between two steps, so an answer
may take as long as a step; one that dies answers nothing, and whoever asked is told so.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from engine.core.decision import RequestRecord
from engine.core.errors import EngineUnavailable
from engine.serving.messages import Explain, Explained

MOST_OPEN = 64
ANSWER_S = 5.0


class OpenQuestions:
    """Those of one client; `ask` waits for `answer` or `fail_all`, and not for ever."""

    __slots__ = ("_numbers", "_open", "_timeout_s")

    def __init__(self, timeout_s: float = ANSWER_S) -> None:
        self._timeout_s = timeout_s
        self._open: dict[int, asyncio.Future[RequestRecord | None]] = {}
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        """Number of questions without an answer."""
        return len(self._open)

    async def ask(self, request_id: str, send: Callable[[Explain], None]) -> RequestRecord | None:
        """Return what the engine knows of a request, None where nothing.

        Raises EngineUnavailable, with one line that says why, when there is no answer.
        """
        if len(self._open) >= MOST_OPEN:
            raise EngineUnavailable(f"{MOST_OPEN} questions to the engine are open already")
        number = next(self._numbers)
        send(Explain(number, request_id))
        answer: asyncio.Future[RequestRecord | None]
        answer = self._open[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await answer
        except TimeoutError:
            raise EngineUnavailable(
                f"the engine has not answered for {self._timeout_s:g} s"
            ) from None
        finally:
            del self._open[number]

    def answer(self, explained: Explained) -> None:
        """Hand an answer over; one that nobody waits for any more is dropped."""
        answer = self._open.get(explained.number)
        if answer is not None and not answer.done():
            answer.set_result(explained.record)

    def fail_all(self, detail: str) -> None:
        """The engine is gone: nothing that is open will be answered."""
        for answer in self._open.values():
            if not answer.done():
                answer.set_exception(EngineUnavailable(detail))
