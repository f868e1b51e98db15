"""The engine's process dies: clients are told, readiness falls, and all comes back by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

from door_kit import CHAT, TEXT, chat_body, eventually, open_door, sse, text_body
from talking_executor import KILL_BYTE


async def test_an_engine_that_dies_is_told_and_comes_back(tmp_path: Path) -> None:
    """A running stream ends with an error event, a waiting request with a 5xx; then all is well.

    What had been generated until then is in the ledger.
    """
    async with open_door(tmp_path, process=True, options={"step_s": 0.02, "mortal": True}) as door:
        body = chat_body(stream=True, ignore_eos=True, max_tokens=900)
        running = asyncio.create_task(door.post(CHAT, body))
        await eventually(lambda: len(door.services.live) == 1, "a stream runs")
        await asyncio.sleep(0.3)
        killer = await door.post(TEXT, text_body([KILL_BYTE, 97], max_tokens=5))
        assert killer.status_code in (500, 503)
        assert killer.json()["error"]["code"] in ("engine_error", "engine_unavailable")
        *_, last = sse((await running).text)
        assert last["error"]["type"] == "server_error"
        unready = await door.http.get("/readyz")
        refused = await door.post(CHAT, chat_body())
        if unready.status_code == 503:  # it may already be back
            assert unready.json()["missing"] == ["engine"]
        if refused.status_code != 200:
            assert refused.json()["error"]["code"] == "engine_unavailable"
            assert "retry-after" in refused.headers

        async def ready() -> bool:
            return (await door.http.get("/readyz")).status_code == 200

        await eventually(ready, "the engine is back")
        again = await door.post(CHAT, chat_body(max_tokens=3))
        assert again.json()["choices"][0]["message"]["content"] == "abc"
        rows = await door.usage(2)
        failed = [row for row in rows if row.finish_reason == "failed"]
        assert len(failed) == 1
        assert failed[0].output_tokens > 0
        assert failed[0].slo_met is False
        await eventually(lambda: door.services.host.restarts == 1, "the restart is counted")
        metrics = (await door.http.get("/metrics")).text
        assert "tiergate_engine_restarts_total 1.0" in metrics
        assert "tiergate_engine_up 1.0" in metrics
