"""Parking on the real engine: raw is exact, recompute keeps the context, int8 touches only its own.

Three contracts, apart (laws L30 to L34). The tokens are those of transformers' own `generate`.
"""

from __future__ import annotations

import random

import pytest
from engine_run import Setting, generate, make_runner, random_work
from parking_run import ForcedParks, Work, run_parked, with_host
from tiny_models import VOCAB, random_model, tiny_config

from engine.model.attention import TorchAttention, select_attention
from engine.model.hf_model import HFModel
from engine.model.host_cache import HostFormat
from engine.model.kernels.native import NativeKernels
from engine.model.kv_cache import KVCache
from engine.model.self_check import MakeAttention

FAMILIES = ("llama", "qwen2", "opt")
RAW, INT8 = HostFormat("raw", 8), HostFormat("int8", 8)


def work_of(seed: int, count: int = 40) -> tuple[Work, Setting]:
    """Orders that share prompts' beginnings, and a pool for about a fifth of them at once."""
    draw = random.Random(seed)
    work = random_work(draw, VOCAB, count, 30)
    sizes = [len(prompt) + new for prompt, new in work]
    blocks = max(max(sizes) + 8, sum(sizes) // 5) // 8 + 1
    return work, Setting(8, blocks, 64, 32, seed)


def attention_of(model: HFModel, native: NativeKernels | None, seed: int) -> MakeAttention:
    """The torch reference, or whatever is fastest here."""
    if seed % 2:
        return TorchAttention

    def fastest(cache: KVCache) -> TorchAttention:
        return select_attention(cache, model.needs, native)  # type: ignore[return-value]

    return fastest


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_raw_parks_at_any_moment_change_no_token(
    family: str, seed: int, native: NativeKernels | None
) -> None:
    """Parked each 1 to 12 tokens, in prompts and answers, with shared prefixes (law L30)."""
    module = random_model(tiny_config(family), seed)
    work, setting = work_of(seed)
    want = generate(module, work)
    model = HFModel(module)
    runner = make_runner(model, setting, attention_of(model, native, seed))
    runner = with_host(runner, 3 * setting.num_blocks, RAW, native, spare_core=seed == 1)
    draw = random.Random(seed)
    policy = ForcedParks(draw, 64, every=draw.choice([1, 4, 12]))
    answers, seen = run_parked(runner, work, policy, seed)
    assert answers == want
    assert seen.parks_total > 2 * len(work)
    assert seen.copied_tokens_total > 0
    # A thread ends its copies when it likes, so what is still findable then is not known.
    assert seen.cached_tokens_total > 0 or seed == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", [RAW, INT8], ids=["raw", "int8"])
def test_lost_copies_and_a_full_host_fall_back_to_computing_again(
    family: str, form: HostFormat, native: NativeKernels | None
) -> None:
    """Every park or its return fails, the host holds next to nothing: the same tokens (L31, L33,
    L34).
    """
    module = random_model(tiny_config(family), 7)
    work, setting = work_of(7)
    want = generate(module, work)
    runner = make_runner(HFModel(module), setting)
    # Everything is lost: with int8 no rounded context may ever be used.
    lossy = (random.Random(7), 1.0 if form is INT8 else 0.5)
    runner = with_host(runner, 12, form, native, lossy=lossy)
    # Three losses without a token between them are a broken engine, which ends a request as such.
    policy = ForcedParks(random.Random(7), 64, every=6, prompts=False)
    answers, seen = run_parked(runner, work, policy, 7)
    assert answers == want
    assert seen.lost_copies_total > 5
    assert seen.recomputed_tokens_total > 0


def test_a_corrupt_host_block_is_computed_again_and_never_said(
    native: NativeKernels | None,
) -> None:
    """With checksums a changed byte costs time and no token (law L33)."""
    module = random_model(tiny_config("llama"), 3)
    work, setting = work_of(3)
    want = generate(module, work)
    runner = make_runner(HFModel(module), setting)
    runner = with_host(runner, 3 * setting.num_blocks, RAW, native, checksums=True)
    draw = random.Random(3)

    def corrupt() -> None:
        host = runner._swap._host  # type: ignore[union-attr]
        host.data[draw.randint(1, host.num_blocks), draw.randrange(host.block_bytes)] ^= 0x40

    answers, seen = run_parked(
        runner, work, ForcedParks(random.Random(3), 64, every=5), 3, before_step=corrupt
    )
    assert answers == want
    assert seen.lost_copies_total > 0
    assert seen.parks_total > 10 * seen.lost_copies_total / 9


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_has_no_effect_on_who_was_never_parked(
    family: str, native: NativeKernels | None
) -> None:
    """Half of the requests are parked as int8; those beside them, which share their prefixes and
    come later as well, answer as if nothing had happened (law L32).
    """
    module = random_model(tiny_config(family), 5)
    work, setting = work_of(5, count=60)
    want = generate(module, work)
    parked = frozenset(str(number) for number in range(0, len(work), 2))
    runner = make_runner(HFModel(module), setting)
    runner = with_host(runner, 3 * setting.num_blocks, INT8, native)
    policy = ForcedParks(random.Random(5), 64, every=3, ids=parked)
    answers, seen = run_parked(runner, work, policy, 5)
    assert answers[1::2] == want[1::2]
    assert [len(answer) for answer in answers] == [new for _, new in work]
    assert seen.parks_total > 30
    assert seen.cached_tokens_total > 0
