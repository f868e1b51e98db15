"""`tiergate chat`: a conversation in the terminal; the asking and timing is `chat_client`'s."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

from gateway.cli.options import flag
from gateway.cli.output import CommandError, complain, note, printable

if TYPE_CHECKING:
    from gateway.cli.chat_client import ChatClient, Message

DEFAULT_URL = "http://127.0.0.1:8000"
HELP_LINE = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


def chat(
    url: Annotated[str, flag("url", f"The gateway; default {DEFAULT_URL}.", "URL")] = DEFAULT_URL,
    key: Annotated[str | None, flag("key", "Your key, tgk_live_... .", "KEY")] = None,
    model: Annotated[
        str | None,
        flag("model", "Default: the first one offered.", "NAME", "TIERGATE_CHAT_MODEL"),
    ] = None,
    system: Annotated[
        str | None,
        flag("system", "What the model is told first.", "TEXT", "TIERGATE_CHAT_SYSTEM"),
    ] = None,
    max_tokens: Annotated[
        int | None,
        flag("max-tokens", "Longest answer.", "N", "TIERGATE_CHAT_MAX_TOKENS"),
    ] = None,
    prompt: Annotated[
        str | None,
        flag("prompt", "Ask this and leave; - reads stdin.", "TEXT", "TIERGATE_CHAT_PROMPT"),
    ] = None,
) -> int:
    """Talk to a running gateway; every answer is followed by how it arrived.

    The line after an answer shows TTFT (time to first token), TBT (time between tokens: median
    and longest) and the pace after the first token, all as seen from here.

    \b
    Examples:
      tiergate chat --key tgk_live_...
      TIERGATE_KEY=tgk_live_... tiergate chat --prompt 'What is a KV cache?'
      tiergate chat --prompt - --max-tokens 200 < question.txt
    """
    from engine.core.clock import MonotonicClock
    from gateway.cli.chat_client import ChatClient

    if key is None:
        raise CommandError(
            "no key: pass --key or set TIERGATE_KEY; make one with "
            "`tiergate key create --tenant NAME`"
        )
    history: list[Message] = [{"role": "system", "content": system}] if system else []
    with ChatClient(url, key, MonotonicClock()) as client:
        name = model or client.first_model()
        if prompt is None:
            converse(client, name, history, max_tokens)
            return 0
        text = sys.stdin.read().strip() if prompt == "-" else prompt
        answer(client, name, [*history, {"role": "user", "content": text}], max_tokens)
        return 0


def converse(
    client: ChatClient, model: str, history: list[Message], max_tokens: int | None
) -> None:
    """Read questions and print answers until the end of input; the conversation is kept."""
    enable_line_editing()
    note(f"{model}; {HELP_LINE}")
    spoken = list(history)
    while (line := read_line()) is not None:
        if line in ("/exit", "/quit"):
            return
        if line == "/reset":
            spoken = list(history)
            note("forgotten")
            continue
        if line.startswith("/"):
            note(HELP_LINE)
            continue
        if not line:
            continue
        asked = [*spoken, {"role": "user", "content": line}]
        try:
            said = answer(client, model, asked, max_tokens)
        except CommandError as error:
            # The question is dropped: it would be sent again with the next one.
            complain(str(error))
            continue
        spoken = [*asked, {"role": "assistant", "content": said}]


def answer(client: ChatClient, model: str, messages: list[Message], max_tokens: int | None) -> str:
    """Print one answer as it comes, then its times; returns its text, also when it was stopped."""
    pieces: list[str] = []
    try:
        with closing(client.stream(model, messages, max_tokens)) as stream:
            for piece in stream:
                pieces.append(piece)
                print(printable(piece), end="", flush=True)
    except KeyboardInterrupt:
        note("\n(stopped)")
        return "".join(pieces)
    finally:
        if pieces:
            print(flush=True)
    note(client.times.line() if client.times is not None else "(an empty answer)")
    return "".join(pieces)


def read_line() -> str | None:
    """Return the next line of the user, None at the end of input or on Ctrl-C."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        note("")
        return None


def enable_line_editing() -> None:
    """Give `input` arrow keys and recall, where this Python has them."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return
