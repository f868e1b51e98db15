"""Pages of lists, and values as the admin API shows them; what is listed is not known here.

A list is `{"object": "list", "data": [...], "has_more": ..., "next_cursor": ...}`. A cursor says
where the last page ended, so pages neither repeat nor skip what was there all the time.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import orjson
from starlette.responses import Response

from gateway.errors import ApiError, bad_value
from gateway.routes.json_response import json_response
from tenants.values import KeyRecord, TierRecord

PAGE, MOST_ON_PAGE = 50, 200
PAGE_QUERY = ("limit", "cursor")

Item = TypeVar("Item")


async def page(
    query: dict[str, str],
    read: Callable[[list[str], int], Awaitable[Sequence[Item]]],
    place: Callable[[Item], list[str]],
) -> Response:
    """Return one page; `place` is where an item stands, as a cursor.

    `read(cursor, n)` gives up to n items behind a cursor; an empty one is the beginning.
    """
    limit = limit_of(query)
    found = await read(cursor_of(query), limit + 1)
    return listed([shown(item) for item in found[:limit]], len(found) > limit, found, limit, place)


def listed(
    data: list[Any],
    has_more: bool,
    found: Sequence[Item],
    limit: int,
    place: Callable[[Item], list[str]],
) -> Response:
    """Return a list; the cursor stands at the last item that is on it."""
    last = found[min(limit, len(found)) - 1] if found and has_more else None
    return json_response(
        {
            "object": "list",
            "data": data,
            "has_more": has_more,
            "next_cursor": None if last is None else encoded(place(last)),
        }
    )


def whole(items: Sequence[Any]) -> Response:
    """Return a list that is never long, as one page."""
    return listed([shown(item) for item in items], False, items, len(items) or 1, lambda _: [])


def limit_of(query: dict[str, str]) -> int:
    """Return how long a page may be; raises ApiError."""
    text = query.get("limit", str(PAGE))
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= MOST_ON_PAGE:
        raise bad_value("limit", f"'limit' must be a whole number from 1 to {MOST_ON_PAGE}.")
    return int(text)


def one(item: Any, status: int = 200, **headers: str) -> Response:
    """Return one thing."""
    response = json_response(shown(item), status)
    for name, value in headers.items():
        response.headers[name] = value
    return response


def shown(item: Any) -> Any:
    """Return a value of the ledger as JSON has it; none of them holds a secret."""
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        fields = {f.name: shown(getattr(item, f.name)) for f in dataclasses.fields(item)}
        if isinstance(item, KeyRecord):
            fields["display"] = item.display
        if isinstance(item, TierRecord):
            fields["etag"] = etag(item)
        return fields
    if isinstance(item, list | tuple):
        return [shown(inner) for inner in item]
    if isinstance(item, dict):
        return {name: shown(inner) for name, inner in item.items()}
    if isinstance(item, datetime):
        return item.isoformat().replace("+00:00", "Z")
    return item


def etag(tier: TierRecord) -> str:
    """Return what names this version of a tier in `ETag` and `If-Match`."""
    return f'"{tier.version}"'


def encoded(place: list[str]) -> str:
    """Return a place as a cursor."""
    return base64.urlsafe_b64encode(orjson.dumps(place)).decode().rstrip("=")


def cursor_of(query: dict[str, str]) -> list[str]:
    """Return the place behind which a page begins, empty for the first; raises ApiError."""
    text = query.get("cursor", "")
    if not text:
        return []
    try:
        place = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except ValueError:  # of base64 and of JSON
        place = None
    is_place = isinstance(place, list) and all(isinstance(part, str) for part in place)
    if not is_place or not 1 <= len(place) <= 2 or any("\0" in part for part in place):
        raise bad_cursor()
    return [str(part) for part in place]


def bad_cursor() -> ApiError:
    """Return the answer to a cursor that no page has given."""
    return bad_value("cursor", "'cursor' must be the next_cursor of another page.")
