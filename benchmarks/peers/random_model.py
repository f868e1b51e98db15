"""Writes a checkpoint with random weights of a known shape: speed does not depend on the values.

python -m benchmarks.peers.random_model FOLDER [--shape qwen2.5-0.5b]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SHAPES: dict[str, dict[str, Any]] = {
    # https://huggingface.co/Qwen/Qwen2.5-0.5B/blob/main/config.json
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
    "llama-30m": {
        "model_type": "llama",
        "vocab_size": 8192,
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
}


def write(folder: Path, shape: str, dtype: torch.dtype = torch.bfloat16) -> None:
    """Make the checkpoint unless it is there."""
    if (folder / "model.safetensors").is_file():
        return
    torch.manual_seed(0)
    config = AutoConfig.for_model(**SHAPES[shape])
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    told = parser.parse_args()
    write(told.folder, told.shape)


if __name__ == "__main__":
    main()
