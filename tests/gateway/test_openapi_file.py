"""The schema in the repository is the one that a gateway gives out."""

from __future__ import annotations

import pytest
from door_kit import Door
from openapi_file import FILE, as_text


async def test_the_schema_in_the_repository_is_the_gateways(door: Door) -> None:
    """Whoever changes a route writes the file again: `make openapi`."""
    schema = (await door.http.get("/openapi.json")).json()
    assert as_text(schema) == FILE.read_text(), "run `make openapi`"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_what_is_said_of_a_route_is_enough_to_call_it(door: Door, path: str) -> None:
    """Body, both forms of the answer, and errors have schemas."""
    said = (await door.http.get("/openapi.json")).json()["paths"][path]["post"]
    body = said["requestBody"]["content"]["application/json"]["schema"]
    assert {"model", "stream", "tools", "service_tier"} <= set(body["properties"])
    assert set(said["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert ("529" in said["responses"]) == (path == "/v1/messages")
    for status in ("400", "401", "403", "404", "413", "429", "503"):
        shape = said["responses"][status]["content"]["application/json"]["schema"]
        assert "error" in shape["required"]
