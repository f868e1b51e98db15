"""The host's blocks: free, or owned once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.host_pool import HostPool


def test_blocks_are_numbered_from_one() -> None:
    """As on the device, number 0 belongs to nobody."""
    assert sorted(HostPool(3).allocate(3) or ()) == [1, 2, 3]


def test_too_many_are_refused_and_nothing_is_taken() -> None:
    """Law L4, and an empty host refuses everybody."""
    pool = HostPool(2)
    assert pool.allocate(3) is None
    assert pool.num_free == 2
    assert HostPool(0).allocate(1) is None
    assert HostPool(0).allocate(0) == ()


def test_a_block_freed_twice_is_noticed() -> None:
    """Law L6."""
    pool = HostPool(1)
    taken = pool.allocate(1)
    assert taken is not None
    pool.release(taken)
    with pytest.raises(AssertionError, match="freed twice"):
        pool.release(taken)


def test_a_lost_or_doubled_block_is_noticed() -> None:
    """Law L3: the walk compares what is owned with what is free, block by block."""
    pool = HostPool(4)
    taken = pool.allocate(2)
    assert taken is not None
    pool.check_integrity(taken)
    for wrong in (taken[:1], (*taken, taken[0]), ()):
        with pytest.raises(AssertionError):
            pool.check_integrity(wrong)


@given(
    size=st.integers(0, 12),
    script=st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=40),
)
def test_no_script_loses_or_doubles_a_block(size: int, script: list[tuple[bool, int]]) -> None:
    """Law L3 after every call; whatever is handed out was free."""
    pool, tables = HostPool(size), list[tuple[int, ...]]()
    for is_allocation, number in script:
        owned = [block for table in tables for block in table]
        if is_allocation:
            taken = pool.allocate(number)
            assert (taken is None) == (number > size - len(owned))
            if taken is not None:
                assert len(taken) == number
                assert not set(taken) & set(owned)
                tables.append(taken)
        elif tables:
            pool.release(tables.pop(number % len(tables)))
        owned = [block for table in tables for block in table]
        assert pool.num_free == size - len(owned)
        pool.check_integrity(owned)
