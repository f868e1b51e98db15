"""Vectors of prompts by other means than ours: a model's token embeddings, an encoder.

Both read a folder on disk and fetch nothing. Vectors are kept by text, so that several divisions of
one file embed each prompt once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
MOST_TOKENS = 256  # what sentence encoders of this size are made for


class TextVectors:
    """Embeds texts one by one, as a door would, and remembers vectors and times."""

    def __init__(self, embed: Callable[[str], Vectors], what: str) -> None:
        self._embed = embed
        self._known: dict[str, Vectors] = {}
        self.spent_ms: list[float] = []
        self.what = what

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Return the vectors of these texts, (n, d)."""
        for text in texts:
            if text not in self._known:
                began = time.perf_counter()
                self._known[text] = self._embed(text)
                self.spent_ms.append((time.perf_counter() - began) * 1000)
        return np.stack([self._known[text] for text in texts])


def token_embeddings(folder: Path) -> TextVectors:
    """Return the mean of a model's input embeddings; a safetensors file and a tokenizer.json."""
    from safetensors import safe_open
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    table = None
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (a handle, no dict)
                if name.endswith(("embed_tokens.weight", "word_embeddings.weight", "wte.weight")):
                    table = tensors.get_tensor(name).float().numpy()
    if table is None:
        raise SystemExit(f"{folder}: no matrix of token embeddings in its safetensors")
    centred = table - table.mean(axis=0)

    def embed(text: str) -> Vectors:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if not ids:
            return np.zeros(centred.shape[1], np.float32)
        return np.asarray(centred[ids].mean(axis=0), np.float32)

    return TextVectors(embed, f"{table.shape[0]} tokens of {table.shape[1]} numbers")


def encoder(folder: Path) -> TextVectors:
    """Return the mean of an encoder's last hidden states, through transformers, one thread."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    size = sum(weights.numel() for weights in model.parameters())

    def embed(text: str) -> Vectors:
        inputs = tokenizer(text, truncation=True, max_length=MOST_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            states = model(**inputs).last_hidden_state[0]
        return np.asarray(states.mean(dim=0).numpy(), np.float32)

    return TextVectors(embed, f"{type(model).__name__} of {size / 1e6:.1f} million weights")
