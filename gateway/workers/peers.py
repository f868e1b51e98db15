"""What one worker asks the others, over sockets in their folder, so that any of them tells of all.

A question is a line (its name, and an argument in JSON), the answer is bytes until the end of the
connection. Who does not answer in time is left out: the answer of a worker must not hang on that of
another. It knows no question by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import orjson

from gateway.workers.place import ALONE, Place, worker_socket

logger = logging.getLogger(__name__)

ANSWER_S = 2.0
MOST_QUESTION_BYTES = 4096
MOST_ANSWER_BYTES = 32 * 2**20

Answerer = Callable[[str], Awaitable[bytes]]


class Peers:
    """The other workers, seen from one of them; one that is alone has none."""

    def __init__(self, place: Place = ALONE, *, timeout_s: float = ANSWER_S) -> None:
        self.place = place
        self._timeout_s = timeout_s

    async def ask(self, question: str, argument: str = "") -> dict[int, bytes]:
        """Return what the others answer, by their numbers."""
        others = self.place.others
        answers = await asyncio.gather(*[self._ask(n, question, argument) for n in others])
        return {n: answer for n, answer in zip(others, answers, strict=True) if answer is not None}

    async def ask_one(self, index: int, question: str, argument: str = "") -> bytes | None:
        """Return what one of the others answers, None where it does not."""
        return await self._ask(index, question, argument)

    async def _ask(self, index: int, question: str, argument: str) -> bytes | None:
        assert self.place.folder is not None
        path = worker_socket(self.place.folder, index)
        try:
            async with asyncio.timeout(self._timeout_s):
                reader, writer = await asyncio.open_unix_connection(str(path))
                try:
                    writer.write(orjson.dumps([question, argument]) + b"\n")
                    answer = await read_to_end(reader)
                finally:
                    writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            logger.info("worker %d does not answer", index)
            return None
        # A worker whose answer broke off ends without the mark.
        return answer[:-1] if answer.endswith(b"\n") else None

    @contextlib.asynccontextmanager
    async def answering(self, answerers: Mapping[str, Answerer]) -> AsyncIterator[None]:
        """Answer the others' questions for the length of a block."""
        if self.place.folder is None:
            yield
            return

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                async with asyncio.timeout(self._timeout_s):
                    question, argument = orjson.loads(await reader.readline())
                    writer.write(await answerers[question](argument) + b"\n")
                    await writer.drain()
            except (OSError, TimeoutError, ValueError, KeyError):
                logger.warning("a question of another worker could not be answered")
            finally:
                writer.close()

        path = worker_socket(self.place.folder, self.place.index)
        path.unlink(missing_ok=True)  # of the one that had this number before
        server = await asyncio.start_unix_server(answer, str(path), limit=MOST_QUESTION_BYTES)
        try:
            yield
        finally:
            server.close()
            path.unlink(missing_ok=True)


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    """Return all that comes; raises IncompleteReadError where it is too much."""
    parts: list[bytes] = []
    length = 0
    while part := await reader.read(1 << 16):
        parts.append(part)
        length += len(part)
        if length > MOST_ANSWER_BYTES:
            raise asyncio.IncompleteReadError(b"", MOST_ANSWER_BYTES)
    return b"".join(parts)
