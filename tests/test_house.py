"""The house rules of CONTRIBUTING.md, read from the syntax trees: floors, clocks, sizes, map."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from readme_map import with_map

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("engine", "tenants", "gateway", "migrations")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70

# Room -> (rooms of the house it may import, packages from outside it may import).
# The most specific room wins; the standard library is open to all but for what BANNED names.
FLOORS: dict[str, tuple[set[str], set[str]]] = {
    "engine/core": ({"engine.core"}, set()),
    "engine/model": (
        {"engine.core", "engine.model"},
        {
            "torch",
            "transformers",
            "huggingface_hub",
            "safetensors",
            "tokenizers",
            "numpy",
            "jinja2",
            "llguidance",
            "triton",
        },
    ),
    "engine/model/builtin": (
        {"engine.core", "engine.model"},
        {"torch", "transformers", "safetensors", "tokenizers", "numpy", "rich"},
    ),
    # learned.py is the one place that puts the learned predictor into a run.
    "engine/sim": ({"engine.core", "engine.sim", "engine.learning"}, set()),
    "engine/learning": ({"engine.core", "engine.learning"}, {"numpy", "threadpoolctl", "xgboost"}),
    # build.py is the one place that makes an executor by name, hence engine.model here.
    "engine/serving": ({"engine.core", "engine.serving", "engine.model"}, {"msgspec"}),
    "tenants": ({"tenants"}, {"sqlalchemy"}),
    "migrations": (
        {"migrations", "tenants", "gateway.settings"},
        {"alembic", "sqlalchemy"},
    ),
    "gateway": (
        {
            "gateway",
            "engine.core",
            "engine.serving",
            "engine.sim",
            "engine.learning",
            "engine.model",
            "tenants",
            "migrations",
        },
        {
            "argon2",
            "authlib",
            "httpx2",
            "joserfc",
            "fastapi",
            "starlette",
            "pydantic",
            "pydantic_settings",
            "opentelemetry",
            "prometheus_client",
            "msgspec",
            "redis",
            "uvicorn",
            "uvloop",
            "orjson",
            "httpx",
            "jinja2",
            "markupsafe",
            "rich",
            "typer",
            "click",
        },
    ),
}

# What the gateway may take from the model's room: text in and text out, never a tensor.
GATEWAY_MODEL_MODULES = {
    "engine.model.builtin",
    "engine.model.chat_template",
    "engine.model.detokenizer",
    "engine.model.grammar",
    "engine.model.stop_strings",
    "engine.model.tokenizer",
}
SERVING_MODEL_MODULES = {"engine.model.loader", "engine.model.model_runner"}

# A call that may be made only in the files named, with what to use instead.
CLOCK = {"engine/core/clock.py"}
ENVIRONMENT = {"gateway/settings.py", "engine/serving/process.py", "engine/serving/child.py"}
BANNED: dict[str, tuple[set[str], str]] = {
    "time.time": (CLOCK, "a Clock, or now_ns handed in"),
    "time.monotonic": (CLOCK, "a Clock, or now_ns handed in"),
    "time.monotonic_ns": (CLOCK, "a Clock, or now_ns handed in"),
    "time.perf_counter": (CLOCK, "a Clock, or now_ns handed in"),
    "time.perf_counter_ns": (CLOCK, "a Clock, or now_ns handed in"),
    "datetime.now": (CLOCK, "engine.core.clock.utc_now()"),
    "datetime.utcnow": (CLOCK, "engine.core.clock.utc_now()"),
    "datetime.datetime.now": (CLOCK, "engine.core.clock.utc_now()"),
    "os.environ": (ENVIRONMENT, "a setting handed in"),
    "os.getenv": (ENVIRONMENT, "a setting handed in"),
    "asyncio.ensure_future": (set(), "a task that someone awaits and cancels"),
    "random.random": (set(), "a random.Random(seed) handed in"),
    "random.randint": (set(), "a random.Random(seed) handed in"),
    "random.choice": (set(), "a random.Random(seed) handed in"),
    "random.seed": (set(), "a random.Random(seed) handed in"),
}

# A broad `except` swallows programming errors; these places must outlive anything, and say why.
BROAD_EXCEPT = {
    "engine/learning/background.py",  # or guesses grow old for ever, and nobody knows
    "engine/serving/loop.py",
    "gateway/metering.py",
}


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def modules() -> list[Path]:
    return [p for room in ROOMS for p in sorted((ROOT / room).rglob("*.py"))]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    name = relative(path)
    return max((room for room in FLOORS if name.startswith(room + "/")), key=len, default="")


def imported_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def within(name: str, allowed: set[str]) -> bool:
    return any(name == a or name.startswith(a + ".") for a in allowed)


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_nobody_imports_up_a_floor(path: Path) -> None:
    room = room_of(path)
    if not room:  # engine/__init__.py belongs to no floor and must import nothing
        assert not [n for n in imported_names(parse(path)) if n[1] != "__future__.annotations"]
        return
    house, outside = FLOORS[room]
    wrong = []
    for line, name in imported_names(parse(path)):
        top = name.split(".")[0]
        if top in ROOMS:
            ok = within(name, house)
            if ok and room == "gateway" and name.startswith("engine.model"):
                ok = within(name, GATEWAY_MODEL_MODULES)
            if ok and room == "engine/sim" and name.startswith("engine.learning"):
                ok = relative(path) == "engine/sim/learned.py"
            if ok and room == "engine/serving" and name.startswith("engine.model"):
                ok = within(name, SERVING_MODEL_MODULES)
        else:
            ok = top in outside or top in sys.stdlib_module_names
        if not ok:
            wrong.append(f"{relative(path)}:{line} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_clock_environment_and_randomness_have_one_room(path: Path) -> None:
    name = relative(path)
    wrong = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            if dotted in BANNED and name not in BANNED[dotted][0]:
                wrong.append(f"{name}:{node.lineno} {dotted}: use {BANNED[dotted][1]}")
    assert wrong == []


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_a_module_says_what_it_knows_and_stays_small(path: Path) -> None:
    source, tree = path.read_text(), parse(path)
    doc = ast.get_docstring(tree)
    assert doc, f"{relative(path)} opens with no docstring"
    assert len(source.splitlines()) <= MAX_FILE_LINES, f"{relative(path)} has too many lines"
    long = [
        f"{relative(path)}:{node.lineno} {node.name} has {size} lines"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (size := (node.end_lineno or node.lineno) - node.body[0].lineno + 1)
        > MAX_FUNCTION_LINES
    ]
    assert long == []


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_no_global_statement_and_no_broad_except(path: Path) -> None:
    name, wrong = relative(path), []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Global):
            wrong.append(f"{name}:{node.lineno} global")
        if isinstance(node, ast.ExceptHandler) and name not in BROAD_EXCEPT:
            caught = "" if node.type is None else ast.unparse(node.type)
            if node.type is None or re.search(r"\b(Base)?Exception\b", caught):
                wrong.append(f"{name}:{node.lineno} except {caught or '(everything)'}")
    assert wrong == []


def dataclass_options(node: ast.ClassDef) -> set[str] | None:
    for decorator in node.decorator_list:
        text = ast.unparse(decorator)
        if re.match(r"(dataclasses\.)?dataclass\b", text):
            return set(re.findall(r"(\w+)=True", text))
    return None


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_dataclasses_are_values(path: Path) -> None:
    wrong = [
        f"{relative(path)}:{node.lineno} {node.name}"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ClassDef)
        and (options := dataclass_options(node)) is not None
        and not {"frozen", "slots"} <= options
    ]
    assert wrong == []


def test_the_map_in_the_readme_is_the_tree_on_disk() -> None:
    readme = (ROOT / "README.md").read_text()
    assert with_map(readme) == readme, "run `make map`"


def test_the_project_speaks_only_of_itself() -> None:
    """No path of a builder's machine and no registry host in anything that ships."""
    pattern = re.compile(
        r"/(?:work|root|home/(?!tiergate/|someone/)\w+)/|files\.pythonhosted\.org|registry\.npmjs\.org"
    )
    wrong = [
        f"{relative(path)}:{number}"
        for path in ROOT.rglob("*")
        if path.is_file()
        and path.suffix in {".py", ".md", ".toml", ".txt", ".json", ".yml", ".yaml", ".cpp", ".mjs"}
        and not {".git", ".venv", "node_modules", "weights"} & set(path.parts)
        and path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert wrong == []
