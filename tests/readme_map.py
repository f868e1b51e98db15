"""Draws the README's map of the house from the first words of every module.

`make map` writes it into README.md; tests/test_house.py fails when the two differ.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("engine", "tenants", "gateway", "migrations")
CLOSED = {"engine/model/builtin", "migrations/versions"}  # many files of one kind
BESIDE = {  # what is not Python, and what a visitor should know of it
    "engine/model/builtin/": "the small model that ships: corpus, training, weights",
    "engine/model/kernels/": "C++ for CPUs (compiled at first use), Triton for GPUs",
    "migrations/versions/": "the steps of the schema",
}
MARK = re.compile(r"(<!-- map -->\s*```text\n).*?(```)", re.DOTALL)
WIDTH = 100


def first_words(path: Path) -> str:
    """Return the first clause of a module's docstring."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
    return re.split(r"[:;]\s|\.(?:\s|$)", text, maxsplit=1)[0].strip().rstrip(".")


def line(depth: int, name: str, words: str) -> str:
    """Return one line of the map; long descriptions end at a whole word."""
    head = "  " * depth + name
    room = WIDTH - 30
    if len(words) > room:
        words = words[:room].rsplit(" ", 1)[0].rstrip(",") + " …"
    return f"{head:<29} {words}".rstrip()


def lines_of(folder: Path, depth: int) -> list[str]:
    """Return the lines of one folder: itself, its modules, then its folders."""
    name = folder.relative_to(ROOT).as_posix()
    words = BESIDE.get(name + "/") or first_words(folder / "__init__.py")
    lines = [line(depth, folder.name + "/", words)]
    if name in CLOSED:
        return lines
    modules = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
    lines += [line(depth + 1, path.name, first_words(path)) for path in modules]
    for path in sorted(p for p in folder.iterdir() if any(p.glob("*.py"))):
        lines += lines_of(path, depth + 1)
    return lines


def draw() -> str:
    """Return the whole map."""
    rooms = ["\n".join(lines_of(ROOT / room, 0)) for room in ROOMS]
    return "\n\n".join(rooms) + "\n"


def with_map(readme: str) -> str:
    """Return the README's text with the map of today in it."""
    assert MARK.search(readme), "README.md has no <!-- map --> followed by a ```text block"
    return MARK.sub(lambda m: m.group(1) + draw() + m.group(2), readme)


if __name__ == "__main__":
    README = ROOT / "README.md"
    README.write_text(with_map(README.read_text()))
