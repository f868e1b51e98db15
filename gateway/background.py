"""The gateway's own tasks: held, awaited, and loud when one ends by itself; it knows no purpose."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

logger = logging.getLogger(__name__)


class Background:
    """Tasks that live as long as the gateway. One that fails stays failed, and is reported."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    def start(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` until it ends or `stop` is called."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(_report)
        self._tasks[name] = task
        return task

    def every(self, name: str, seconds: float, step: Callable[[], Awaitable[None]]) -> None:
        """Run `step` again and again, `seconds` after its last end."""

        async def repeat() -> None:
            while True:
                await step()
                await asyncio.sleep(seconds)

        self.start(name, repeat())

    @property
    def failed(self) -> list[str]:
        """Names of tasks that ended with an exception."""
        return [
            name
            for name, task in self._tasks.items()
            if task.done() and not task.cancelled() and task.exception() is not None
        ]

    async def stop(self) -> None:
        """Cancel all tasks and wait for them."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


def _report(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("background task %s failed", task.get_name(), exc_info=task.exception())
