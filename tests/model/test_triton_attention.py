"""The CUDA kernel computes what plain attention computes; without a GPU it runs interpreted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernel is decorated, hence before import

triton_attention = pytest.importorskip(
    "engine.model.kernels.triton_attention", reason="Triton is not installed"
)

from engine.core.batch import Batch, Chunk  # noqa: E402
from engine.model.attention import TorchAttention  # noqa: E402
from engine.model.kv_cache import KVCache, KVShape  # noqa: E402
from engine.model.step_input import StepInput, StepInputBuilder  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Triton's interpreter multiplies bfloat16 as raw 16-bit integers; float16 stands in for it there.
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16


def a_step(chunks: list[tuple[int, int]], block_size: int, rng: np.random.Generator) -> StepInput:
    """Chunks as (tokens before, tokens now), on scattered blocks that no two chunks share."""
    counts = [-(-(start + length) // block_size) for start, length in chunks]
    blocks = iter((rng.permutation(sum(counts)) + 1).tolist())
    batch = Batch(
        step=1,
        chunks=tuple(
            Chunk(str(i), start, (0,) * length, tuple(next(blocks) for _ in range(count)), None)
            for i, ((start, length), count) in enumerate(zip(chunks, counts, strict=True))
        ),
    )
    return StepInputBuilder(block_size, DEVICE).build(batch)


def plain_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    inp: StepInput,
    scale: float,
    window: int,
    softcap: float = 0.0,
) -> torch.Tensor:
    """The definition, a query and a head at a time, in float64."""
    out = torch.zeros(query.shape, dtype=torch.float64, device=query.device)
    group = query.shape[1] // keys.shape[1]
    for s in range(inp.num_chunks):
        begin, end = int(inp.cu_q_host[s]), int(inp.cu_q_host[s + 1])
        context = int(inp.context_lens_host[s])
        positions = torch.arange(context, device=query.device)
        table = inp.block_tables[s].long()
        slots = table[positions // inp.block_size] * inp.block_size + positions % inp.block_size
        for t in range(begin, end):
            own = context - (end - t)
            low = max(0, own - window + 1) if window else 0
            k = keys[slots[low : own + 1]].double().repeat_interleave(group, dim=1)
            v = values[slots[low : own + 1]].double().repeat_interleave(group, dim=1)
            scores = torch.einsum("hd,nhd->hn", query[t].double(), k) * scale
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            weights = torch.softmax(scores, -1)
            out[t] = torch.einsum("hn,nhd->hd", weights, v)
    return out


@pytest.mark.parametrize("window", [0, 7])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(4, 4, 16), (6, 2, 32), (14, 2, 64), (3, 1, 80)]
)
@pytest.mark.parametrize(
    "chunks",
    [
        [(0, 1), (5, 1), (130, 1)],
        [(40, 1), (0, 1), (0, 37), (30, 70)],
    ],
    ids=["decodes", "mixed"],
)
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_tiles_equal_plain_attention(
    chunks: list[tuple[int, int]],
    heads: int,
    kv_heads: int,
    head_dim: int,
    window: int,
    dtype: torch.dtype,
) -> None:
    rng = np.random.default_rng(heads * head_dim + window)
    torch.manual_seed(0)
    inp = a_step(chunks, block_size=16, rng=rng)
    slots = (int(inp.block_tables.max()) + 1) * inp.block_size
    query = torch.randn(inp.num_tokens, heads, head_dim, dtype=dtype, device=DEVICE)
    keys = torch.randn(slots, kv_heads, head_dim, dtype=dtype, device=DEVICE)
    values = torch.randn(slots, kv_heads, head_dim, dtype=dtype, device=DEVICE)
    expected = plain_attention(query, keys, values, inp, head_dim**-0.5, window)
    tiles = triton_attention.Tiles.of(inp, heads // kv_heads)
    actual = triton_attention.paged_attention(
        query, keys, values, inp, tiles, scale=head_dim**-0.5, window=window
    )
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(actual.double(), expected, atol=tolerance, rtol=tolerance)


def test_scores_are_capped_as_gemma_2_wants() -> None:
    torch.manual_seed(1)
    inp = a_step([(20, 1), (0, 9)], block_size=16, rng=np.random.default_rng(2))
    slots = (int(inp.block_tables.max()) + 1) * 16
    query = 8 * torch.randn(inp.num_tokens, 4, 32, device=DEVICE)
    keys, values = torch.randn(2, slots, 2, 32, device=DEVICE)
    expected = plain_attention(query, keys, values, inp, 1.0, 0, softcap=5.0)
    tiles = triton_attention.Tiles.of(inp, 2)
    actual = triton_attention.paged_attention(
        query, keys, values, inp, tiles, scale=1.0, softcap=5.0
    )
    torch.testing.assert_close(actual.double(), expected, atol=1e-4, rtol=1e-4)


def test_the_backend_writes_and_attends_like_the_reference() -> None:
    """Prompt chunks and decodes through TritonAttention and TorchAttention, on equal pools."""
    torch.manual_seed(2)
    shape = KVShape(num_layers=2, num_kv_heads=2, head_dim=16, dtype=torch.float32)
    inp = a_step([(12, 1), (3, 20)], block_size=8, rng=np.random.default_rng(3))
    outs = []
    for backend in (triton_attention.TritonAttention, TorchAttention):
        cache = KVCache(shape, num_blocks=16, block_size=8, device=DEVICE)
        cache.data.copy_(torch.randn(cache.data.shape, generator=torch.Generator().manual_seed(3)))
        attention = backend(cache)
        attention.begin(inp)
        generator = torch.Generator().manual_seed(4)
        for layer in range(2):
            k, v = torch.randn(2, inp.num_tokens, 2, 16, generator=generator).to(DEVICE)
            q = torch.randn(inp.num_tokens, 6, 16, generator=generator).to(DEVICE)
            attention.write(layer, k, v)
            outs.append(attention.attend(layer, q, 0.25, window=6 if layer else None))
    for layer in range(2):
        torch.testing.assert_close(outs[layer], outs[layer + 2], atol=2e-5, rtol=2e-5)


def test_garbage_in_stale_slots_is_never_read() -> None:
    """Slots beyond the context hold NaN; the answer must not know."""
    inp = a_step([(9, 1), (0, 5)], block_size=16, rng=np.random.default_rng(1))
    slots = (int(inp.block_tables.max()) + 1) * 16
    keys = torch.full((slots, 1, 16), torch.nan, device=DEVICE)
    values = torch.full((slots, 1, 16), torch.nan, device=DEVICE)
    for s, context in enumerate(inp.context_lens_host.tolist()):
        base = int(inp.block_tables[s, 0]) * 16
        keys[base : base + context] = 1.0
        values[base : base + context] = 2.0
    query = torch.ones(inp.num_tokens, 2, 16, device=DEVICE)
    tiles = triton_attention.Tiles.of(inp, 2)
    out = triton_attention.paged_attention(query, keys, values, inp, tiles, scale=1.0)
    torch.testing.assert_close(out, torch.full_like(out, 2.0))


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from engine.model.kernels import triton_attention
kernel = triton_attention._paged_attention_kernel
constants = dict(WINDOW={window}, SOFTCAP=0.0, GROUP=7, BLOCK_Q=9, BLOCK_M=64, BLOCK_N=64,
                 HEAD_DIM=64, HEAD_DIM_PADDED=64)
signature = {{}}
for name in kernel.arg_names:
    if name in constants:
        signature[name] = "constexpr"
    elif name in ("out_ptr", "q_ptr", "k_ptr", "v_ptr"):
        signature[name] = "*bf16"
    elif name.endswith("_ptr"):
        signature[name] = "*i32"
    else:
        signature[name] = "fp32" if name == "scale" else "i32"
source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
for capability in (80, 90):
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    print(capability, len(compiled.asm["cubin"]), compiled.metadata.shared)
"""


@pytest.mark.parametrize("window", [0, 1024])
def test_the_kernel_compiles_for_ampere_and_hopper(window: int, tmp_path: Path) -> None:
    """Triton and its assembler need no GPU, so machine code for both must come out anywhere."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE.format(window=window)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    sizes = [line.split() for line in done.stdout.splitlines()]
    assert [size[0] for size in sizes] == ["80", "90"]
    assert all(int(size[1]) > 10_000 and int(size[2]) <= 96 * 1024 for size in sizes)
