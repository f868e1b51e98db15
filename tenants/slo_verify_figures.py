"""Checks that a page shows what its lines say: each figure names its line, field and form.

The forms are written here a second time: what a page is made with is not used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_DOWN, Decimal

from tenants.slo_verify_file import Differs, Figure

_NONE = "–"


def _grouped(text: str, decimals: int) -> str:
    """Return a number in groups of three digits, cut after so many decimals."""
    cut = Decimal(text).quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_DOWN)
    return f"{cut:,f}"


def _percent(text: str, decimals: int) -> str:
    return f"{_grouped(str(Decimal(text) * 100), decimals)} %"


def _objective(text: str) -> str:
    return f"{format((Decimal(text) * 100).normalize(), 'f')} %"


def _verdict(text: str) -> str:
    return {"true": "kept", "false": "missed"}.get(text, "not counted")


_FORMS: dict[str, Callable[[str], str]] = {
    "text": lambda text: text or _NONE,
    "count": lambda text: _grouped(text, 0) if text else _NONE,
    "number": lambda text: _grouped(text, 2) if text else _NONE,
    "percent": lambda text: _percent(text, 3) if text else _NONE,
    "share": lambda text: _percent(text, 1) if text else _NONE,
    "objective": lambda text: _objective(text) if text else _NONE,
    "ns": lambda text: f"{_grouped(str(Decimal(text).scaleb(-6)), 1)} ms" if text else _NONE,
    "ms": lambda text: f"{_grouped(text, 0)} ms" if text else _NONE,
    "when": lambda text: f"{text[:10]} {text[11:19]}" if text else _NONE,
    "minute": lambda text: f"{text[:10]} {text[11:16]}" if text else _NONE,
    "day": lambda text: text[:10] if text else _NONE,
    "verdict": _verdict,
    "kept": lambda text: {"true": "kept", "false": "not kept"}.get(text, "nothing counted"),
}


class Figures:
    """The figures of a page, by the line they are of."""

    def __init__(self, figures: Sequence[Figure]) -> None:
        self._by_line: defaultdict[int, list[Figure]] = defaultdict(list)
        for figure in figures:
            self._by_line[figure.line].append(figure)
        self._count = len(figures)

    def check(self, number: int, line: Mapping[str, str]) -> None:
        """Raise `Differs` for a figure of this line that is not what the line says."""
        for figure in self._by_line.pop(number, ()):
            form = _FORMS.get(figure.form)
            if form is None:
                raise Differs(f"the page shows a figure in a form that is none: {figure.form!r}")
            try:
                right = form(line.get(figure.field, ""))
            except ArithmeticError:
                right = ""
            if figure.text != right:
                raise Differs(
                    f"the page shows {figure.text!r} for {figure.field} of fact {number}, "
                    f"which is {right!r}"
                )

    def finish(self) -> int:
        """Return how many figures there were; raises `Differs` for one of a line that is not."""
        if self._by_line:
            raise Differs(f"the page shows a figure of fact {min(self._by_line)}: there is none")
        return self._count
