"""What the prefix cache should hold of a prompt, as the door remembers its own prompts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.prefix_memory import PrefixMemory


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), max_size=40))
def test_it_knows_the_blocks_that_two_prompts_share(one: list[int], other: list[int]) -> None:
    """Whole blocks from the beginning, never the last token: as the engine's cache finds them."""
    memory = PrefixMemory(4, 100)
    memory.remember(memory.keys("a", one))
    shared = 0
    while shared < min(len(one), len(other)) and one[shared] == other[shared]:
        shared += 1
    whole = min(shared, len(other) - 1, len(one) - 1) // 4 * 4
    assert memory.num_known(memory.keys("a", other)) == max(0, whole)


def test_tenants_share_nothing() -> None:
    """A prompt of one salt is unknown under another."""
    memory = PrefixMemory(4, 100)
    memory.remember(memory.keys("a", range(40)))
    assert memory.num_known(memory.keys("a", range(40))) == 36
    assert memory.num_known(memory.keys("b", range(40))) == 0


def test_it_forgets_the_oldest() -> None:
    """No more blocks than the engine has; what is used again stays."""
    memory = PrefixMemory(4, 10)
    for number in range(50):
        memory.remember(memory.keys("a", [number] * 9))
        memory.remember(memory.keys("a", [0] * 9))
    assert len(memory) == 10
    assert memory.num_known(memory.keys("a", [0] * 9)) == 8
    assert memory.num_known(memory.keys("a", [1] * 9)) == 0
