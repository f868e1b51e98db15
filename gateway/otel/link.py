"""One OTLP endpoint: sends a payload once and says what became of it; it retries nothing.

http/protobuf as the OTLP specification has it (opentelemetry.io/docs/specs/otlp): gzipped, answered
with a message that may reject some of the items.
"""

from __future__ import annotations

import gzip
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx

GZIP_LEVEL = 1  # most of the gain for a third of the time
_RETRYABLE = frozenset({429, 502, 503, 504})
MOST_ANSWER = 64 * 1024  # bytes of an answer that are looked at
MOST_RETRY_AFTER_S = 60.0

Rejected = Callable[[bytes], int]  # from a collector's answer: how many items it did not take


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one try. `retry_after_s` is what the collector asked for, if anything."""

    is_taken: bool
    may_retry: bool = False
    retry_after_s: float | None = None
    num_rejected: int = 0
    why: str = ""


class Link:
    """A connection that is kept; used by one thread."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        rejected: Rejected,
        certificate: str | None = None,
    ) -> None:
        self._url = url
        self._rejected = rejected
        fixed = {"content-type": "application/x-protobuf", "content-encoding": "gzip"}
        verify = ssl.create_default_context(cafile=certificate) if certificate else True
        self._client = httpx.Client(headers={**headers, **fixed}, verify=verify)

    def send(self, payload: bytes, timeout_s: float) -> Outcome:
        """Try once; never raises."""
        body = gzip.compress(payload, GZIP_LEVEL, mtime=0)
        try:
            answer = self._client.post(self._url, content=body, timeout=timeout_s)
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:  # RuntimeError: closed
            return Outcome(False, may_retry=True, why=type(error).__name__)
        if answer.is_success:
            return Outcome(True, num_rejected=self._rejected(answer.content[:MOST_ANSWER]))
        status = answer.status_code
        wait_s = _seconds(answer.headers.get("retry-after", ""))
        return Outcome(False, status in _RETRYABLE, wait_s, why=f"HTTP status {status}")

    def close(self) -> None:
        """Drop the connection, also under a try in another thread."""
        self._client.close()


def _seconds(text: str) -> float | None:
    # The other form that HTTP knows, a date, is the collector's clock against ours: not followed.
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        return None
    return min(float(text), MOST_RETRY_AFTER_S)
