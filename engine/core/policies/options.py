"""Reading a policy's options, numbers by name; it knows no policy.

Each reader takes its option out of the dictionary, so that what is left over is known to nobody.
All raise ValueError with one sentence that names the option.
"""

from __future__ import annotations

import math
from typing import TypeAlias

Options: TypeAlias = dict[str, float]


def whole(options: Options, name: str, default: int, *, least: int = 1) -> int:
    """Return an option that counts something."""
    value = options.pop(name, default)
    if not math.isfinite(value) or value != int(value) or value < least:
        raise ValueError(f"option {name!r} must be a whole number, at least {least}, not {value:g}")
    return int(value)


def real(
    options: Options, name: str, default: float, *, least: float = 0.0, most: float = math.inf
) -> float:
    """Return an option that measures something; infinity is a measure where `most` allows it."""
    value = float(options.pop(name, default))
    if not least <= value <= most:
        limits = f"at least {least:g}" if math.isinf(most) else f"from {least:g} to {most:g}"
        raise ValueError(f"option {name!r} must be {limits}, not {value:g}")
    return value


def switch(options: Options, name: str, default: bool) -> bool:
    """Return an option that is on or off: 1 or 0."""
    value = options.pop(name, default)
    if value not in (0, 1):
        raise ValueError(f"option {name!r} must be 0 or 1, not {value:g}")
    return bool(value)
