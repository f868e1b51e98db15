"""Which policies to compare, as text: a name, and in brackets what is not as usual.

`slai`, `hybrid[park=0]`, `alise[predictor=oracle;host_tokens=65536]`. It knows the form, and leaves
it to the policies to know their options.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# What may stand among a policy's options and is the simulation's: so that, for one, the same
# policy can be laid beside itself with perfect predictions.
PREDICTOR, KV_TOKENS, HOST_TOKENS = "predictor", "kv_tokens", "host_tokens"
WORDS = {"true": 1.0, "on": 1.0, "yes": 1.0, "false": 0.0, "off": 0.0, "no": 0.0}
MOST_LABEL = 200


class ChoiceError(ValueError):
    """The text names no policy in the form that is asked for; one sentence says why."""


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """A policy to run, by a label of its own; None where the simulation's setting holds."""

    label: str
    name: str
    options: tuple[tuple[str, float], ...] = ()
    predictor: str | None = None
    num_kv_tokens: int | None = None
    num_host_kv_tokens: int | None = None

    @property
    def slug(self) -> str:
        """The label as part of a file name."""
        return re.sub(r"[^A-Za-z0-9_.=+-]+", "-", self.label).strip("-")


def parse_choices(text: str) -> tuple[PolicyChoice, ...]:
    """Return the choices of a list with commas between; raises ChoiceError."""
    choices = tuple(parse_choice(part) for part in _split(text))
    if not choices:
        raise ChoiceError("policies: name at least one")
    for field in ("label", "slug"):
        seen = set[str]()
        for choice in choices:
            value = getattr(choice, field)
            if value in seen:
                raise ChoiceError(f"policies: {choice.label!r} is there twice")
            seen.add(value)
    return choices


def _split(text: str) -> list[str]:
    """Split at the commas that stand outside brackets."""
    parts = re.split(r",(?![^\[\]]*\])", text)
    return [part for part in (part.strip() for part in parts) if part]


def parse_choice(text: str) -> PolicyChoice:
    """Return one choice, `NAME` or `NAME[key=value;key=value]`; raises ChoiceError."""
    match = re.fullmatch(r"([A-Za-z0-9_.-]+)(?:\[([^\[\]]*)\])?", text.strip())
    if match is None or len(text) > MOST_LABEL:
        raise ChoiceError(f"policy {text!r:.80}: must be NAME or NAME[key=value;key=value]")
    name, inside = match.groups()
    pairs = [part.strip() for part in re.split(r"[;,]", inside or "") if part.strip()]
    keys = tuple(parse_option(pair) for pair in pairs)
    names = [key for key, _ in keys]
    for key in names:
        if names.count(key) > 1:
            raise ChoiceError(f"policy {name}: option {key} is there twice")
    label = f"{name}[{';'.join(pairs)}]" if pairs else name
    special = {key: value for key, value in keys if key in (PREDICTOR, KV_TOKENS, HOST_TOKENS)}
    return PolicyChoice(
        label,
        name,
        tuple((key, _number(key, value)) for key, value in keys if key not in special),
        special.get(PREDICTOR),
        _tokens(KV_TOKENS, special.get(KV_TOKENS)),
        _tokens(HOST_TOKENS, special.get(HOST_TOKENS)),
    )


def parse_option(text: str) -> tuple[str, str]:
    """Return key and value of `key=value`; raises ChoiceError."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not key or not equals or not value:
        raise ChoiceError(f"option {text!r:.80}: must be key=value")
    return key, value


def parse_options(texts: list[str]) -> tuple[tuple[str, float], ...]:
    """Return a policy's options from `key=value` texts; raises ChoiceError."""
    return tuple((key, _number(key, value)) for key, value in map(parse_option, texts))


def _number(key: str, value: str) -> float:
    if value.lower() in WORDS:
        return WORDS[value.lower()]
    try:
        return float(value)
    except ValueError:
        raise ChoiceError(f"option {key}: must be a number or on/off, not {value!r:.40}") from None


def _tokens(key: str, value: str | None) -> int | None:
    if value is None:
        return None
    if not value.isdecimal() or len(value) > 12:
        raise ChoiceError(f"option {key}: must be a whole number of tokens, not {value!r:.40}")
    return int(value)
