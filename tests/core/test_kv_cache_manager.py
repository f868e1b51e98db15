"""Tables of requests: found prefixes, growth, fences, parking, and whose blocks are whose."""

from __future__ import annotations

import pytest
from core_orders import make_order
from hypothesis import given
from hypothesis import strategies as st

from engine.core.batch import Copy
from engine.core.kv_cache_manager import KVCacheManager
from engine.core.request import Request

SIZE = 4


def make_request(name: str, prompt: tuple[int, ...], *, salt: str = "") -> Request:
    return Request(make_order(name, prompt, salt=salt, max_tokens=50), now_ns=0)


def make_kv(
    num_blocks: int = 20,
    *,
    enable_prefix_cache: bool = True,
    num_host_blocks: int = 0,
    host_is_exact: bool = True,
) -> KVCacheManager:
    return KVCacheManager(
        num_blocks,
        SIZE,
        enable_prefix_cache=enable_prefix_cache,
        num_host_blocks=num_host_blocks,
        host_is_exact=host_is_exact,
    )


def admit(kv: KVCacheManager, request: Request, *, computed: int | None = None) -> None:
    """Admit a request with its whole prompt; `computed` tokens of it are then computed."""
    kv.register(request)
    prefix = kv.find_prefix(request)
    assert kv.admit(request, prefix, request.num_tokens, 0)
    request.num_computed = request.num_tokens if computed is None else computed
    kv.publish(request)


def find(kv: KVCacheManager, name: str, prompt: tuple[int, ...], *, salt: str = "") -> int:
    """How many tokens of a prompt a newcomer would find."""
    request = make_request(name, prompt, salt=salt)
    kv.register(request)
    found = len(kv.find_prefix(request)) * SIZE
    kv.forget(request, fenced=False)
    return found


PROMPT = tuple(range(12))


def test_never_the_whole_prompt_is_found() -> None:
    """At least one token must be computed, or there would be nothing to sample from."""
    kv = make_kv()
    admit(kv, make_request("a", PROMPT))
    assert find(kv, "same", PROMPT) == 8
    assert find(kv, "longer", (*PROMPT, 0)) == 12
    assert find(kv, "shorter", PROMPT[:8]) == 4
    assert find(kv, "tiny", PROMPT[:1]) == 0


def test_only_what_was_computed_is_found() -> None:
    """Blocks become findable with the counter, block by full block."""
    kv = make_kv()
    request = make_request("a", PROMPT)
    admit(kv, request, computed=0)
    for computed, findable in [(0, 0), (3, 0), (4, 4), (7, 4), (8, 8), (11, 8), (12, 12)]:
        request.num_computed = computed
        kv.publish(request)
        assert find(kv, "b", (*PROMPT, 0)) == findable


def test_tenants_find_only_their_own() -> None:
    """Equal prompts under another salt share nothing."""
    kv = make_kv()
    admit(kv, make_request("a", PROMPT, salt="red"))
    assert find(kv, "b", PROMPT, salt="red") == 8
    assert find(kv, "c", PROMPT, salt="blue") == 0
    assert find(kv, "d", PROMPT, salt="") == 0


def test_a_block_is_found_only_behind_the_same_beginning() -> None:
    """Equal tokens after different ones are a different context."""
    kv = make_kv()
    admit(kv, make_request("a", PROMPT))
    assert find(kv, "b", (9, *PROMPT[1:])) == 0
    assert find(kv, "c", PROMPT[4:]) == 0
    assert find(kv, "d", (*PROMPT[:4], 9, *PROMPT[5:])) == 4


def test_generated_tokens_are_found_like_prompts() -> None:
    """The next turn of a conversation finds the answer of the last one."""
    kv = make_kv()
    request = make_request("a", PROMPT)
    admit(kv, request)
    request.output = [5, 4, 3, 2, 1]
    kv.grow(request, 16)
    request.num_computed = 16
    kv.publish(request)
    assert find(kv, "b", (*PROMPT, 5, 4, 3, 2, 1)) == 16
    assert find(kv, "c", (*PROMPT, 5, 4, 3, 9, 1)) == 12


def test_without_the_prefix_cache_nothing_is_found() -> None:
    """Switched off means off."""
    kv = make_kv(enable_prefix_cache=False)
    admit(kv, make_request("a", PROMPT))
    assert find(kv, "b", PROMPT) == 0


def test_a_gone_request_leaves_its_prefix_behind() -> None:
    """Unowned blocks stay findable until they are reused, the tail first."""
    kv = make_kv(num_blocks=4)
    request = make_request("a", PROMPT)
    admit(kv, request)
    kv.forget(request, fenced=False)
    assert kv.num_free == 4
    assert find(kv, "b", (*PROMPT, 0)) == 12
    other = make_request("other", (7,) * 5)  # takes the empty block and the tail
    admit(kv, other)
    assert find(kv, "c", (*PROMPT, 0)) == 8


def test_the_table_is_the_same_object_until_it_changes() -> None:
    """Executors cache a table's tensor by identity."""
    kv = make_kv()
    request = make_request("a", PROMPT[:5])
    admit(kv, request)
    table = kv.block_ids(request)
    assert kv.grow(request, 8)
    assert kv.block_ids(request) is table
    assert kv.grow(request, 9)
    assert kv.block_ids(request) is not table
    assert kv.block_ids(request)[:2] == table


def test_a_refused_admission_changes_nothing() -> None:
    """Law L4: the found prefix is not shared, no block is taken, the spare is respected."""
    kv = make_kv(num_blocks=5)
    admit(kv, make_request("a", PROMPT))
    newcomer = make_request("b", (*PROMPT, 1, 2, 3, 4, 5))
    kv.register(newcomer)
    prefix = kv.find_prefix(newcomer)
    assert len(prefix) == 3
    assert not kv.admit(newcomer, prefix, 17, 1)
    assert kv.num_free == 2
    assert kv.block_ids(newcomer) == ()
    assert kv.admit(newcomer, prefix, 17, 0)
    assert kv.num_free == 0


def test_free_blocks_of_a_found_prefix_are_counted_once() -> None:
    """A found block in the free list cannot also be handed out as a new one."""
    kv = make_kv(num_blocks=4)
    request = make_request("a", PROMPT)
    admit(kv, request)
    kv.forget(request, fenced=False)
    newcomer = make_request("b", (*PROMPT, 1, 2, 3, 4, 5))
    kv.register(newcomer)
    prefix = kv.find_prefix(newcomer)
    assert (len(prefix), kv.num_free) == (3, 4)
    assert not kv.admit(newcomer, prefix, 17, 0)
    assert kv.admit(newcomer, prefix, 16, 0)


def test_a_refused_growth_changes_nothing() -> None:
    """Law L4."""
    kv = make_kv(num_blocks=3)
    request = make_request("a", PROMPT[:4])
    admit(kv, request)
    table = kv.block_ids(request)
    assert not kv.grow(request, 17)
    assert (kv.block_ids(request), kv.num_free) == (table, 2)


def test_fenced_blocks_are_free_only_after_the_fence() -> None:
    """Law L5."""
    kv = make_kv(num_blocks=3)
    request = make_request("a", PROMPT)
    admit(kv, request)
    kv.forget(request, fenced=True)
    assert (kv.num_free, kv.num_fenced) == (0, 3)
    kv.lift_fence()
    assert (kv.num_free, kv.num_fenced) == (3, 0)


@given(
    length=st.integers(1, 40),
    split=st.integers(1, 40),
    salt=st.text(max_size=3),
    grow=st.booleans(),
)
def test_a_digest_does_not_depend_on_how_the_tokens_came(
    length: int, split: int, salt: str, grow: bool
) -> None:
    """Tokens generated one by one name the same blocks as the same tokens in a prompt."""
    tokens = tuple(i * i % 7 for i in range(length + split))
    kv = make_kv()
    request = make_request("a", tokens[:split], salt=salt)
    admit(kv, request)
    for count in range(split + 1, len(tokens) + 1):
        request.output = list(tokens[split:count])
        assert kv.grow(request, count)
        request.num_computed = count
        if grow or count == len(tokens):
            kv.publish(request)
    assert find(kv, "b", (*tokens, 0), salt=salt) == len(tokens) // SIZE * SIZE


# Parking


def parked(kv: KVCacheManager, request: Request) -> Copy:
    """Park a request whose prompt is computed, and end the copy."""
    copy = kv.park(request)
    kv.end_copy(copy.number, is_lost=False)
    return copy


def test_parking_gives_up_the_device_once_the_copy_is_over() -> None:
    """Law L5: both sides belong to the copy, block by block in order, however many steps end."""
    kv = make_kv(num_blocks=5, num_host_blocks=4)
    request = make_request("a", PROMPT[:10])
    admit(kv, request)
    assert kv.grow(request, 16)  # a block more than the context fills
    table = kv.block_ids(request)
    assert kv.can_park(request)
    copy = kv.park(request)
    assert copy.block_ids == table[:3]  # only what is computed is carried
    assert (len(copy.host_block_ids), copy.num_tokens) == (3, 10)
    assert request.copy_number == copy.number > 0
    for _ in range(3):
        assert (kv.num_free, kv.num_free_host, kv.num_fenced) == (1, 1, 4)
        assert kv.count_coming() == kv.num_coming == 4
        assert kv.block_ids(request) == ()
        kv.check_integrity([request], [])
        kv.lift_fence()
    kv.end_copy(copy.number, is_lost=False)
    assert request.copy_number == 0
    assert (kv.num_free, kv.num_free_host, kv.num_fenced) == (5, 1, 0)
    assert kv.count_coming() == 0
    kv.check_integrity([request], None)


def test_a_return_takes_new_blocks_and_then_frees_the_host() -> None:
    """The very host blocks come back, into a table with the room that was asked for."""
    kv = make_kv(num_blocks=5, num_host_blocks=4)
    request = make_request("a", PROMPT[:10])
    admit(kv, request)
    out = parked(kv, request)
    back = kv.bring_back(request, 14)
    assert back is not None
    assert back.number > out.number
    assert request.is_returning
    assert back.host_block_ids == out.host_block_ids
    assert back.block_ids == kv.block_ids(request)[:3]
    assert (len(kv.block_ids(request)), kv.num_free, kv.num_free_host) == (4, 1, 1)
    assert kv.count_coming() == 0
    kv.check_integrity([request], [])
    kv.end_copy(back.number, is_lost=False)
    assert not request.is_returning
    assert kv.num_free_host == 4
    kv.check_integrity([request], None)
    request.num_computed = 11
    request.output = [7]
    kv.publish(request)
    assert find(kv, "b", PROMPT[:10]) == 8  # its prefix is findable again


def test_what_comes_back_inexactly_is_nobodys_prefix() -> None:
    """Law L32: neither the blocks that came back nor those computed from them; until it drops."""
    kv = make_kv(num_blocks=8, num_host_blocks=4, host_is_exact=False)
    request = make_request("a", PROMPT[:10])
    admit(kv, request, computed=10)
    parked(kv, request)
    back = kv.bring_back(request, 16)
    assert back is not None
    kv.end_copy(back.number, is_lost=False)
    request.output = [7] * 6
    request.num_computed = 16
    others = make_request("others", (9,) * 16)
    admit(kv, others)  # reuses the blocks that were published before the context left
    kv.forget(others, fenced=False)
    kv.publish(request)
    assert find(kv, "b", (*PROMPT[:10], *request.output, 1)) == 0
    kv.release(request)
    request.num_computed = 0
    kv.check_integrity([request], None)
    assert kv.admit(request, (), 16, 0)
    request.num_computed = 16
    kv.publish(request)  # computed again, from its tokens
    assert find(kv, "c", (*PROMPT[:10], *request.output, 1)) == 16


def test_a_return_without_room_changes_nothing() -> None:
    """Law L4: no block is taken, the host keeps the context."""
    kv = make_kv(num_blocks=4, num_host_blocks=4)
    request = make_request("a", PROMPT[:10])
    admit(kv, request)
    parked(kv, request)
    other = make_request("other", (9,) * 5)
    admit(kv, other)
    assert kv.bring_back(request, 12) is None
    assert (kv.num_free, kv.num_free_host, kv.block_ids(request)) == (2, 1, ())
    assert request.copy_number == 0
    kv.check_integrity([request, other], None)


@pytest.mark.parametrize("returning", [False, True], ids=["parking", "returning"])
def test_a_copy_that_was_lost_gives_both_sides_back(returning: bool) -> None:
    """Law L33: what arrived is not to be trusted, so everything is computed again."""
    kv = make_kv(num_blocks=5, num_host_blocks=4)
    request = make_request("a", PROMPT[:10])
    admit(kv, request)
    copy: Copy | None
    if returning:
        parked(kv, request)
        copy = kv.bring_back(request, 14)
    else:
        copy = kv.park(request)
    assert copy is not None
    ended = kv.end_copy(copy.number, is_lost=True)
    assert ended.request is request
    assert not ended.is_orphan
    kv.release(request)
    request.num_computed = 0
    assert (kv.num_free, kv.num_free_host, kv.copies.lost_total) == (5, 4, 1)
    kv.check_integrity([request], None)


def test_only_what_the_host_has_room_for_can_be_parked() -> None:
    """Law L34: nothing computed, or more than is free there, is a no and not an error."""
    kv = make_kv(num_host_blocks=2)
    first = make_request("first", PROMPT[:8])
    admit(kv, first)
    long = make_request("long", PROMPT)
    admit(kv, long)
    empty = make_request("empty", (5, 5))
    admit(kv, empty, computed=0)
    assert kv.can_park(first)
    assert not kv.can_park(long)
    assert not kv.can_park(empty)
    kv.park(first)
    assert kv.num_free_host == 0
    last = make_request("last", (6, 6))
    admit(kv, last)
    assert not kv.can_park(last)
    assert not make_kv().num_free_host


def test_a_parked_prefix_stays_with_those_who_share_it() -> None:
    """Parking takes one owner away; what only it owned is free, and stays findable until reused."""
    kv = make_kv(num_blocks=6, num_host_blocks=4)
    request = make_request("a", PROMPT)
    admit(kv, request)
    sharer = make_request("b", (*PROMPT[:8], 9, 9))
    admit(kv, sharer)
    assert kv.block_ids(sharer)[:2] == kv.block_ids(request)[:2]
    assert kv.num_freed_by(request) == 1
    assert kv.num_freed_by(request, kv.block_ids(request)[2:]) == 0
    copy = kv.park(request)
    assert (kv.count_coming(), kv.num_coming) == (1, 3)
    other = kv.park(sharer) if kv.can_park(sharer) else None
    assert other is None
    kv.end_copy(copy.number, is_lost=False)
    assert kv.num_free == 3
    assert kv.num_freed_by(sharer) == 3
    assert find(kv, "c", (*PROMPT, 0)) == 12
    kv.check_integrity([request, sharer], None)


def test_blocks_that_two_copies_share_are_coming_once() -> None:
    """Both are carried out: what they share is free when the second copy is over."""
    kv = make_kv(num_blocks=6, num_host_blocks=8)
    request, sharer = make_request("a", PROMPT), make_request("b", (*PROMPT[:8], 9, 9))
    admit(kv, request)
    admit(kv, sharer)
    first, second = kv.park(request), kv.park(sharer)
    assert (kv.num_free, kv.count_coming()) == (2, 4)
    kv.end_copy(second.number, is_lost=False)
    assert (kv.num_free, kv.count_coming()) == (3, 3)
    kv.end_copy(first.number, is_lost=False)
    assert (kv.num_free, kv.count_coming()) == (6, 0)
    kv.check_integrity([request, sharer], None)


@pytest.mark.parametrize("is_lost", [True, False], ids=["lost", "arrived"])
@pytest.mark.parametrize("state", ["parking", "parked", "returning"])
def test_whoever_leaves_on_the_way_gives_both_sides_back(state: str, is_lost: bool) -> None:
    """Laws L5 and L7: at once, or when the copy is over; the steps in between change nothing."""
    kv = make_kv(num_blocks=5, num_host_blocks=4)
    request = make_request("a", PROMPT[:10])
    admit(kv, request)
    copy: Copy | None = kv.park(request)
    if state != "parking":
        assert copy is not None
        kv.end_copy(copy.number, is_lost=False)
        copy = kv.bring_back(request, 14) if state == "returning" else None
    kv.forget(request, fenced=False)
    if copy is not None:
        held = {"parking": 3, "returning": 4}[state]
        for _ in range(3):
            assert (kv.num_free, kv.num_free_host) == (5 - held, 1)
            assert (kv.num_fenced, kv.count_coming()) == (held + 3, held)
            kv.check_integrity([], [])
            kv.lift_fence()
        assert kv.end_copy(copy.number, is_lost=is_lost).is_orphan
    assert (kv.num_free, kv.num_free_host, kv.num_fenced) == (5, 4, 0)
    kv.check_integrity([], None)


def test_a_report_of_a_copy_that_is_not_under_way_is_an_error() -> None:
    """An executor that reports twice, or invents numbers, would free what is in use."""
    kv = make_kv(num_blocks=5, num_host_blocks=4)
    request = make_request("a", PROMPT[:10])
    admit(kv, request)
    copy = parked(kv, request)
    for number in (copy.number, copy.number + 1):
        with pytest.raises(AssertionError, match="not under way"):
            kv.end_copy(number, is_lost=False)
