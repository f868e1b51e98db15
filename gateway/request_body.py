"""Reads the body of a request, bounded in size and in time; it knows no route and no JSON."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from gateway.errors import ApiError, Problem


async def read_body(request: Request, limit: int, timeout_s: float) -> bytes:
    """Return the body, at most `limit` bytes; raises ApiError.

    A longer one is refused before it is parsed, or even read. A refusing gateway still lets the
    server swallow the rest of it, so that the client gets to read the answer instead of a broken
    connection.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and (len(announced) > 18 or int(announced) > limit):
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                body += part
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise ApiError(
            Problem.BODY_TIMEOUT,
            "The request body did not arrive in time.",
            headers={"connection": "close"},
        ) from None
    except ClientDisconnect:
        # Nobody will read this answer; it only ends the request in an orderly way.
        raise ApiError(Problem.BAD_REQUEST, "The client left.") from None
    return bytes(body)


def _too_large(limit: int) -> ApiError:
    return ApiError(Problem.BODY_TOO_LARGE, f"A request body may have at most {limit} bytes.")
