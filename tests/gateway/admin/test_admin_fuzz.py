"""Whatever is sent to the admin API, the answer is never an internal error."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
from admin_kit import TOKEN, Office, code_of, open_office
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.admin.bodies import AdminBody
from gateway.admin.roles import ACCESS

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    sorted({n for kind in AdminBody.__subclasses__() for n in kind.model_fields})
)
BODIES = JSON | st.dictionaries(FIELDS, JSON, max_size=6)
NAMES = st.text(
    st.characters(exclude_characters="/?#", exclude_categories=["Cs"]), min_size=1, max_size=40
)
UNTOUCHED = ("/admin/api/logout", "/admin/api/login", "/admin/api/password")
ROWS = sorted(row for row in ACCESS if row[1] not in UNTOUCHED)


def test_no_input_is_an_internal_error(ledger_url: str, tmp_path: Path) -> None:
    """Any JSON on any route, any text in any path and query: an answer, never a 5xx."""
    loop = asyncio.new_event_loop()

    async def work(office: Office, row: tuple[str, str], body: Any, name: str) -> None:
        method, path = row
        for part in ("tenant", "organisation", "tier", "user", "target", "key", "request_id"):
            path = path.replace(f"{{{part}}}", str(httpx.QueryParams({"q": name}))[2:] or "x")
        path = path.replace("{scope}", "tenant").replace("+", "%20")
        answer = await office.people[TOKEN].request(
            method, path, json=body, params={"cursor": name} if method == "GET" else None
        )
        assert answer.status_code < 500, (row, body, name, answer.text)
        if answer.status_code >= 400:
            code_of(answer)

    context = open_office(tmp_path, ledger_url)
    office = loop.run_until_complete(context.__aenter__())
    try:

        @settings(max_examples=150, suppress_health_check=list(HealthCheck))
        @given(row=st.sampled_from(ROWS), body=BODIES, name=NAMES)
        def try_it(row: tuple[str, str], body: Any, name: str) -> None:
            loop.run_until_complete(work(office, row, body, name))

        try_it()
    finally:
        loop.run_until_complete(context.__aexit__(None, None, None))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
