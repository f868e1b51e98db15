"""Makes the ids of rows: sortable by time, unguessable enough not to collide; knows no table.

The form is that of UUID version 7 (RFC 9562, section 5.7), written as 32 hex digits: 48 bits of
Unix milliseconds, then random bits, so that rows made later sort later and indexes grow at one end.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime

RandomBits = Callable[[int], int]


def new_id(now: datetime, random_bits: RandomBits = secrets.randbits) -> str:
    """Return a new id for a row made at `now` (aware); `random_bits(k)` draws k random bits."""
    millis = int(now.timestamp() * 1000) & (2**48 - 1)
    value = millis << 80 | 0x7 << 76 | random_bits(12) << 64 | 0b10 << 62 | random_bits(62)
    return f"{value:032x}"
