"""Writes rules down as YAML that Prometheus reads; which rules there are is not known here.

The part of YAML that is needed is small enough to be written here: mappings, lists, strings,
numbers and truth values, in one order, so that equal rules are equal bytes. Reading YAML is
left to others, so no library comes with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.slo_rules import Group, Recording, RuleOptions, slo_groups
from gateway.slo_rules_health import health_groups
from tenants.values import TierRecord

# Words that need no quotes. What YAML would take for a truth value, a number or nothing does.
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_:./-]*")
_NOT_TEXT = re.compile(r"(?i)y|n|yes|no|on|off|true|false|null|nan")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def rules_text(tiers: Sequence[TierRecord], options: RuleOptions) -> str:
    """Return a file of rules for these tiers."""
    groups = [*slo_groups(tiers, options), *health_groups(options)]
    return header("Prometheus rules", "slo rules", tiers) + as_yaml(
        {"groups": [_group(group, options) for group in groups]}
    )


def header(what: str, command: str, tiers: Sequence[TierRecord]) -> str:
    """Return the lines in front of a generated file: of what it was made."""
    made_of = ", ".join(
        f"{tier.name} (version {tier.version})"
        for tier in sorted(tiers, key=lambda tier: (tier.rank, tier.name))
    )
    lines = (
        f"# {what} for the tiers {made_of}.",
        f"# Made by `tiergate {command}`; change the tiers and run it again.",
    )
    return "".join("".join(c if c.isprintable() else "?" for c in line) + "\n" for line in lines)


def _group(group: Group, options: RuleOptions) -> dict[str, Any]:
    interval = {"interval": group.interval} if group.interval else {}
    return {"name": group.name, **interval, "rules": [_rule(rule, options) for rule in group.rules]}


def _rule(rule: Any, options: RuleOptions) -> dict[str, Any]:
    if isinstance(rule, Recording):
        labels = {"labels": _sorted(rule.labels)} if rule.labels else {}
        return {"record": rule.record, "expr": rule.expr, **labels}
    hold = {"for": rule.hold} if rule.hold else {}
    return {
        "alert": rule.alert,
        "expr": rule.expr,
        **hold,
        "labels": _sorted({**rule.labels, "severity": rule.severity}),
        "annotations": {
            "summary": rule.summary,
            "description": rule.description,
            "runbook_url": f"{options.docs_url}#{rule.alert.lower()}",
        },
    }


def _sorted(labels: Mapping[str, str]) -> dict[str, str]:
    return dict(sorted(labels.items()))


def as_yaml(value: Any) -> str:
    """Return mappings, lists, strings, numbers and truth values as a YAML document."""
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _entry(f"{_scalar(key)}:", inner, "  ")
    else:
        for inner in value:
            yield from _item(inner)


def _item(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping | list | tuple) and value:
        first, *rest = _lines(value)
        yield f"- {first}"
        yield from (f"  {line}" if line else line for line in rest)
    else:
        yield from _entry("-", value, "  ")


def _entry(head: str, value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping | list | tuple) and value:
        yield head
        yield from (indent + line if line else line for line in _lines(value))
    elif isinstance(value, str) and _is_block(value):
        yield f"{head} |-"
        yield from (indent + line if line else line for line in value.split("\n"))
    else:
        yield f"{head} {_scalar(value)}"


def _is_block(text: str) -> bool:
    """True for lines that can stand as they are: they print, and begin and end as text does."""
    return (
        "\n" in text
        and not text[0].isspace()
        and not text[-1].isspace()
        and all(c == "\n" or c.isprintable() for c in text)
    )


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        text = repr(value)
        # YAML 1.1 takes 1e-05 for a word: a number with an exponent has a point there.
        return text if "." in text else text.replace("e", ".0e")
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, list | tuple):
        return "[]"
    text = str(value)
    if _PLAIN.fullmatch(text) and not text.endswith(":") and not _NOT_TEXT.fullmatch(text):
        return text
    return '"' + "".join(_escaped(c) for c in text) + '"'


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
