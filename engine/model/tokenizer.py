"""Text to tokens and back for one model; it knows neither HTTP nor the engine.

It reads tokenizer.json with the `tokenizers` library directly and renders chat templates itself, so
that the gateway's process need not load torch or transformers; only a model that ships no
tokenizer.json is converted with transformers, once, at load. Encoding is thread-safe and releases
the GIL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import tokenizers

from engine.core.clock import utc_now
from engine.core.errors import ModelLoadError
from engine.model.chat_template import ChatTemplate, ChatTemplateError, ToolForm
from engine.model.token_pieces import DecoderKind, DecoderShape, byte_level_bytes, byte_of
from engine.model.tokenizer_files import TokenizerFiles


@dataclass(frozen=True, slots=True)
class TokenText:
    """One token by itself, as the OpenAI API's `logprobs` show it.

    `text` may hold U+FFFD where the token is part of a character; `bytes` are exact, and those of a
    whole answer joined are its UTF-8.
    """

    text: str
    bytes: tuple[int, ...]


class Tokenizer:
    """A model's vocabulary, special tokens and chat template."""

    def __init__(self, backend: tokenizers.Tokenizer, files: TokenizerFiles) -> None:
        """Use `load`; this takes the parts that it found."""
        backend.no_truncation()  # a limit in the file would cut prompts without a word
        backend.no_padding()
        self._backend = backend
        self._add_special_tokens(files)
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self._vocab_size = max(backend.get_vocab().values(), default=-1) + 1
        self._templates = {
            name: ChatTemplate(source, files.special_tokens)
            for name, source in files.chat_templates.items()
        }
        self._bos_id = self._id_of(files, "bos_token")
        self._eos_id = self._id_of(files, "eos_token")
        own = () if self._eos_id is None else (self._eos_id,)
        self._stop_ids = tuple(sorted({*files.end_ids, *own}))
        state = None if backend.decoder is None else backend.decoder.__getstate__()
        self._decoder = DecoderShape.of(state)
        self._token_texts: dict[int, TokenText] = {}

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Load the tokenizer of a model's folder.

        Raises `ModelLoadError` where the folder holds none, and `ChatTemplateError` where its
        chat template is not valid.
        """
        files = TokenizerFiles.read(Path(path))
        if files.tokenizer_json is None:
            return cls(_converted(files.folder), files)
        return cls(tokenizers.Tokenizer.from_str(files.tokenizer_json), files)

    def _add_special_tokens(self, files: TokenizerFiles) -> None:
        """Make the configuration's special tokens special, adding those that are missing."""
        added = self._backend.get_added_tokens_decoder().values()
        known = {token.content for token in added}
        named = [*files.special_tokens.values(), *files.extra_special_tokens]
        self._backend.add_special_tokens(list(dict.fromkeys(t for t in named if t not in known)))

    def _id_of(self, files: TokenizerFiles, name: str) -> int | None:
        token = files.special_tokens.get(name)
        return None if token is None else self._backend.token_to_id(token)

    @property
    def vocab_size(self) -> int:
        """The highest token id plus one; a model's logits may be padded beyond it."""
        return self._vocab_size

    @property
    def bos_token_id(self) -> int | None:
        """The id that opens a text, None where the model has none."""
        return self._bos_id

    @property
    def eos_token_id(self) -> int | None:
        """The tokenizer's own end token; `stop_token_ids` are all that end an answer."""
        return self._eos_id

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer, ascending: of generation_config.json and the tokenizer."""
        return self._stop_ids

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of special tokens, which `decode` leaves out unless told otherwise."""
        return self._special_ids

    @property
    def decoder(self) -> DecoderShape:
        """How tokens become text, for those who decode step by step."""
        return self._decoder

    @property
    def has_chat_template(self) -> bool:
        """True where `encode_chat` can work."""
        return "default" in self._templates

    @property
    def tool_form(self) -> ToolForm | None:
        """How the model calls tools by its chat template, None where that takes none."""
        template = self._templates.get("tool_use") or self._templates.get("default")
        return None if template is None else template.tool_form

    def special_id(self, text: str) -> int | None:
        """Return the id of the special token spelt `text`, None where there is no such token."""
        token_id: int | None = self._backend.token_to_id(text)
        return token_id if token_id in self._special_ids else None

    def encode(self, text: str, add_special: bool = True) -> tuple[int, ...]:
        """Return the ids of a text; special tokens written out in it count as such.

        `add_special` adds what tokenizer.json wants around a text, as a rule the opening token.
        """
        return tuple(self._backend.encode(text, add_special_tokens=add_special).ids)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        now: datetime | None = None,
        **template_kwargs: Any,
    ) -> str:
        """Return the prompt text of a conversation; see `ChatTemplate.render`.

        `now` is the time the template may print, by default the wall clock's. Raises
        `ChatTemplateError`.
        """
        template = self._templates.get("tool_use") if tools is not None else None
        template = template or self._templates.get("default")
        if template is None:
            raise ChatTemplateError("this model has no chat template: use the completions API")
        return template.render(messages, now or utc_now(), tools, **template_kwargs)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        now: datetime | None = None,
        **template_kwargs: Any,
    ) -> tuple[int, ...]:
        """Return the prompt's ids for a conversation, ready for the answer.

        The template writes its special tokens itself, the opening one included: none is added.
        """
        return self.encode(self.render_chat(messages, tools, now=now, **template_kwargs), False)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of some ids; ids without a token count for nothing."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token(self, token_id: int) -> str | None:
        """Return the vocabulary's own spelling of an id, None where it has no token."""
        return self._backend.id_to_token(token_id)

    def token_text(self, token_id: int) -> TokenText:
        """Return what one token contributes inside a text (its leading space kept)."""
        known = self._token_texts.get(token_id)
        if known is None:
            raw = self._token_bytes(token_id)
            known = TokenText(raw.decode(errors="replace"), tuple(raw))
            self._token_texts[token_id] = known  # at most one entry per token of the vocabulary
        return known

    def vocabulary(self) -> list[bytes]:
        """Return every id's bytes, empty where it has no token; a special token's are its name."""
        return [self._token_bytes(token_id) for token_id in range(self._vocab_size)]

    def _token_bytes(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self._special_ids:
            return token.encode()
        if self._decoder.kind is DecoderKind.BYTE_LEVEL:
            return byte_level_bytes(token)
        if self._decoder.kind is DecoderKind.BYTE_FALLBACK:
            byte = byte_of(token)
            return self._decoder.replaced(token).encode() if byte is None else bytes([byte])
        return self._backend.decode([token_id], skip_special_tokens=False).encode()


def _converted(folder: Path) -> tokenizers.Tokenizer:
    """Return the tokenizer of a folder without tokenizer.json, as transformers converts it."""
    from transformers import AutoTokenizer  # imported here: it is slow and large

    try:
        made = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelLoadError(f"{folder} holds no tokenizer that can be loaded: {reason}") from error
    backend = getattr(made, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ModelLoadError(
            f"{folder}: this kind of tokenizer has no fast form; add tokenizer.json"
        )
    return backend
