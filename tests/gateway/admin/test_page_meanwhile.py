"""Two people at one form: what one changed stays, and where both changed a field both are shown."""

from __future__ import annotations

import html
import re
from typing import Any

import httpx
import pytest
from admin_kit import Office
from test_page_forms import latest_audit, page, send, value_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

LATE = "This was changed while you typed: nothing is saved yet."


async def shown(office: Office, path: str, who: str = "operator") -> str:
    """Return the hidden field of the first form of a page, which says what the form showed."""
    return value_of(await page(office, path, who), "shown")


def marks(answer: httpx.Response) -> list[str]:
    """Return what a page says of fields that both have changed."""
    found = re.findall(r'<p class="error">.*?(Changed meanwhile to .*?): saving', answer.text)
    return [html.unescape(one) for one in found]


def late(answer: httpx.Response) -> bool:
    """True where nothing was saved since somebody else was faster."""
    assert (answer.status_code == 412) == (LATE in answer.text)
    return answer.status_code == 412


async def test_limits_that_others_set_meanwhile_stay(office: Office) -> None:
    await office.post("tenants", {"name": "limited", "tier": "free"})
    tenant = await office.get("tenants/limited")
    here = f"/admin/limits/tenant/{tenant['id']}"
    base = dict.fromkeys(("requests_per_minute", "tokens_per_day", "concurrent_requests"), "")
    base |= {"model": "", "shown": await shown(office, here)}

    async def limits() -> dict[str, Any]:
        found = (await office.get("limits/tenant/limited"))["data"][0]["limits"]
        return {name: amount for name, amount in found.items() if amount is not None}

    assert (await send(office, here, **base | {"requests_per_minute": "10"})).status_code == 303
    # The operator's form is from before that, and shows no limit at all.
    typed = base | {"tokens_per_day": "5,000"}
    assert (await send(office, here, "operator", **typed)).status_code == 303
    assert await limits() == {"requests_per_minute": 10, "tokens_per_day": 5000}

    both = base | {"requests_per_minute": "20", "concurrent_requests": "3"}
    answer = await send(office, here, "operator", **both)
    assert late(answer)
    assert marks(answer) == ["Changed meanwhile to 10"]
    values = {name: value_of(answer.text, name) for name in base}
    wanted = {"requests_per_minute": "20", "concurrent_requests": "3", "tokens_per_day": "5000"}
    assert {name: values[name] for name in wanted} == wanted, "typed, typed, and as it is now"
    assert await limits() == {"requests_per_minute": 10, "tokens_per_day": 5000}
    assert (await send(office, here, "operator", **values)).status_code == 303
    assert await limits() == {name: int(text) for name, text in wanted.items()}

    before = await latest_audit(office)
    same = values | {"concurrent_requests": "3", "shown": await shown(office, here)}
    assert (await send(office, here, **same)).status_code == 303
    assert await latest_audit(office) == before, "what changes nothing is nothing to write down"
    gone = base | {"concurrent_requests": "4"}
    assert late(await send(office, here, **gone)), "the very first form has 'none' for it"


async def test_a_budget_that_others_set_meanwhile_is_not_replaced_unseen(office: Office) -> None:
    await office.post("tenants", {"name": "thrifty", "tier": "free"})
    tenant = await office.get("tenants/thrifty")
    here = f"/admin/budgets/tenant/{tenant['id']}"
    page_of = here.replace("budgets", "limits")
    budget = {"unit": "tokens", "period": "month", "model": "", "alert_percent": ""}

    def shown_in(text: str) -> str:
        return html.unescape(re.findall(r'name="shown" value="([^"]*)"', text)[-1])

    async def amounts() -> dict[str, int]:
        data = (await office.get("budgets/tenant/thrifty"))["data"]
        return {f"{b['unit']} {b['period']}": b["amount"] for e in data for b in e["budgets"]}

    empty = budget | {"shown": shown_in(await page(office, page_of))}
    assert (await send(office, here, **empty, amount="100000")).status_code == 303
    other = empty | {"period": "day"}
    assert (await send(office, here, "operator", **other, amount="900")).status_code == 303
    answer = await send(office, here, "operator", **empty, amount="7")
    assert late(answer)
    assert marks(answer) == ["Changed meanwhile to 100,000 tokens"]
    assert value_of(answer.text, "amount") == "7"
    assert await amounts() == {"tokens month": 100_000, "tokens day": 900}
    again = empty | {"shown": shown_in(answer.text)}
    assert (await send(office, here, "operator", **again, amount="7")).status_code == 303
    assert await amounts() == {"tokens month": 7, "tokens day": 900}

    away = {k: again[k] for k in ("unit", "period", "model", "shown")} | {"remove": "true"}
    answer = await send(office, here, **away)
    assert late(answer), "the budget to be taken away was another one"
    assert marks(answer) == ["Changed meanwhile to 7 tokens"]
    assert (await amounts())["tokens month"] == 7
    answer = await send(office, here, **away | {"shown": shown_in(answer.text)})
    assert answer.status_code == 303
    assert await amounts() == {"tokens day": 900}


async def test_a_key_is_changed_in_what_was_typed_alone(office: Office) -> None:
    made = {"name": "first", "expires_at": "2031-02-03T04:05:06Z"}
    key = await office.post("tenants/free-tenant/keys", made)
    here = f"/admin/keys/{key['id']}/change"
    base: dict[str, Any] = {"name": "first", "expires_at": "2031-02-03T04:05", "models": ""}
    base |= {"shown": await shown(office, here)}

    async def record() -> dict[str, Any]:
        found = await office.get(f"keys/{key['id']}")
        return {name: found[name] for name in ("name", "models", "scopes", "expires_at")}

    assert (await send(office, here, **base | {"models": "builtin"})).status_code == 303
    answer = await send(office, here, "operator", **base | {"name": "second"})
    assert answer.status_code == 303
    now = {"name": "second", "models": ["builtin"], "scopes": None}
    assert await record() == now | {"expires_at": "2031-02-03T04:05:06Z"}

    answer = await send(office, here, **base | {"name": "third", "scopes": ["chat"]})
    assert late(answer)
    assert marks(answer) == ["Changed meanwhile to second"]
    assert value_of(answer.text, "name") == "third"
    assert re.search(r"<textarea[^>]*>builtin</textarea>", answer.text)
    assert re.findall(r'value="(\w+)" checked', answer.text) == ["chat"]
    merged = base | {"name": "third", "scopes": ["chat"], "models": "builtin"}
    merged["shown"] = value_of(answer.text, "shown")
    assert (await send(office, here, **merged)).status_code == 303
    assert (await record())["scopes"] == ["chat"]
    answer = await send(office, here, **base | {"models": "other\nmore", "expires_at": ""})
    assert late(answer)
    assert marks(answer) == ["Changed meanwhile to builtin"]
    assert re.findall(r'value="(\w+)" checked', answer.text) == ["chat"], "as it is now"
    assert (await record())["expires_at"] is not None
    before = await latest_audit(office)
    nothing = await send(office, here, **merged | {"shown": await shown(office, here)})
    assert nothing.status_code == 303
    assert await latest_audit(office) == before


async def test_a_tenant_is_changed_in_what_was_typed_alone(office: Office) -> None:
    for name in ("payer", "heir"):
        await office.post("organisations", {"name": name})
    await office.post("tenants", {"name": "moved", "tier": "free"})
    tenant = await office.get("tenants/moved")
    here = f"/admin/tenants/{tenant['id']}/change"
    base = {"tier": "free", "organisation": "default", "shown": await shown(office, here)}

    async def now() -> tuple[str, str]:
        found = await office.get("tenants/moved")
        payer = await office.get(f"organisations/{found['organisation_id']}")
        return found["tier"], payer["name"]

    assert (await send(office, here, **base | {"organisation": "payer"})).status_code == 303
    assert (await send(office, here, "operator", **base | {"tier": "premium"})).status_code == 303
    assert await now() == ("premium", "payer")
    answer = await send(office, here, **base | {"organisation": "heir"})
    assert late(answer)
    assert marks(answer) == ["Changed meanwhile to payer"]
    assert value_of(answer.text, "organisation") == "heir"
    assert 'value="premium" selected' in answer.text, "what was not touched is as it is now"
    assert await now() == ("premium", "payer")
    seen = {"tier": "premium", "organisation": "heir", "shown": value_of(answer.text, "shown")}
    assert (await send(office, here, **seen)).status_code == 303
    assert await now() == ("premium", "heir")


@pytest.mark.parametrize("sent", ["x", "[]", '"a"', "{", "1"])
async def test_what_no_form_of_ours_has_shown_is_refused(office: Office, sent: str) -> None:
    tenant = await office.get("tenants/free-tenant")
    here = f"/admin/limits/tenant/{tenant['id']}"
    answer = await send(office, here, model="", tokens_per_day="1", shown=sent)
    assert answer.status_code == 400


async def test_a_role_that_others_gave_meanwhile_is_not_taken_back_unseen(office: Office) -> None:
    """Role and tenant are one: an old form of a tenant would make an owner of a viewer again."""
    made = {"name": "ann", "role": "owner", "password": "a long enough password"}
    user = await office.post("users", made)
    here = f"/admin/users/{user['id']}/change"
    old = {"role": "owner", "tenant": "", "shown": await shown(office, here, "owner")}
    assert (await send(office, here, "owner", **old)).status_code == 303, "nothing was changed"
    assert (await send(office, here, "owner", **old | {"role": "viewer"})).status_code == 303
    answer = await send(office, here, "owner", **old | {"role": "operator"})
    assert late(answer)
    assert marks(answer) == ["Changed meanwhile to viewer"]
    assert (await office.get(f"users/{user['id']}"))["role"] == "viewer"
    again = old | {"role": "operator", "shown": value_of(answer.text, "shown")}
    assert (await send(office, here, "owner", **again)).status_code == 303
    assert (await office.get(f"users/{user['id']}"))["role"] == "operator"
