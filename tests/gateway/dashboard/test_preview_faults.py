"""What a tier's preview says where a target cannot be what was typed."""

from __future__ import annotations

from pathlib import Path

import httpx
from door_kit import open_door

PREVIEW = "/admin/tiers/premium/preview"
TYPED = {"ttft_ms": "2,5 s", "objective": "120"}


async def test_the_preview_says_which_target_cannot_be(tmp_path: Path) -> None:
    """It lists the fields with their faults, as a page of its own and where it alone is renewed."""
    async with open_door(tmp_path) as door:
        login = httpx.BasicAuth("x", door.admin_token)
        page = (await door.http.get(PREVIEW, params=TYPED, auth=login)).text
        listed = page.partition('id="preview"')[2].partition("</section>")[0]
        for name, label in (("ttft_ms", "First token within"), ("objective", "Share that must")):
            assert f'<a href="#{name}">{label}' in listed
            assert f'id="{name}-error"' in page
        assert "put it right" in listed
        assert "put it right" not in (await door.http.get(PREVIEW, auth=login)).text
        part = (
            await door.http.get(PREVIEW, params=TYPED, auth=login, headers={"hx-request": "true"})
        ).text
        for name, label in (("ttft_ms", "First token within"), ("objective", "Share that must")):
            assert f'<a href="#{name}">{label}' in part, "no field is renewed with this part"
