"""What one request comes to, once it is understood: prompts as tokens, sampling, tier; values only.

A `Plan` is made before anything is reserved or submitted, and everything later is read from it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import datetime

from engine.core.request import LengthEstimate, RequestOrder, SamplingParams, Slo
from engine.learning.question import Question
from gateway.completion import Heading, Shape
from gateway.principal import Principal, service_tier_name, slo_of
from gateway.stopwatch import Stopwatch
from gateway.tools import ToolUse
from gateway.usage_row import OnEnd, UsageContext
from gateway.wishes import NO_WISHES, Wishes
from tenants.values import TierRecord

_SEED_MASK = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Plan:
    """One request of one principal. `tier` is the one it is served in, at or below the key's own.

    `prompts` are token ids; each has `choices_per_prompt` answers, and choice k belongs to prompt
    k // choices_per_prompt. `echoes` are the prompts' texts where they are to be repeated.
    `questions` are what the prompts ask, until `estimates` of their answers' lengths are made.
    `slo` is the tier's promise, loosened where the client's `wishes` are content with less.
    """

    principal: Principal
    tier: TierRecord
    slo: Slo
    shape: Shape
    heading: Heading
    prompts: tuple[tuple[int, ...], ...]
    sampling: SamplingParams
    stops: tuple[str, ...]
    choices_per_prompt: int
    arrival_ns: int
    arrival: datetime
    stream: bool = False
    usage_chunk: bool = False
    echoes: tuple[str, ...] = field(default=(), repr=False)
    questions: tuple[Question, ...] = field(default=(), repr=False)
    previous_outputs: tuple[int, ...] = ()
    estimates: tuple[LengthEstimate, ...] = ()
    tools: ToolUse | None = None
    wishes: Wishes = NO_WISHES

    @property
    def num_choices(self) -> int:
        """Answers in all."""
        return len(self.prompts) * self.choices_per_prompt

    @property
    def most_output_tokens(self) -> int:
        """The most tokens that all its answers can come to."""
        return 0 if self.sampling.embeds else self.sampling.max_tokens * self.num_choices

    @property
    def wants_logprobs(self) -> bool:
        """True where log probabilities are part of the answer."""
        return self.sampling.logprobs is not None

    @property
    def is_paced(self) -> bool:
        """True where early tokens are held back (gateway/pacing.py)."""
        return self.slo.pace_ns > 0

    @property
    def echo(self) -> bool:
        """True where the prompt is repeated in front of the answer."""
        return bool(self.echoes)

    def prompt_of(self, index: int) -> tuple[int, ...]:
        """Return the prompt of a choice."""
        return self.prompts[index // self.choices_per_prompt]

    def echo_of(self, index: int) -> str:
        """Return the text to repeat in front of a choice."""
        return self.echoes[index // self.choices_per_prompt] if self.echoes else ""

    def estimate_of(self, index: int) -> LengthEstimate | None:
        """Return the guess of a choice's length, None where none was made."""
        return self.estimates[index // self.choices_per_prompt] if self.estimates else None

    def served_in(self, tier: TierRecord) -> Plan:
        """Return the same request as another tier's, by that tier's promise and price."""
        heading = dataclasses.replace(self.heading, service_tier=service_tier_name(tier))
        slo = self._promise(tier, self.wishes)
        return dataclasses.replace(self, tier=tier, slo=slo, heading=heading)

    def eased(self, wishes: Wishes) -> Plan:
        """Return the same request of a client that is content with less, or with as much."""
        if wishes == NO_WISHES:
            return self
        every = self.wishes.and_also(wishes)
        return dataclasses.replace(self, wishes=every, slo=self._promise(self.tier, every))

    def _promise(self, tier: TierRecord, wishes: Wishes) -> Slo:
        slo = slo_of(tier, stream=self.stream)
        return slo if wishes == NO_WISHES else wishes.ease(slo, max(map(len, self.prompts)))

    def engine_id(self, index: int) -> str:
        """Return the id of a choice's engine request, which is also that of its usage row."""
        return self.heading.id if self.num_choices == 1 else f"{self.heading.id}-{index}"

    def order(self, index: int) -> RequestOrder:
        """Return what is handed to the engine for a choice; each has a seed of its own."""
        seed = (self.sampling.seed + index) & _SEED_MASK
        return RequestOrder(
            id=self.engine_id(index),
            prompt=self.prompt_of(index),
            sampling=dataclasses.replace(self.sampling, seed=seed) if index else self.sampling,
            arrival_ns=self.arrival_ns,
            tenant=self.principal.tenant.id,
            tier=self.tier.name,
            cache_salt=self.principal.salt,
            weight=self.wishes.ease_weight(self.tier.weight),
            slo=self.slo,
            previous_outputs=self.previous_outputs,
            estimate=self.estimate_of(index),
        )

    def usage_context(
        self, index: int, stopwatch: Stopwatch, on_end: OnEnd | None = None
    ) -> UsageContext:
        """Return what the meter must know of a choice, and who hears what is billed for it."""
        return UsageContext(
            tenant_id=self.principal.tenant.id,
            key_id=self.principal.key_id,
            tier_requested=self.principal.tier.name,
            tier_served=self.tier.name,
            model=self.heading.model,
            stream=self.stream,
            arrival=self.arrival,
            stopwatch=stopwatch,
            bills_prompt=index % self.choices_per_prompt == 0,
            paced=self.is_paced,
            organisation_id=self.principal.organisation_id,
            tier=self.tier,
            on_end=on_end,
        )
