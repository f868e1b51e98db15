"""What crosses to the executor and back: complete, immutable instructions and results.

A batch holds no live object: it can be logged, compared, replayed or sent to another process.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.core.request import SamplingParams


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens of one request in one step.

    `token_ids` stand at positions [start, start + len(token_ids)); their keys and values go to the
    request's blocks, and they attend to everything before them. `block_ids` is the whole block
    table, covering at least start + len(token_ids) positions; the very same tuple object is handed
    out again while the table does not change, so an executor may cache its tensor by identity.
    `sampling` is None for a chunk that ends before the last known token: nothing is drawn then.
    `output_index` counts the tokens generated so far (the counter of the row's random stream).
    `prompt_ids`/`output_ids` are filled only where penalties or a grammar need them.
    """

    request_id: str
    start: int
    token_ids: tuple[int, ...]
    block_ids: tuple[int, ...]
    sampling: SamplingParams | None
    output_index: int = 0
    prompt_ids: tuple[int, ...] = ()
    output_ids: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Number of tokens computed in this step."""
        return len(self.token_ids)

    @property
    def end(self) -> int:
        """Context length after this step."""
        return self.start + len(self.token_ids)

    @property
    def is_decode(self) -> bool:
        """True for the one missing token of an answer under way."""
        return self.output_index > 0 and len(self.token_ids) == 1


class _OpenChunk:
    """A chunk while it is filled: the same slots, stored plainly, closed by changing its class.

    A frozen dataclass fills each field through `object.__setattr__`, which takes three times as
    long; one chunk is made for every row of every step, and that is most of what a step costs.
    """

    __slots__ = Chunk.__slots__

    def __init__(
        self,
        request_id: str,
        start: int,
        token_ids: tuple[int, ...],
        block_ids: tuple[int, ...],
        sampling: SamplingParams | None,
        output_index: int,
        prompt_ids: tuple[int, ...],
        output_ids: tuple[int, ...],
    ) -> None:
        self.request_id = request_id
        self.start = start
        self.token_ids = token_ids
        self.block_ids = block_ids
        self.sampling = sampling
        self.output_index = output_index
        self.prompt_ids = prompt_ids
        self.output_ids = output_ids


def decode_chunk(
    request_id: str,
    start: int,
    token_id: int,
    block_ids: tuple[int, ...],
    sampling: SamplingParams,
    output_index: int,
    prompt_ids: tuple[int, ...],
    output_ids: tuple[int, ...],
) -> Chunk:
    """Return the chunk of one decoding token; equal to one made by `Chunk(...)`, but cheaper."""
    chunk = _OpenChunk(
        request_id, start, (token_id,), block_ids, sampling, output_index, prompt_ids, output_ids
    )
    chunk.__class__ = Chunk  # type: ignore[assignment]
    return chunk  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Copy:
    """One request's context on its way between device and host: block i goes to or from host i.

    Whole blocks, in order. It begins with the step that carries it and is over when a result names
    its `number`, in that step or a later one. Until then nobody writes what is copied out (others
    who share a prefix may read it), and nobody touches where a copy arrives. A request has at most
    one copy under way. `number` is never given twice by one scheduler.
    """

    request_id: str
    block_ids: tuple[int, ...]
    host_block_ids: tuple[int, ...]
    number: int = 0
    num_tokens: int = 0  # positions that hold something; 0: all that the blocks have


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work. Chunks of a single token that decode come first, then prompt chunks.

    `parks` begin to be copied to the host and `returns` back to the device while the chunks
    compute, which write none of their blocks. Both are empty for an executor without host blocks.
    A batch without chunks means: wait until at least one copy under way is over.
    """

    step: int
    chunks: tuple[Chunk, ...]
    parks: tuple[Copy, ...] = ()
    returns: tuple[Copy, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens computed in the whole step."""
        return sum(len(chunk.token_ids) for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One alternative at a position."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The token drawn for one request; logprobs only where the order asked for them.

    `logprob` is the natural log of the model's own probability (temperature 1, no filters),
    as the OpenAI API reports it. `vector` is the prompt's embedding where that was ordered:
    float32, little-endian, of length 1; the token then means nothing.
    """

    request_id: str
    token_id: int
    logprob: float | None = None
    top: tuple[TopLogprob, ...] = ()
    vector: bytes = b""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What the executor answers: one token per sampling chunk, in the batch's order.

    `failed` names requests whose row could not be computed (for example non-finite logits); they
    have no token. `elapsed_ns` is the executor's own time for the step. `copied` are the numbers of
    the copies that are over since the last result, `lost_copies` of those that failed: nothing
    touches either of their sides any more, and what arrived is worth nothing.
    """

    step: int
    tokens: tuple[SampledToken, ...]
    elapsed_ns: int
    failed: tuple[str, ...] = ()
    copied: tuple[int, ...] = ()
    lost_copies: tuple[int, ...] = ()
