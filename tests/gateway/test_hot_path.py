"""A request of a key that is known asks the database nothing."""

from __future__ import annotations

from door_kit import CHAT, Door, chat_body
from sqlalchemy import Engine, event

# What runs beside requests: looking for changes, writing usage, and when keys were last used.
BESIDE = (
    "pragma",
    "begin",
    "commit",
    "insert into usage",
    "insert into slo_",
    "select min(slo_counts.start)",  # are there minutes too old to keep?
    "select counters.value from counters",  # has any key changed?
    "update api_keys set last_used_at",
)


async def test_a_warm_key_is_served_without_the_database(door: Door) -> None:
    """Plain and streamed, twenty of each: only pollers and writers of bills speak to it."""
    assert (await door.post(CHAT, chat_body())).status_code == 200
    await door.usage()
    asked: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        asked.append(" ".join(statement.lower().split()))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        for number in range(40):
            answer = await door.post(CHAT, chat_body(stream=number % 2 == 0))
            assert answer.status_code == 200
        await door.usage(41)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    on_the_way = [statement for statement in asked if not statement.startswith(BESIDE)]
    # Whoever counts the rows in this test asks for them as well.
    assert {one for one in on_the_way if " from usage" not in one} == set()


async def test_a_cold_key_does_ask(door: Door) -> None:
    """What the other test looks for is there to be seen."""
    asked: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        asked.append(" ".join(statement.lower().split()))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        assert (await door.post(CHAT, chat_body())).status_code == 200
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert any("api_keys" in one and not one.startswith(BESIDE) for one in asked)
