"""The bounded queue before any hop to the engine: who may wait, counted in requests and tokens.

It counts the requests that were let in and have no token yet, and their prompt tokens; a request
leaves the count with its first token or its end. There is no await between reading a bound and
taking a place (law L51). It knows tiers as bounds and names, tenants as ids, and nothing of HTTP
bodies, engines or forecasts (gateway/gate.py asks both).

No tenant may fill the queue: one that has something waiting may have `tenant_factor` times
what it leaves free. One alone has nearly all of it, two have half each, and who comes with nothing
waiting finds room, however many crowd in (after Choudhury and Hahne, "Dynamic queue length
thresholds for shared-memory packet switches", 1998).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from engine.core.clock import Clock
from gateway.errors import ApiError, Problem
from gateway.retry_hints import COLD_HINT_S, DrainRate, step_hint_ms
from gateway.workers.place import ALONE, Place
from tenants.values import TierRecord

DRAINING_HINT_MS = 1000  # another replica may take it at once


class Reservation:
    """The places of one HTTP request: one per engine request. Giving back twice is harmless."""

    __slots__ = ("_admission", "_waiting", "tenant", "tier")

    def __init__(
        self, admission: Admission, tier: str, tenant: str, prompt_tokens: Sequence[int]
    ) -> None:
        self._admission = admission
        self._waiting = dict(enumerate(prompt_tokens))
        self.tier = tier
        self.tenant = tenant

    def first_token(self, index: int) -> None:
        """Request `index` has its first token: it waits no longer."""
        tokens = self._waiting.pop(index, None)
        if tokens is not None:
            self._admission.leave(self, tokens, served=True)

    def release(self) -> None:
        """Give back whatever is still held: refusal, failure, disconnect, or the end."""
        while self._waiting:
            _, tokens = self._waiting.popitem()
            self._admission.leave(self, tokens, served=False)


class TenantQueue:
    """What one tenant has waiting."""

    __slots__ = ("requests", "tokens")

    def __init__(self) -> None:
        self.requests = 0
        self.tokens = 0


class Admission:
    """The door's counts and bounds; one per gateway, used from its event loop only.

    Of every bound it keeps the part of its `place`, so that several workers together keep them all
    without asking each other.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        max_queue: int,
        max_queue_prompt_tokens: int,
        tenant_factor: float = 8.0,
        place: Place = ALONE,
    ) -> None:
        self._clock = clock
        self._place = place
        self._max_queue = place.share_of(max_queue)
        self._max_prompt_tokens = place.share_of(max_queue_prompt_tokens)
        self._tenant_factor = tenant_factor
        self._tenants: dict[str, TenantQueue] = {}
        self._waiting: Counter[str] = Counter()
        self._waiting_tokens = 0
        self._rates: dict[str, DrainRate] = {}
        self.draining = False

    @property
    def max_queue(self) -> int:
        """Most requests that may wait here."""
        return self._max_queue

    @property
    def waiting(self) -> int:
        """Requests that were let in and have no token yet."""
        return self._waiting.total()

    @property
    def waiting_prompt_tokens(self) -> int:
        """Their prompt tokens."""
        return self._waiting_tokens

    def waiting_by_tier(self) -> dict[str, int]:
        """Return the waiting requests of each tier seen so far."""
        return dict(self._waiting)

    def admit(self, tier: TierRecord, tenant: str, prompt_tokens: Sequence[int]) -> Reservation:
        """Take one place per entry of `prompt_tokens`, all or none; raises `ApiError`."""
        self.check(tier, tenant, prompt_tokens)
        tokens = sum(prompt_tokens)
        self._waiting[tier.name] += len(prompt_tokens)
        self._waiting_tokens += tokens
        own = self._tenants.setdefault(tenant, TenantQueue())
        own.requests += len(prompt_tokens)
        own.tokens += tokens
        return Reservation(self, tier.name, tenant, prompt_tokens)

    def check(self, tier: TierRecord, tenant: str, prompt_tokens: Sequence[int]) -> None:
        """Raise what `admit` would raise now, and take nothing."""
        self.check_open()
        wanted, tokens = len(prompt_tokens), sum(prompt_tokens)
        if self.waiting + wanted > self._max_queue:
            raise self._refusal(Problem.SATURATED, tier.name, "The queue is full.")
        # An empty queue takes any one request: what it can never hold is refused elsewhere.
        if self.waiting and self._waiting_tokens + tokens > self._max_prompt_tokens:
            raise self._refusal(Problem.SATURATED, tier.name, "Too many prompt tokens are waiting.")
        most = None if tier.max_queue is None else self._place.share_of(tier.max_queue)
        if most is not None and self._waiting[tier.name] + wanted > most:
            raise self._refusal(Problem.TIER_FULL, tier.name, "The queue of your tier is full.")
        own = self._tenants.get(tenant)
        if own is not None and (
            own.requests + wanted > self._tenant_factor * (self._max_queue - self.waiting - wanted)
            or own.tokens + tokens
            > self._tenant_factor * (self._max_prompt_tokens - self._waiting_tokens - tokens)
        ):
            raise self._refusal(Problem.SATURATED, tier.name, "Your share of the queue is full.")

    def check_open(self) -> None:
        """Raise the refusal of a gateway that is shutting down."""
        if self.draining:
            raise ApiError(
                Problem.DRAINING,
                "This server is shutting down and takes no new requests.",
                retry_after_ms=DRAINING_HINT_MS,
            )

    def leave(self, place: Reservation, prompt_tokens: int, *, served: bool) -> None:
        """One place becomes free; called by `Reservation` only."""
        tier = place.tier
        self._waiting[tier] -= 1
        self._waiting_tokens -= prompt_tokens
        own = self._tenants[place.tenant]
        own.requests -= 1
        own.tokens -= prompt_tokens
        if not own.requests:
            del self._tenants[place.tenant]
        assert self._waiting[tier] >= 0, f"tier {tier}: more left than came"
        assert self._waiting_tokens >= 0
        if served:
            rate = self._rates.setdefault(tier, DrainRate())
            rate.note(self._clock.now_ns(), others_wait=self._waiting[tier] > 0)

    def hint_ms(self, tier: str) -> int:
        """Return when a request of `tier` should come back: its queue over its rate, in steps."""
        rate = self._rates.get(tier)
        per_second = rate.per_second(self._clock.now_ns()) if rate is not None else None
        if per_second is None:
            return step_hint_ms(COLD_HINT_S)
        return step_hint_ms((self._waiting[tier] + 1) / per_second)

    def _refusal(self, problem: Problem, tier: str, message: str) -> ApiError:
        return ApiError(
            problem,
            f"{message} Please retry after the time in the 'retry-after' header.",
            retry_after_ms=self.hint_ms(tier),
        )
