"""Catches what a model's output layer is given: the last hidden states; it knows no family."""

from __future__ import annotations

from typing import Any

import torch

from engine.core.errors import ModelLoadError


class HiddenTap:
    """Hangs on the output layer of one transformers model and keeps what came last."""

    def __init__(self, model: Any) -> None:
        """Raises ModelLoadError for a model without an output layer."""
        head = model.get_output_embeddings()
        if head is None:
            raise ModelLoadError(f"{model.config.model_type} has no output layer")
        self._states: torch.Tensor | None = None
        head.register_forward_pre_hook(self._keep)

    @property
    def states(self) -> torch.Tensor:
        """The hidden states [R, hidden_size] of the rows whose logits were asked for last."""
        assert self._states is not None, "a step comes first"
        return self._states

    def choose(self, rows: torch.Tensor) -> None:
        """Keep only these rows."""
        self._states = self.states[rows]

    def _keep(self, _head: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self._states = args[0].flatten(0, -2)
