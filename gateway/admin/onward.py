"""Where a browser goes on after a login: only to pages of ours."""

from __future__ import annotations

import re

FIRST = "/admin"
MOST_NEXT = 1000
# Neither another host nor the login page itself; nothing in it needs an escape but &.
_NEXT = re.compile(r"/admin(?!/login)(/[A-Za-z0-9._~%:,@+-]+)*(\?[A-Za-z0-9._~%:,@+&=/-]*)?")


def safe_next(path: str) -> str:
    """Return a page of ours to go on to: `path`, or the first one where that is none."""
    return path if len(path) <= MOST_NEXT and _NEXT.fullmatch(path) else FIRST
