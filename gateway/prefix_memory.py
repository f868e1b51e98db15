"""What the engine's prefix cache should hold of a prompt, as far as this door's own requests say.

It keeps hashes of the blocks of prompts that were let in, of each salt apart, the latest as many as
the engine has blocks. It knows no engine: what was evicted, what answers added and what other doors
sent is not in it, so it is a guess that only forecasts rest on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

MOST_BLOCKS = 65_536


class PrefixMemory:
    """Bounded by `num_blocks` and MOST_BLOCKS; `block_size` is the engine's."""

    def __init__(self, block_size: int, num_blocks: int) -> None:
        self._block_size = block_size
        self._most = min(max(1, num_blocks), MOST_BLOCKS)
        self._known: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        """Blocks remembered."""
        return len(self._known)

    def keys(self, salt: str, prompt: Sequence[int]) -> list[int]:
        """Return a key for each whole block of a prompt, of all before it and itself.

        As in the engine the last token is never in one, because it must be computed.
        """
        size, key = self._block_size, hash(salt)
        keys = []
        for start in range(0, len(prompt) - size, size):
            key = hash((key, *prompt[start : start + size]))
            keys.append(key)
        return keys

    def num_known(self, keys: Sequence[int]) -> int:
        """Return how many tokens of a prompt with these keys are known from its beginning."""
        known, count = self._known, 0
        for key in keys:
            if key not in known:
                break
            count += 1
        return count * self._block_size

    def remember(self, keys: Sequence[int]) -> None:
        """A prompt with these keys was let in; the oldest make room."""
        known = self._known
        for key in keys:
            known[key] = None
            known.move_to_end(key)
        while len(known) > self._most:
            known.popitem(last=False)
