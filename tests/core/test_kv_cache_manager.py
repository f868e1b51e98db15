"""Tables of requests: found prefixes, growth, fences, and whose blocks are whose."""

from __future__ import annotations

from core_orders import make_order
from hypothesis import given
from hypothesis import strategies as st

from engine.core.kv_cache_manager import KVCacheManager
from engine.core.request import Request

SIZE = 4


def make_request(name: str, prompt: tuple[int, ...], *, salt: str = "") -> Request:
    return Request(make_order(name, prompt, salt=salt, max_tokens=50), now_ns=0)


def make_kv(num_blocks: int = 20, *, enable_prefix_cache: bool = True) -> KVCacheManager:
    return KVCacheManager(num_blocks, SIZE, enable_prefix_cache=enable_prefix_cache)


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
