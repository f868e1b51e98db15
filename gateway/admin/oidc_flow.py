"""What the gateway remembers between sending a browser to the provider and its coming back.

It lies in the browser, in a signed cookie of a few minutes, so that any worker can take the answer.
The cookie is `SameSite=Lax`: it must come along when the provider's page sends the browser back.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from dataclasses import asdict, dataclass
from datetime import datetime

import orjson

from gateway.admin.onward import FIRST

LIFETIME_S = 600
MOST_CHARACTERS = 2048


@dataclass(frozen=True, slots=True)
class Flow:
    """One way to the provider and back; `expires` is a Unix time in seconds.

    `onward` is the page to go on to: whoever makes the flow has checked it.
    """

    state: str
    nonce: str
    verifier: str
    expires: int
    onward: str = FIRST


def new_flow(now: datetime, onward: str = FIRST) -> Flow:
    """Return a new flow; each of its secrets has 256 random bits."""
    state, nonce = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    verifier = secrets.token_urlsafe(48)
    return Flow(state, nonce, verifier, int(now.timestamp()) + LIFETIME_S, onward)


def sealed(flow: Flow, secret: bytes) -> str:
    """Return a flow as a cookie's value."""
    text = base64.urlsafe_b64encode(orjson.dumps(asdict(flow))).decode()
    return f"{text}.{_signature(text, secret)}"


def opened(value: str, secret: bytes, state: str, now: datetime) -> Flow | None:
    """Return the flow of a cookie, None for one that is not ours, is over, or has another state."""
    text, _, signature = value.partition(".")
    if len(value) > MOST_CHARACTERS or not hmac.compare_digest(
        signature.encode(errors="replace"), _signature(text, secret).encode()
    ):
        return None
    flow = Flow(**orjson.loads(base64.urlsafe_b64decode(text)))
    is_same = hmac.compare_digest(flow.state.encode(), state.encode(errors="replace"))
    return flow if is_same and now.timestamp() < flow.expires else None


def _signature(text: str, secret: bytes) -> str:
    said = b"tiergate oidc flow\0" + text.encode(errors="replace")
    return hmac.digest(secret, said, "sha256").hex()
