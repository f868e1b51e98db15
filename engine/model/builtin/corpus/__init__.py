"""Knows the text the built-in model learns from; knows nothing of tokens or tensors."""
