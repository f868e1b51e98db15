"""Blocks by number: who owns them, which is reused first, which is found again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.block_pool import BlockPool


def owners_of(pool: BlockPool, tables: list[tuple[int, ...]]) -> list[int]:
    owners = [0] * (pool.num_blocks + 1)
    for table in tables:
        for block in table:
            owners[block] += 1
    return owners


def test_ids_run_from_one() -> None:
    """Block 0 is the executor's padding: it is never handed out."""
    pool = BlockPool(3)
    assert pool.allocate(3) == (1, 2, 3)


def test_a_failed_allocation_changes_nothing() -> None:
    """Law L4: too few is None, and the blocks that were there are still there."""
    pool = BlockPool(3)
    pool.allocate(1)
    assert pool.allocate(3) is None
    assert pool.num_free == 2
    assert pool.allocate(2) == (2, 3)


def test_freeing_twice_is_a_programming_error() -> None:
    """Law L6."""
    pool = BlockPool(2)
    (block,) = pool.allocate(1) or ()
    pool.release((block,))
    with pytest.raises(AssertionError, match="freed twice"):
        pool.release((block,))


def test_only_an_owned_block_can_be_published() -> None:
    """A free block could be reused between the publishing and the finding."""
    pool = BlockPool(1)
    with pytest.raises(AssertionError, match="no owner"):
        pool.publish(1, b"a")


def test_empty_blocks_go_first_then_the_oldest_prefix_from_its_tail() -> None:
    """The eviction order of the module's drawing."""
    pool = BlockPool(6)
    old, new, empty = (pool.allocate(2) or () for _ in range(3))
    for key, block in zip([b"o1", b"o2", b"n1", b"n2"], old + new, strict=True):
        pool.publish(block, key)
    pool.release(old)
    pool.release(empty)
    pool.release(new)
    assert [pool.allocate(1) for _ in range(2)] == [(empty[0],), (empty[1],)]
    assert [pool.allocate(1) for _ in range(4)] == [(old[1],), (old[0],), (new[1],), (new[0],)]


def test_a_found_free_block_comes_back_with_its_content() -> None:
    """Sharing takes it out of the middle of the free list; its neighbours stay."""
    pool = BlockPool(3)
    table = pool.allocate(3) or ()
    for key, block in zip([b"a", b"b", b"c"], table, strict=True):
        pool.publish(block, key)
    pool.release(table)
    assert pool.find([b"a", b"b", b"x", b"c"]) == table[:2]
    pool.share((table[1],))
    assert pool.num_free == 2
    assert pool.allocate(2) == (table[2], table[0])
    assert pool.find([b"b"]) == (table[1],)
    assert pool.find([b"a"]) == ()


def test_the_first_block_of_a_content_stays_the_one_that_is_found() -> None:
    """A second block with the same content is empty for the index, and reused first."""
    pool = BlockPool(3)
    pool.allocate(3)
    pool.publish(1, b"a")
    pool.publish(2, b"a")
    assert pool.find([b"a"]) == (1,)
    pool.release((1,))
    pool.release((2,))
    assert pool.allocate(1) == (2,)
    assert pool.find([b"a"]) == (1,)


operations = st.lists(
    st.tuples(st.sampled_from(["allocate", "share", "release", "publish"]), st.integers(0, 9)),
    max_size=80,
)


@given(num_blocks=st.integers(1, 8), script=operations)
def test_no_script_loses_or_doubles_a_block(num_blocks: int, script: list[tuple[str, int]]) -> None:
    """Laws L3 and L6 after every operation, against tables kept outside."""
    pool, tables = BlockPool(num_blocks), []
    for verb, number in script:
        if verb == "allocate":
            free = pool.num_free
            table = pool.allocate(number)
            assert (table is None) == (number > free)
            tables += [table] if table else []
        elif verb == "share":
            found = pool.find([bytes([key]) for key in range(number, 10)])
            pool.share(found)
            tables += [found] if found else []
        elif verb == "release" and tables:
            pool.release(tables.pop(number % len(tables)))
        elif verb == "publish" and tables:
            block = tables[number % len(tables)][0]
            if pool._key_of[block] is None:
                pool.publish(block, bytes([number]))
        pool.check_integrity(owners_of(pool, tables))
