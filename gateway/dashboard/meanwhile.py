"""What others changed while somebody typed into a form.

For what has no versions as tiers have. A hidden field of the form has a digest of each field as it
was shown. What was left alone is not sent on, so that others' changes stay; where both changed one
field, nothing is saved and both are shown. What the fields mean is the pages' business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from gateway.dashboard.forms import Form
from gateway.errors import bad_value

SHOWN = "shown"  # the hidden field
CLASH = 412
_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Compared:
    """What was typed, held against what was shown and what is there now.

    `changed`: the fields to send on, in their order; `untouched`: those nobody typed into;
    `clashes`: what others have set meanwhile in fields that were typed into.
    """

    changed: tuple[str, ...]
    untouched: tuple[str, ...]
    clashes: Mapping[str, str]


def as_shown(texts: Mapping[str, str]) -> str:
    """Return what the hidden field of a form with these texts holds."""
    return orjson.dumps({name: _digest(text) for name, text in texts.items()}).decode()


def compared(form: Form, typed: Mapping[str, str], now: Mapping[str, str]) -> Compared:
    """Compare `typed` with the form's hidden field and with `now`, all texts in one spelling.

    A form without the field is taken as made of what is there now. Raises ApiError.
    """
    others = others_changed(form, now)
    before = _before(form, now)
    touched = [n for n, text in typed.items() if _digest(text) != before.get(n, _digest(""))]
    changed = [n for n in touched if typed[n] != now.get(n, "")]
    clashes = {name: now.get(name, "") for name in changed if name in others}
    untouched = [name for name in typed if name not in touched]
    return Compared(tuple(changed), tuple(untouched), clashes)


def others_changed(form: Form, now: Mapping[str, str]) -> set[str]:
    """Return the fields that are no more as the form showed them, likewise."""
    before, absent = _before(form, now), _digest("")
    names = before.keys() | now.keys()
    return {n for n in names if before.get(n, absent) != _digest(now.get(n, ""))}


def _before(form: Form, now: Mapping[str, str]) -> Mapping[str, str]:
    """Return the digests of what the form showed, by field."""
    text = form[SHOWN]
    if not text:
        return {name: _digest(value) for name, value in now.items()}
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise bad_value(SHOWN, f"'{SHOWN}' is not what a form of ours sends.")
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
