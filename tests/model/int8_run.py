"""How far answers move when their contexts were parked as int8, counted in two ways.

Teacher-forced: both runs are given the undisturbed answer token by token, and at every position
after the first park the greedy choices are compared. Free-running: each run goes on with its own
choices, and the answers are compared position by position; behind the first difference nearly all
differ, so this counts the same events more than once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from engine.core.batch import Batch, Chunk, Copy
from engine.core.request import SamplingParams
from engine.model.attention import TorchAttention
from engine.model.hf_model import PagedModel, kv_shape_of
from engine.model.host_cache import HostCache, HostFormat
from engine.model.host_side import make_swap
from engine.model.kernels.native import NativeKernels
from engine.model.kv_cache import KVCache
from engine.model.self_check import MakeAttention
from engine.model.step_input import StepInputBuilder

Disturb = Callable[[torch.Tensor], torch.Tensor]
BLOCK = 16
GREEDY = SamplingParams(max_tokens=1, temperature=0.0)


@dataclass(frozen=True, slots=True)
class Divergence:
    """What parking did to greedy answers. Shares are of 1; the error is relative (rms)."""

    positions: int  # at which a token was chosen after the first park, teacher-forced
    agreeing: int  # of them, the same token
    logit_error: float
    parks: int
    free_positions: int
    free_agreeing: int
    answers: int
    answers_alike: int  # free-running, from the first token to the last

    @property
    def agreement(self) -> float:
        """Teacher-forced, the share of positions with the same token."""
        return self.agreeing / self.positions

    @property
    def free_agreement(self) -> float:
        """Free-running, the share of positions after the first park with the same token."""
        return self.free_agreeing / self.free_positions


class Decoding:
    """Several sequences that decode together, each in its own blocks, parked when told."""

    def __init__(
        self,
        model: PagedModel,
        prompts: Sequence[Sequence[int]],
        longest: int,
        form: HostFormat,
        native: NativeKernels | None,
        make_attention: MakeAttention = TorchAttention,
        disturb: Disturb | None = None,
    ) -> None:
        self._disturb = disturb
        self._each = -(-longest // BLOCK)
        count = len(prompts) * self._each
        shape = kv_shape_of(model.needs)
        self._cache = KVCache(shape, count + self._each, BLOCK, model.device)
        self._cache.data.fill_(float("nan"))
        self._host = HostCache(shape, self._each, BLOCK, form)
        self._swap = make_swap(self._cache, self._host, native)
        self._model = model
        self._attention = make_attention(self._cache)
        self._builder = StepInputBuilder(BLOCK, model.device)
        ids = list(range(1, count + 1))
        random.Random(len(prompts)).shuffle(ids)
        self._tables = [tuple(ids[i :: len(prompts)]) for i in range(len(prompts))]
        self._spare = tuple(range(count + 1, count + self._each + 1))
        self._lengths = [0] * len(prompts)
        self._number = 0

    @torch.inference_mode()
    def feed(self, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Compute the next tokens of every sequence; the logits behind each, [S, vocab]."""
        chunks = []
        for i, ids in enumerate(tokens):
            start = self._lengths[i]
            decoding = start > 0
            table = self._tables[i]
            chunks.append(Chunk(str(i), start, tuple(ids), table, GREEDY, int(decoding)))
            self._lengths[i] += len(ids)
        self._model.bind(self._attention)
        batch = Batch(0, tuple(chunks))
        return self._model.step(self._builder.build(batch)).float().clone()

    def park(self, index: int) -> None:
        """Carry one sequence to the host and back into other blocks."""
        used = -(-self._lengths[index] // BLOCK)
        old, host_blocks = self._tables[index][:used], tuple(range(1, used + 1))
        new = self._spare[:used]
        self._number += 2
        length = self._lengths[index]
        out = Copy(str(index), old, host_blocks, self._number, length)
        back = Copy(str(index), new, host_blocks, self._number + 1, length)
        for parks, returns in (((out,), ()), ((), (back,))):
            self._swap.begin(parks, returns)
            assert self._swap.wait_any().lost == ()
        self._cache.data[:, :, list(old)] = float("nan")
        if self._disturb is not None:
            back = self._cache.data[:, :, list(new)]
            self._cache.data[:, :, list(new)] = self._disturb(back)
        self._tables[index] = (*new, *self._tables[index][used:])
        self._spare = (*old, *self._spare[used:])


def divergence(
    model: PagedModel,
    prompts: Sequence[Sequence[int]],
    num_new: int,
    form: HostFormat,
    *,
    every: int | None,
    seed: int,
    native: NativeKernels | None = None,
    make_attention: MakeAttention = TorchAttention,
    disturb: Disturb | None = None,
) -> Divergence:
    """Park every sequence of a batch at a random moment of its answer, or each `every` tokens.

    A sequence is first parked after 0 (only the prompt is there) to num_new - 2 tokens of its own.
    `disturb` changes what came back besides.
    """
    draw = random.Random(seed)
    longest = max(map(len, prompts)) + num_new
    if every is None:
        moments = [{draw.randrange(num_new - 1)} for _ in prompts]
    else:
        moments = [set(range(draw.randrange(every), num_new - 1, every)) for _ in prompts]

    def decoding() -> Decoding:
        return Decoding(model, prompts, longest, form, native, make_attention, disturb)

    still = decoding()
    logits = [still.feed(prompts)]
    for _ in range(num_new - 1):
        logits.append(still.feed([[t] for t in logits[-1].argmax(-1).tolist()]))
    answers = torch.stack([row.argmax(-1) for row in logits])  # [num_new, S]

    moved, free = decoding(), decoding()
    moved.feed(prompts)
    chosen = free.feed(prompts).argmax(-1)
    positions = agreeing = parks = free_agreeing = 0
    wrong = right = 0.0
    alike = torch.ones(len(prompts), dtype=torch.bool)
    for at in range(num_new - 1):
        for index, when in enumerate(moments):
            if at in when:
                moved.park(index)
                free.park(index)
                parks += 1
        after = torch.tensor([min(when) <= at for when in moments])
        found = moved.feed(answers[at][:, None].tolist())
        chosen = free.feed(chosen[:, None].tolist()).argmax(-1)
        want = answers[at + 1]
        positions += int(after.sum())
        agreeing += int((found.argmax(-1) == want)[after].sum())
        free_agreeing += int((chosen == want)[after].sum())
        alike &= chosen == want
        wrong += float((found - logits[at + 1])[after].square().sum())
        centred = logits[at + 1][after] - logits[at + 1][after].mean(-1, keepdim=True)
        right += float(centred.square().sum())
        assert torch.equal(found[~after], logits[at + 1][~after]), "parked by others"
    return Divergence(
        positions,
        agreeing,
        (wrong / right) ** 0.5,
        parks,
        positions,
        free_agreeing,
        len(prompts),
        int(alike.sum()),
    )
