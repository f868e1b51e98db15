"""Asks a running gateway over HTTP and times the answer as a client sees it; it prints nothing.

TTFT runs from sending the request to the first piece of text; gaps are between pieces of text, of
which a gateway sends one a token. Role chunks, keep-alives and headers count for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx

from engine.core.clock import NS_PER_MS, NS_PER_S, Clock
from gateway.cli.output import CommandError

CONNECT_TIMEOUT_S = 5.0
SILENCE_TIMEOUT_S = 300.0  # a queue may be long, but not this long

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class AnswerTimes:
    """How one answer arrived; times in nanoseconds, `num_tokens` as the gateway counted them."""

    ttft_ns: int
    gaps_ns: tuple[int, ...]
    num_tokens: int
    finish_reason: str
    service_tier: str = ""

    def line(self) -> str:
        """Return the times as people read them; tokens/s is the pace after the first token."""
        parts = [f"TTFT {_ms(self.ttft_ns)}"]
        if self.gaps_ns:
            ordered = sorted(self.gaps_ns)
            p50 = ordered[(len(ordered) - 1) // 2]
            parts.append(f"TBT p50 {_ms(p50)}, max {_ms(ordered[-1])}")
        total_ns = sum(self.gaps_ns)
        if total_ns > 0:
            rate = (self.num_tokens - 1) * NS_PER_S / total_ns
            parts.append(f"{rate:.1f} tokens/s")
        parts.append(f"{self.num_tokens} token{'s' if self.num_tokens != 1 else ''}")
        if self.service_tier:
            parts.append(f"tier {self.service_tier}")
        if self.finish_reason not in ("", "stop"):
            parts.append(f"ended by {self.finish_reason}")
        return " · ".join(parts)


class ChatClient:
    """One gateway, one key; use it as a context manager."""

    def __init__(
        self,
        url: str,
        key: str,
        clock: Clock,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._clock = clock
        self._times: AnswerTimes | None = None
        try:
            address = httpx.URL(self._url)
            if address.scheme not in ("http", "https") or not address.host:
                raise ValueError("it must look like http://127.0.0.1:8000")
            self._http = httpx.Client(
                base_url=self._url,
                headers={"Authorization": f"Bearer {key}"},
                timeout=httpx.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
                transport=transport,
                # A proxy of the environment cannot reach this machine's own loopback.
                trust_env=address.host not in ("127.0.0.1", "localhost", "::1"),
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise CommandError(f"{url!r} is not a URL of a gateway: {error}") from None

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._http.close()

    @property
    def times(self) -> AnswerTimes | None:
        """How the last answer arrived; None where it had no text or was broken off."""
        return self._times

    def first_model(self) -> str:
        """Return the first model that the gateway offers."""
        try:
            response = self._http.get("/v1/models")
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if response.status_code != 200:
            raise self._refused(response)
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, KeyError, IndexError, TypeError):
            raise CommandError(f"{self._url} does not answer like a gateway") from None

    def stream(self, model: str, messages: list[Message], max_tokens: int | None) -> Generator[str]:
        """Yield the pieces of the answer as they come; `times` is set when it is complete.

        Raises `CommandError` with one clear line when the gateway is away or refuses. Closing the
        iterator early closes the connection, which ends the request at the gateway too.
        """
        body: dict[str, Any] = {
            "model": model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if max_tokens is not None:
            body["max_completion_tokens"] = max_tokens
        self._times = None
        sent_ns = self._clock.now_ns()
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise self._refused(response)
                yield from self._pieces(response, sent_ns)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _pieces(self, response: httpx.Response, sent_ns: int) -> Generator[str]:
        stamps: list[int] = []
        finish, tier, num_tokens, is_complete = "", "", 0, False
        for line in response.iter_lines():
            if not line.startswith("data:"):
                continue
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                is_complete = True
                break
            chunk = _json_object(data)
            if "error" in chunk:
                raise CommandError(f"the answer broke off: {_message_of(chunk)}")
            tier = str(chunk.get("service_tier") or tier)
            usage = chunk.get("usage") or {}
            num_tokens = int(usage.get("completion_tokens", num_tokens))
            for choice in chunk.get("choices") or ():
                text = (choice.get("delta") or {}).get("content") or ""
                finish = choice.get("finish_reason") or finish
                if text:
                    stamps.append(self._clock.now_ns())
                    yield text
        if not is_complete:
            raise CommandError("the answer broke off: the connection ended before it did")
        if stamps:
            gaps = tuple(b - a for a, b in pairwise(stamps))
            self._times = AnswerTimes(
                stamps[0] - sent_ns, gaps, num_tokens or len(stamps), finish, tier
            )

    def _unreachable(self, error: httpx.HTTPError) -> CommandError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return CommandError(
                f"no gateway answers at {self._url}: start one with `tiergate serve`, "
                "or name another with --url"
            )
        if isinstance(error, httpx.TimeoutException):
            return CommandError(f"{self._url} said nothing for {SILENCE_TIMEOUT_S:.0f} seconds")
        return CommandError(f"the connection to {self._url} broke: {error or type(error).__name__}")

    def _refused(self, response: httpx.Response) -> CommandError:
        if response.status_code == 401:
            return CommandError(
                f"{self._url} refused the key: it may be mistyped, revoked or expired; "
                "make one with `tiergate key create --tenant NAME`"
            )
        said = _message_of(_json_object(response.text)) or response.reason_phrase
        wait = response.headers.get("retry-after")
        again = f" (try again in {wait} s)" if wait else ""
        return CommandError(f"the gateway refused ({response.status_code}): {said}{again}")


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _message_of(body: dict[str, Any]) -> str:
    error = body.get("error")
    return str(error.get("message", "")) if isinstance(error, dict) else str(error or "")


def _ms(duration_ns: int) -> str:
    return f"{duration_ns / NS_PER_MS:.0f} ms"
