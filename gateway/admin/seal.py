"""Small values that lie in the browser, signed and with an end; what they mean is not known here.

They are readable to whoever has the cookie, and good for nothing once they are changed or over.
"""

from __future__ import annotations

import base64
import hmac
from datetime import datetime
from typing import Any

import orjson

MOST_CHARACTERS = 3072


def sealed(values: dict[str, Any], purpose: str, secret: bytes, expires: datetime) -> str:
    """Return the values as a cookie's value; `purpose` keeps one kind from passing as another."""
    body = values | {"expires": int(expires.timestamp())}
    text = base64.urlsafe_b64encode(orjson.dumps(body)).decode().rstrip("=")
    return f"{text}.{_signature(text, purpose, secret)}"


def opened(value: str, purpose: str, secret: bytes, now: datetime) -> dict[str, Any] | None:
    """Return the values, None for a cookie that is not ours, is over, or of another purpose."""
    text, _, signature = value.partition(".")
    if len(value) > MOST_CHARACTERS or not hmac.compare_digest(
        signature.encode(errors="replace"), _signature(text, purpose, secret).encode()
    ):
        return None
    values: dict[str, Any] = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return values if now.timestamp() < values["expires"] else None


def _signature(text: str, purpose: str, secret: bytes) -> str:
    said = f"tiergate {purpose}\0{text}".encode(errors="replace")
    return hmac.digest(secret, said, "sha256").hex()
