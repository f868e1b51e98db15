"""Weights packed once for a CPU, and module swaps that let any transformers model use them.

It looks at the structure of modules, never at a model's name. A swap is kept only if the new module
gives the old one's answers on random rows; the loader then compares whole models.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from engine.model.kernels.native import DTYPE_CODES, NativeKernels, PackedGemm

Linear = Callable[[torch.Tensor], torch.Tensor]  # [T, inputs] -> [T, outputs]

# oneDNN's layout pays from here on: below, its calls cost more than the weights' way to the core.
ONEDNN_MIN_WEIGHTS = 1_000_000
_ONEDNN_ROWS = 64  # rows oneDNN lays the weights out for; 32 to 512 were equal within noise
_CHECK_ROWS = 3
# Largest error of a swapped module, relative to the rms of its outputs.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.06}
_logger = logging.getLogger(__name__)


class OneDnnLinear:
    """A linear layer in oneDNN's own blocked layout."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(
            weight.detach().contiguous(), _ONEDNN_ROWS
        )
        self._bias = bias.detach().clone() if bias is not None else None
        self._call = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T + bias."""
        out: torch.Tensor = self._call(x, self._weight, self._bias, "none", [], "")
        return out


class PlainLinear:
    """A linear layer as torch computes it."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._weight = weight.detach()
        self._bias = bias.detach() if bias is not None else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T + bias."""
        return F.linear(x, self._weight, self._bias)


def pack_linear(
    weight: torch.Tensor, bias: torch.Tensor | None, native: NativeKernels | None
) -> Linear:
    """Return the fastest layer for this weight [outputs, inputs] here; it shares no memory with it
    unless it is a PlainLinear.
    """
    if native is not None and native.has_gemm(weight.dtype):
        return PackedGemm(native, weight, bias)
    if (
        weight.dtype in DTYPE_CODES
        and weight.numel() >= ONEDNN_MIN_WEIGHTS
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    ):
        return OneDnnLinear(weight, bias)
    return PlainLinear(weight, bias)


def pack_swiglu(
    gate: nn.Linear, up: nn.Linear, native: NativeKernels
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return x -> silu(gate(x)) * up(x) with both weights in one product."""
    weight = torch.cat([gate.weight, up.weight])
    bias = None if gate.bias is None else torch.cat([gate.bias, up.bias])
    if native.has_gemm(weight.dtype):
        return PackedGemm(native, weight, bias, swiglu=True)
    both = pack_linear(weight, bias, native)
    width = gate.out_features

    def swiglu(x: torch.Tensor) -> torch.Tensor:
        out = both(x)
        return native.silu_mul(out[:, :width], out[:, width:])

    return swiglu


class RowsModule(nn.Module):
    """A function of rows [T, inputs] in the place of a module that takes [..., inputs]."""

    def __init__(self, function: Linear) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the function of every row of x."""
        out = self._function(x.reshape(-1, x.shape[-1]))
        return out.view(*x.shape[:-1], out.shape[-1])


@torch.inference_mode()
def optimise(model: nn.Module, native: NativeKernels | None) -> list[str]:
    """Swap modules of a float32 or bfloat16 CPU model in place; returns what was swapped, counted.

    RMSNorms and SwiGLU blocks go to the compiled kernels, linear layers to packed weights. The
    originals' memory is freed as it goes. What fails its check stays as it was.
    """
    if not all(w.device.type == "cpu" and w.dtype in DTYPE_CODES for w in model.parameters()):
        return []
    swapped: Counter[str] = Counter()
    if native is not None:
        swapped["SwiGLU"] = _swap_all(model, _is_swiglu, lambda m: _new_swiglu(m, native))
        swapped["RMSNorm"] = _swap_all(model, _is_rms_norm, lambda m: _new_rms_norm(m, native))
    swapped["Linear"] = _swap_all(model, _is_linear, lambda m: _new_linear(m, native))
    return [f"{count} {name}" for name, count in swapped.items() if count]


def _swap_all(
    model: nn.Module,
    is_kind: Callable[[nn.Module], bool],
    make: Callable[[nn.Module], nn.Module | None],
) -> int:
    """Swap every module of one kind that has a checked replacement; return how many."""
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not is_kind(child) or child._forward_hooks or child._forward_pre_hooks:
                continue
            replacement = make(child)
            if replacement is None:
                continue
            if not _agree(child, replacement):
                _logger.info("%s.%s stays as it is", type(parent).__name__, name)
                continue
            setattr(parent, name, replacement)
            count += 1
    return count


def _agree(old: nn.Module, new: nn.Module) -> bool:
    """True if both modules give the same for rows of very different sizes."""
    weight = next(old.parameters())
    width = weight.shape[-1]
    generator = torch.Generator().manual_seed(width)
    rows = torch.randn(_CHECK_ROWS, width, generator=generator)
    rows[1] *= 1e-3
    rows[2] *= 30.0
    x = rows.to(weight.dtype)[None]
    want, got = old(x).float(), new(x).float()
    if want.shape != got.shape:
        return False
    size = want.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
    return bool(((want - got).abs() <= _TOLERANCE[weight.dtype] * size).all())


def _is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear


def _new_linear(module: nn.Module, native: NativeKernels | None) -> nn.Module | None:
    assert isinstance(module, nn.Linear)
    packed = pack_linear(module.weight, module.bias, native)
    return None if isinstance(packed, PlainLinear) else RowsModule(packed)


def _is_rms_norm(module: nn.Module) -> bool:
    weights = dict(module.named_parameters(recurse=False))
    return (
        type(module).__name__.endswith("RMSNorm")
        and list(weights) == ["weight"]
        and weights["weight"].ndim == 1
        and _epsilon(module) is not None
    )


def _new_rms_norm(module: nn.Module, native: NativeKernels) -> nn.Module:
    weight, eps = module.get_parameter("weight").detach(), _epsilon(module)
    assert eps is not None
    return RowsModule(lambda x: native.rms_norm(x, weight, eps))


def _epsilon(module: nn.Module) -> float | None:
    for name in ("variance_epsilon", "eps"):
        value = getattr(module, name, None)
        if isinstance(value, float):
            return value
    return None


def _is_swiglu(module: nn.Module) -> bool:
    """True for down(act(gate(x)) * up(x)); whether act is SiLU, the check finds out."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(type(part) is nn.Linear for part in parts):
        return False
    gate, up, down = parts
    assert isinstance(gate, nn.Linear)
    assert isinstance(up, nn.Linear)
    assert isinstance(down, nn.Linear)
    return (
        gate.weight.shape == up.weight.shape
        and (gate.bias is None) == (up.bias is None)
        and down.in_features == gate.out_features
    )


def _new_swiglu(module: nn.Module, native: NativeKernels) -> nn.Module:
    gate, up, down = module.gate_proj, module.up_proj, module.down_proj
    assert isinstance(gate, nn.Linear)
    assert isinstance(up, nn.Linear)
    assert isinstance(down, nn.Linear)
    inner = pack_swiglu(gate, up, native)
    outer = pack_linear(down.weight, down.bias, native)
    return RowsModule(lambda x: outer(inner(x)))
