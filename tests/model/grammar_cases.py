"""Vocabularies, models and schemas for tests of constrained answers, and a small validator."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from engine_run import RandomChunks, Setting
from hypothesis import strategies as st
from tiny_models import random_model, tiny_config
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from engine.core.engine_core import EngineCore
from engine.core.executor import Capacity
from engine.core.request import FinishReason, RequestOrder, SamplingParams
from engine.core.stats import Snapshot
from engine.model.attention import TorchAttention
from engine.model.grammar import GrammarCompiler
from engine.model.grammar_masks import GrammarMasks
from engine.model.hf_model import HFModel, PagedModel, kv_shape_of
from engine.model.kv_cache import KVCache
from engine.model.model_runner import ModelRunner, RunnerInfo
from engine.model.sampler import Sampler
from engine.model.tokenizer import Tokenizer

VOCAB = 320  # of the model: wider than the tokenizer's
TEXT = ['{"name": "ab", "is ok": [true, false, null, 12, -3]}', '{"a":{"b":"x","name":""}}', "], "]


@cache
def make_tokenizer(folder: Path) -> Tokenizer:
    """Write and load a byte-level tokenizer whose longer tokens cross the borders of JSON's own."""
    folder.mkdir(parents=True, exist_ok=True)
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 10,
        min_frequency=1,
        special_tokens=["<end>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT * 3, trainer)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    return Tokenizer.load(folder)


@cache
def make_model() -> PagedModel:
    config = tiny_config("llama", vocab_size=VOCAB, max_position_embeddings=1024)
    return HFModel(random_model(config))


def make_constrained_runner(
    tokenizer: Tokenizer, setting: Setting, max_states: int = 64
) -> ModelRunner:
    """A runner of the random model whose sampler can follow grammars."""
    model = make_model()
    cache_ = KVCache(kv_shape_of(model.needs), setting.num_blocks, setting.block_size, model.device)
    attention = TorchAttention(cache_)
    capacity = Capacity(
        setting.num_blocks,
        setting.block_size,
        model.max_model_len,
        setting.max_batch_tokens,
        setting.max_batch_requests,
    )
    info = RunnerInfo("tiny", "", "generic", attention.name, "cpu", "float32", 0, 0.0)
    masks = GrammarMasks(GrammarCompiler.for_tokenizer(tokenizer), VOCAB, max_states)
    return ModelRunner(model, attention, Sampler(VOCAB, grammars=masks), capacity, info)


def answers_of(
    runner: ModelRunner, work: Sequence[tuple[tuple[int, ...], SamplingParams]], seed: int
) -> tuple[list[list[int]], list[FinishReason | None], Snapshot]:
    """Return each order's tokens, why it ended, and the core's last snapshot.

    Steps have random sizes, and orders come in while others are served.
    """
    draw = random.Random(seed)
    core = EngineCore(runner.capacity, RandomChunks(draw, runner.capacity.max_batch_tokens))
    waiting = list(enumerate(work))
    tokens: list[list[int]] = [[] for _ in work]
    reasons: list[FinishReason | None] = [None for _ in work]
    now = 0
    while waiting or core.has_work:
        now += 1
        for _ in range(min(len(waiting), draw.randint(0, 6) if core.has_work else 6)):
            number, (prompt, sampling) = waiting.pop(0)
            core.submit(RequestOrder(str(number), prompt, sampling, now), now)
        batch = core.start_step(now)
        if batch is None:
            continue
        now += 1
        for event in core.finish_step(batch, runner.execute(batch), now):
            if event.token_id is not None:
                tokens[int(event.request_id)].append(event.token_id)
            if event.finish_reason is not None:
                reasons[int(event.request_id)] = event.finish_reason
    core.check_integrity()
    return tokens, reasons, core.snapshot(now)


NAMES = st.sampled_from(["a", "b", "name", "is ok", "ünï", 'q"uote', "x\\y", "", "<end>"])
LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, width: {"type": "integer", "minimum": low, "maximum": low + width},
        st.integers(-500, 500),
        st.integers(0, 999),
    ),
    st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 6)),
    st.just({"type": "string", "pattern": "^[a-f]{2,5}$"}),
    st.builds(
        lambda values: {"enum": values},
        st.lists(
            st.one_of(st.none(), st.booleans(), st.integers(-9, 99), NAMES),
            min_size=1,
            max_size=4,
            unique_by=repr,
        ),
    ),
    st.builds(lambda value: {"const": value}, NAMES),
)


def _object(properties: dict[str, Any], required: list[bool]) -> dict[str, Any]:
    names = [n for n, wanted in zip(properties, required, strict=False) if wanted]
    return {
        "type": "object",
        "properties": properties,
        "required": names,
        "additionalProperties": False,
    }


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(
            _object,
            st.dictionaries(NAMES, inner, max_size=3),
            st.lists(st.booleans(), min_size=3, max_size=3),
        ),
        st.builds(
            lambda item, least, more: {
                "type": "array", "items": item, "minItems": least, "maxItems": least + more,
            },
            inner, st.integers(0, 2), st.integers(0, 2),
        ),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)  # fmt: skip


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """True where `value` satisfies one of the schemas above (JSON Schema, draft 2020-12)."""
    if "anyOf" in schema:
        return any(fits(value, option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        options = schema.get("enum", [schema.get("const")])
        return any(type(value) is type(one) and value == one for one in options)
    kind = schema["type"]
    if kind in ("boolean", "null"):
        return isinstance(value, bool) if kind == "boolean" else value is None
    if kind == "integer":
        is_number = isinstance(value, int) and not isinstance(value, bool)
        return is_number and schema["minimum"] <= value <= schema["maximum"]
    if kind == "string":
        fitting = re.search(schema.get("pattern", ""), value) if isinstance(value, str) else None
        return fitting is not None and len(value) <= schema.get("maxLength", 99)
    if kind == "array":
        return (
            isinstance(value, list)
            and schema["minItems"] <= len(value) <= schema["maxItems"]
            and all(fits(item, schema["items"]) for item in value)
        )
    return (
        isinstance(value, dict)
        and set(schema["required"]) <= set(value) <= set(schema["properties"])
        and all(fits(item, schema["properties"][name]) for name, item in value.items())
    )
