"""Tells whether a browser sends a request for a page of another site; it knows no credential.

Browsers say so in `Sec-Fetch-Site` (Fetch Metadata, W3C); older ones send at least `Origin` with
what changes anything. A request with a browser's credentials that says neither is refused.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def is_own_site(headers: Headers, own_url: str | None) -> bool:
    """True where the request comes from a page of this gateway; `own_url`: where people reach it.

    Without `own_url` the origin is held against the `host` header alone.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    if origin is None:
        return False
    if own_url is not None:
        return _origin(origin) == _origin(own_url)
    return urlsplit(origin).netloc.lower() == headers.get("host", "").lower() != ""


def says_other_site(headers: Headers, own_url: str | None) -> bool:
    """True where a browser says that it is another site's; scripts say nothing."""
    is_browser = "sec-fetch-site" in headers or "origin" in headers
    return is_browser and not is_own_site(headers, own_url)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.netloc.lower()
