"""From a checked body to a `Plan`: model, tier, tokens, limits; the last step that holds nothing.

Everything that can be refused for what the request itself is gets refused here, before a place in
any queue is taken. The client's own word counts for nothing where its tenant's does: salt, weight,
rank and objectives come from the tier's row.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Collection, Sequence
from datetime import timedelta
from functools import partial

from engine.core.clock import NS_PER_S, Clock, utc_now
from engine.core.grammar import json_schema_grammar
from engine.core.request import SamplingParams
from engine.serving.client import EngineInfo
from gateway.asking import Asked, asked_in_chat, asked_in_text
from gateway.completion import Heading, Shape
from gateway.dialects.embeddings import EmbeddingBody, EmbeddingShape
from gateway.dialects.openai import ChatShape, TextShape
from gateway.errors import ApiError, Problem, bad_value
from gateway.limit_desk import affordable
from gateway.plan import Plan
from gateway.principal import (
    DEFAULT,
    SERVICE_TIERS,
    Principal,
    service_tier_name,
    slo_of,
)
from gateway.schemas import ChatBody, CompletionBody, SamplingBody
from gateway.text import TextCodec
from gateway.tools import WantedTools
from tenants.values import TierRecord

CHAT, TEXT = ChatShape(), TextShape()
_MAX_SEED = 2**63


def is_served(name: str, info: EngineInfo, aliases: Collection[str]) -> bool:
    """True for the model's name and for every other name it answers to; `*` is any name."""
    return name == info.model or name in aliases or "*" in aliases


def require_model(
    model: str, principal: Principal, info: EngineInfo, aliases: Collection[str] = ()
) -> None:
    """Raise unless this is a name of the model served and the key may use it.

    An allow-list may name the model or the alias. The answer always says the model's own name.
    """
    served = is_served(model, info, aliases)
    if not (principal.allows(model) or (served and principal.allows(info.model))):
        raise ApiError(
            Problem.MODEL_FORBIDDEN, "This key may not use the model asked for.", param="model"
        )
    if not served:
        raise ApiError(
            Problem.MODEL_UNKNOWN,
            f"There is no such model here; this server has '{info.model}'.",
            param="model",
        )


def choose_tier(
    wanted: str | None, principal: Principal, tiers: Sequence[TierRecord]
) -> TierRecord:
    """Return the tier to serve in: the key's own, or a lower one that was asked for.

    `default` means the ordinary class, so a key below it is served in its own tier; asking for
    `priority` without being entitled to it is refused, never silently served as less.
    """
    own = principal.tier
    if wanted in (None, "auto"):
        return own
    assert wanted is not None
    own_name = service_tier_name(own)
    if wanted == own_name:
        return own
    if SERVICE_TIERS.index(wanted) < SERVICE_TIERS.index(own_name):
        if wanted == DEFAULT:
            return own
        raise ApiError(
            Problem.TIER_FORBIDDEN,
            "This key is not entitled to the service tier asked for.",
            param="service_tier",
        )
    lower = [t for t in tiers if t.rank > own.rank and service_tier_name(t) == wanted]
    if not lower:
        raise ApiError(
            Problem.UNSUPPORTED,
            "This server does not offer the service tier asked for.",
            param="service_tier",
        )
    return min(lower, key=lambda tier: (tier.rank, tier.name))


def context_limit(info: EngineInfo) -> int:
    """Return how many tokens of prompt and answer one request may reach."""
    return min(info.max_model_len, info.num_blocks * info.block_size)


def output_limit(
    asked: int | None, longest_prompt: int, tier: TierRecord, info: EngineInfo, field: str
) -> int:
    """Return max_tokens: what was asked for, or else what fits; raises where neither does.

    `field` is the one that the prompt was sent in.
    """
    limit = context_limit(info)
    room = limit - longest_prompt
    cap = tier.max_output_tokens
    if asked is None:
        if room < 1:
            raise _too_long(longest_prompt, 1, limit, field)
        return room if cap is None else min(room, cap)
    if cap is not None and asked > cap:
        raise bad_value("max_tokens", f"At most {cap} tokens can be asked for in your tier.")
    if asked > room:
        raise _too_long(longest_prompt, asked, limit, field)
    return asked


def _too_long(prompt_tokens: int, max_tokens: int, limit: int, field: str) -> ApiError:
    return ApiError(
        Problem.TOO_LONG,
        f"This model's context is {limit} tokens, but {prompt_tokens + max_tokens} are needed: "
        f"{prompt_tokens} in the prompt and {max_tokens} for the answer.",
        param=field,
    )


def sampling_of(
    body: SamplingBody, max_tokens: int, num_logprobs: int | None, codec: TextCodec
) -> SamplingParams:
    """Return how tokens are drawn, defaults filled in; a seed is drawn where none was sent."""
    stop_ids = set(body.stop_token_ids or ())
    if not body.ignore_eos:
        stop_ids |= set(codec.end_token_ids)
    min_tokens = body.min_tokens or 0
    if min_tokens > max_tokens:
        raise bad_value("min_tokens", f"'min_tokens' is above the limit of {max_tokens} tokens.")
    return SamplingParams(
        max_tokens=max_tokens,
        seed=secrets.randbelow(_MAX_SEED) if body.seed is None else body.seed % _MAX_SEED,
        min_tokens=min_tokens,
        temperature=_or(body.temperature, 1.0),
        top_p=_or(body.top_p, 1.0),
        top_k=max(body.top_k or 0, 0),
        min_p=_or(body.min_p, 0.0),
        presence_penalty=_or(body.presence_penalty, 0.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        logit_bias=_logit_bias(body.logit_bias or {}, codec.vocab_size),
        stop_token_ids=tuple(sorted(stop_ids)),
        logprobs=num_logprobs,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _logit_bias(biases: dict[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    """Return the biases by token id; a bias of zero does nothing, so its key is not looked at."""
    found: list[tuple[int, float]] = []
    for key, bias in biases.items():
        if bias == 0:
            continue
        # Longer digit strings than any id has would only cost time to parse.
        token_id = int(key) if key.isascii() and key.isdigit() and len(key) < 12 else -1
        if not 0 <= token_id < vocab_size:
            raise bad_value(
                "logit_bias", f"The keys of 'logit_bias' are token ids below {vocab_size}."
            )
        found.append((token_id, bias))
    return tuple(sorted(found))


class Encoder:
    """Makes plans for one engine's model. `arrival_ns` is when the request's first byte came."""

    def __init__(
        self,
        codec: TextCodec,
        info: EngineInfo,
        clock: Clock,
        fingerprint: str,
        aliases: Collection[str] = (),
    ) -> None:
        self.codec = codec
        self._info = info
        self._clock = clock
        self._fingerprint = fingerprint
        self._aliases = aliases

    @property
    def model(self) -> str:
        """The name of the model served."""
        return self._info.model

    async def chat(
        self,
        body: ChatBody,
        principal: Principal,
        tiers: Sequence[TierRecord],
        arrival_ns: int,
        shape: Shape = CHAT,
    ) -> Plan:
        """Return the plan of a chat completion, told in `shape`; raises ApiError."""
        require_model(body.model, principal, self._info, self._aliases)
        tier = choose_tier(body.service_tier, principal, tiers)
        wanted = WantedTools.of(body)
        tools = wanted.use(self.codec.tool_form, shape.call_prefix)
        if tools is None and any(message.tool_calls for message in body.messages):
            self._require_tools()
        prompt = await self.codec.encode_chat(body.messages, wanted.definitions)
        asked = [asked_in_chat(body.messages)]
        plan = self._plan(body, shape, principal, tier, [prompt], asked, arrival_ns)
        if tools is not None:
            plan = dataclasses.replace(plan, tools=tools)
        schema = body.answer_schema
        if schema is None and not wanted.must_call:
            return plan
        param = "tools" if wanted.must_call else "response_format"
        if not self._info.has_grammars:
            raise ApiError(
                Problem.UNSUPPORTED,
                "This server's engine cannot hold answers to a format.",
                param="tool_choice" if wanted.must_call else param,
            )
        if tools is not None:
            make = partial(wanted.grammar, tools.form, schema)
        else:
            make = partial(json_schema_grammar, schema or {})
        grammar = await self.codec.grammar_of(make, param)
        sampling = dataclasses.replace(plan.sampling, grammar=grammar)
        return dataclasses.replace(plan, sampling=sampling)

    async def count(self, body: ChatBody, principal: Principal) -> int:
        """Return how many tokens the prompt of a chat has; raises ApiError as for the answer."""
        require_model(body.model, principal, self._info, self._aliases)
        wanted = WantedTools.of(body)
        wanted.use(self.codec.tool_form, "")
        return len(await self.codec.encode_chat(body.messages, wanted.definitions))

    def _require_tools(self) -> None:
        """Refuse a history with calls where the template would leave them out."""
        if self.codec.tool_form is None:
            raise ApiError(
                Problem.UNSUPPORTED,
                "This model's chat template takes no tools.",
                param="messages",
            )

    async def completion(
        self,
        body: CompletionBody,
        principal: Principal,
        tiers: Sequence[TierRecord],
        arrival_ns: int,
    ) -> Plan:
        """Return the plan of a completion; raises ApiError."""
        require_model(body.model, principal, self._info, self._aliases)
        tier = choose_tier(body.service_tier, principal, tiers)
        sent = body.prompts
        prompts = await self.codec.encode_prompts(sent)
        asked = list(map(asked_in_text, sent))
        plan = self._plan(body, TEXT, principal, tier, prompts, asked, arrival_ns)
        if not body.echo:
            return plan
        # Only now: prompts that fit the context are short enough to be decoded on the event loop.
        echoes = tuple(
            text if isinstance(text, str) else self.codec.decode(tokens)
            for text, tokens in zip(sent, prompts, strict=True)
        )
        return dataclasses.replace(plan, echoes=echoes)

    async def embedding(
        self,
        body: EmbeddingBody,
        principal: Principal,
        tiers: Sequence[TierRecord],
        arrival_ns: int,
    ) -> Plan:
        """Return the plan of embeddings; raises ApiError."""
        require_model(body.model, principal, self._info, self._aliases)
        size = self._info.embedding_size
        if not size:
            raise ApiError(Problem.UNSUPPORTED, "This server's engine makes no embeddings.")
        if body.dimensions not in (None, size):
            raise bad_value("dimensions", f"This model's embeddings have {size} dimensions.")
        tier = choose_tier(body.service_tier, principal, tiers)
        prompts = await self.codec.encode_prompts(body.prompts, "input")
        if not all(prompts):
            raise bad_value("input", "An input must have at least one token.")
        # The engine keeps room for the token in whose place it makes the vector.
        longest, most = max(map(len, prompts)), context_limit(self._info) - 1
        if longest > most:
            raise ApiError(
                Problem.TOO_LONG,
                f"An input can have at most {most} tokens here, but one has {longest}.",
                param="input",
            )
        shape, asked = EmbeddingShape(body.encoding), [Asked("")] * len(prompts)
        completion = body.as_completion()
        plan = self._plan(completion, shape, principal, tier, prompts, asked, arrival_ns)
        sampling = dataclasses.replace(plan.sampling, embeds=True, stop_token_ids=())
        return dataclasses.replace(plan, sampling=sampling)

    def _plan(
        self,
        body: ChatBody | CompletionBody,
        shape: Shape,
        principal: Principal,
        tier: TierRecord,
        prompts: Sequence[tuple[int, ...]],
        asked: Sequence[Asked],
        arrival_ns: int,
    ) -> Plan:
        if not all(prompts):
            raise bad_value(shape.prompt_field, "A prompt must have at least one token.")
        lengths = list(map(len, prompts))
        max_tokens = output_limit(
            body.output_limit, max(lengths), tier, self._info, shape.prompt_field
        )
        if body.output_limit is None and principal.limits:
            max_tokens = affordable(
                max_tokens, principal, self._info.model, tier, lengths, body.num_choices
            )
        now = utc_now()
        waited_s = (self._clock.now_ns() - arrival_ns) / NS_PER_S
        heading = Heading(
            id=shape.id_prefix + secrets.token_hex(16),
            created=int(now.timestamp()),
            model=self._info.model,
            service_tier=service_tier_name(tier),
            fingerprint=self._fingerprint,
        )
        arrival = now - timedelta(seconds=waited_s)
        hour = arrival.hour + arrival.minute / 60
        return Plan(
            principal=principal,
            tier=tier,
            slo=slo_of(tier, stream=bool(body.stream)),
            shape=shape,
            heading=heading,
            prompts=tuple(prompts),
            sampling=sampling_of(body, max_tokens, body.num_logprobs, self.codec),
            stops=body.stops,
            choices_per_prompt=body.num_choices,
            arrival_ns=arrival_ns,
            arrival=arrival,
            stream=bool(body.stream),
            usage_chunk=body.wants_usage_chunk,
            questions=tuple(
                one.question(principal.tenant.id, len(prompt), max_tokens, hour)
                for one, prompt in zip(asked, prompts, strict=True)
            ),
            previous_outputs=asked[0].previous_outputs(len(prompts[0])),
        ).eased(body.wishes)
