"""Tiny models with random weights, one per family: enough layers, heads and tokens to be wrong."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB = 200
MAX_LEN = 256
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LEN,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_LAYERS = ["sliding_attention", "full_attention"]
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": MAX_LEN}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
# name -> (transformers' model_type, what differs from _COMMON)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 12}),
    "opt": ("opt", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "gpt_neox": ("gpt_neox", {}),
    "gemma": ("gemma", {"head_dim": 32}),
    "gemma2": (
        "gemma2",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 12, "layer_types": _LAYERS},
    ),
    "gemma3_text": (
        "gemma3_text",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 12, "layer_types": _LAYERS},
    ),
    "phi": ("phi", {}),
    "phi3": ("phi3", {}),
    "gpt2": ("gpt2", _GPT2),
    "granite": ("granite", {}),
    "olmo2": ("olmo2", {}),
    "stablelm": ("stablelm", {}),
    "starcoder2": ("starcoder2", {}),
    "smollm3": ("smollm3", {}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "qwen2_moe": ("qwen2_moe", {**_MOE, "shared_expert_intermediate_size": 32}),
    "qwen3_moe": ("qwen3_moe", {**_MOE, "head_dim": 16}),
}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon": ("falcon", {}),
    "bloom": ("bloom", {}),
    "gpt_oss": ("gpt_oss", {}),
    "falcon_h1": ("falcon_h1", {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_state": 16}),
    "deepseek_v3": ("deepseek_v3", {}),
    "jamba": ("jamba", {}),
}


def tiny_config(family: str, **changes: Any) -> Any:
    """Return a family's config, small; `changes` win over everything else."""
    model_type, own = {**FAMILIES, **REFUSED}[family]
    return AutoConfig.for_model(model_type, **{**_COMMON, **own, **changes})


def random_model(config: Any, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """Return a model whose weights are drawn wide enough that greedy answers depend on the past."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2:
                weight.normal_(0.0, 0.15)
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.02)
    return model.to(dtype).eval()
