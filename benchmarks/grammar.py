"""Time constrained decoding: compiling, one step's mask and consumption a row, and schema bombs.

    python -m benchmarks.grammar [--steps 400] [--vocab 151936]

Writes benchmarks/results/grammar.json. Masks are timed with the built-in model's tokenizer and with
a vocabulary of `--vocab` made-up words, the size of Qwen's; each step consumes a token drawn evenly
from what was allowed, which is harder than what a model writes. `sampler` is a whole step of the
sampler at 32 rows, all of them constrained, beside the same rows free.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llguidance
import numpy as np
import torch

from benchmarks.scheduling.points import machine
from engine.core.batch import Chunk
from engine.core.clock import MonotonicClock, utc_now
from engine.core.grammar import GrammarError, json_schema_grammar
from engine.core.request import SamplingParams
from engine.model.checkpoint import open_checkpoint
from engine.model.grammar import GrammarCompiler
from engine.model.grammar_masks import GrammarMasks
from engine.model.kernels.native import load_native
from engine.model.sampler import Sampler
from engine.model.tokenizer import Tokenizer

RESULT = Path(__file__).parent / "results" / "grammar.json"
ROWS = 32


def wide(count: int, **more: Any) -> dict[str, Any]:
    kinds = ("string", "integer", "null")
    return {
        "type": "object",
        "properties": {f"p{i}": {"type": kinds[i % 3]} for i in range(count)},
    } | more


SCHEMAS: dict[str, dict[str, Any]] = {
    "any object": {"type": "object"},
    "person": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer"},
            "tags": {"type": "array", "items": {"enum": ["x", "y", "z"]}},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    },
    "strings of a pattern": {
        "type": "array", "minItems": 100,
        "items": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{4,8}-[a-f0-9]{12}$"},
    },
    "100 optional properties": wide(100, additionalProperties=False),
    "256 optional properties": wide(256),
}  # fmt: skip


def _nest(base: dict[str, Any], levels: int, combine: str, times: int) -> dict[str, Any]:
    names = {"a0": base}
    for i in range(1, levels):
        names[f"a{i}"] = {combine: [{"$ref": f"#/$defs/a{i - 1}"}] * times}
    return {"$defs": names, "$ref": f"#/$defs/a{levels - 1}"}


BOMBS: dict[str, dict[str, Any]] = {
    "a billion laughs": _nest({"type": "string"}, 20, "prefixItems", 10),
    "all of all of all": _nest({"properties": {"x": {}}}, 12, "allOf", 4),
    "a product of choices": {
        "allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {}}} for j in range(4)]} for i in range(8)]
    },
    "nested repeats": {"type": "string", "pattern": "^(((.{1,99}){1,99}){1,99})$"},
    "many lexer states": {"type": "string", "pattern": "^.*a.{200}b.{200}$"},
    "eight divisors": {
        "prefixItems": [{"type": "integer", "multipleOf": 985 + i} for i in range(8)],
    },
    "three divisors at once": {"allOf": [{"multipleOf": n} for n in (101, 103, 107)]},
}  # fmt: skip


def microseconds(times_ns: list[int]) -> dict[str, float]:
    """Return the median, the 99th percentile and the longest."""
    ordered = sorted(times_ns)
    at = min(len(ordered) - 1, round(0.99 * len(ordered)))
    return {
        "p50": round(statistics.median(ordered) / 1000, 1),
        "p99": round(ordered[at] / 1000, 1),
        "max": round(ordered[-1] / 1000, 1),
    }


def walk(
    masks: GrammarMasks, schema: dict[str, Any], steps: int, ends: list[int]
) -> dict[str, Any]:
    """Follow a schema with random tokens; a step is all that `masks` does for one row."""
    clock, draw = MonotonicClock(), random.Random(1)
    grammar = json_schema_grammar(schema)
    sampling = SamplingParams(max_tokens=steps, grammar=grammar)
    ids: tuple[int, ...] = ()
    times, number, cut = [], 0, 0
    while len(times) < steps:
        row = Chunk(f"{id(schema)}-{number}", 0, (1,), (1,), sampling, len(ids), (), ids)
        began = clock.now_ns()
        bits = masks.masks([row]).bits[row.request_id]
        times.append(clock.now_ns() - began)
        flags = np.unpackbits(bits, bitorder="little")
        cut += not flags.any()
        flags[ends] = 0
        more = np.flatnonzero(flags)
        if len(more) and len(ids) < 200:
            ids = (*ids, int(more[draw.randrange(len(more))]))
        else:
            ids, number = (), number + 1
    return {"step_us": microseconds(times), "answers": number, "given_up": cut}


def compile_ms(compiler: GrammarCompiler, schema: dict[str, Any]) -> tuple[float, str]:
    """Return how long it took to be ready or refused, and what was said."""
    clock = MonotonicClock()
    began = clock.now_ns()
    try:
        compiler.matcher(json_schema_grammar(schema))
        said = "followed"
    except GrammarError as error:
        said = f"refused: {error}"
    return round((clock.now_ns() - began) / 1e6, 2), said


class Words:
    """A vocabulary of made-up words over all bytes, as many as asked for."""

    def __init__(self, count: int) -> None:
        draw = random.Random(0)
        letters = "etaoinshrdlucmfwypvbgkjqxz"
        words = {b"</s>": None} | {bytes([b]): None for b in range(256)}
        for text in ('{"', '":', '", "', '"}', "},", "[", "true", "false", "null", " {", "\n  "):
            words[text.encode()] = None
        while len(words) < count:
            word = "".join(draw.choice(letters) for _ in range(draw.randint(2, 9)))
            words[(" " * draw.randint(0, 1) + word).encode()] = None
        self.tokens = list(words)
        self.eos_token_id, self.bos_token_id, self.special_token_ids = 0, None, [0]

    def __call__(self, text: bytes) -> list[int]:
        return [1 + byte for byte in text]


def sampler_ms(masks: GrammarMasks, vocab: int, steps: int) -> dict[str, dict[str, float]]:
    """Return milliseconds of a whole sampling step of 32 rows, held and free, by temperature."""
    clock = MonotonicClock()
    sampler = Sampler(vocab, load_native(), grammars=masks)
    logits = torch.randn(ROWS, vocab, generator=torch.Generator().manual_seed(0)) * 3
    found: dict[str, dict[str, float]] = {}
    for name, temperature in (("greedy", 0.0), ("temperature 1", 1.0)):
        for grammar in ("", json_schema_grammar(SCHEMAS["person"])):
            rows = [
                Chunk(
                    f"{name}{i}", 0, (1,), (1,),
                    SamplingParams(max_tokens=9, temperature=temperature, seed=i, grammar=grammar),
                )
                for i in range(ROWS)
            ]  # fmt: skip
            times = []
            for _ in range(steps):
                began = clock.now_ns()
                sampler.sample(logits, rows)
                times.append(clock.now_ns() - began)
            key = "held" if grammar else "free"
            found.setdefault(name, {})[key] = round(statistics.median(times) / 1e6, 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--vocab", type=int, default=151936)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.load(open_checkpoint("builtin").path)
    words = Words(asked.vocab)
    began = time.perf_counter()
    large = llguidance.LLTokenizer(llguidance.TokenizerWrapper(words), eos_token=[0])
    made_s = time.perf_counter() - began
    vocabularies = {
        "builtin": (
            GrammarCompiler.for_tokenizer(tokenizer),
            tokenizer.vocab_size,
            list(tokenizer.stop_token_ids),
        ),
        "large": (GrammarCompiler(large), asked.vocab, [0]),
    }
    results: dict[str, Any] = {}
    for name, (compiler, size, ends) in vocabularies.items():
        masks = GrammarMasks(compiler, size)
        results[name] = {"vocab": size, "schemas": {}}
        for title, schema in SCHEMAS.items():
            taken, _ = compile_ms(compiler, schema)
            walked = walk(masks, schema, asked.steps, ends)
            results[name]["schemas"][title] = {"compile_ms": taken} | walked
        results[name]["sampler_32_rows_ms"] = sampler_ms(masks, size, 15)
    results["large"]["vocabulary_s"] = round(made_s, 2)
    door = GrammarCompiler.for_bytes()
    bombs = dict(zip(("ms", "said"), compile_ms(door, {"type": "boolean"}), strict=True))
    results["door"] = {"boolean": bombs} | {
        title: dict(zip(("ms", "said"), compile_ms(door, schema), strict=True))
        for title, schema in BOMBS.items()
    }
    results |= {
        "machine": machine(),
        "llguidance": version("llguidance"),
        "torch": torch.__version__,
        "when": utc_now().isoformat(timespec="seconds"),
    }
    RESULT.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
