"""Makes a report's file in the form asked for; HTML is one page that stands alone, for a customer.

The page needs no script and no other file: style and charts are in it, and so are the facts of
every request (JSON lines, gzip, base64), from which `tiergate slo verify` makes it all again. Its
last line is its seal, the SHA-256 of everything before.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import IO

from gateway import slo_report_body as body
from gateway.slo_report_figures import esc
from gateway.slo_report_style import STYLE
from tenants.slo_report import Report, as_file, as_json

FORMS = ("html", "csv", "json")
FACTS = '<script type="text/plain" id="tiergate-slo-facts">'
MOST_IN_MEMORY = 1 << 20  # going to the disk holds the loop
_LINE = 120  # characters of base64; a multiple of four
_PART = _LINE // 4 * 3 * 500


async def report_file(report: Report, form: str) -> AsyncGenerator[str]:
    """Yield a report as text in one of the `FORMS`."""
    if form == "html":
        async with aclosing(_page(report)) as parts:
            async for part in parts:
                yield part
        return
    async with aclosing(as_file(report, form)) as lines:
        async for line in lines:
            yield line


async def _page(report: Report) -> AsyncGenerator[str]:
    # The facts come last in the file, and are read first: what is shown above is made of them.
    with tempfile.SpooledTemporaryFile(MOST_IN_MEMORY) as draft:
        with gzip.GzipFile("", "wb", 6, draft, mtime=0) as packed:
            async with aclosing(report.lines()) as lines:
                async for line in lines:
                    packed.write(as_json(line).encode() + b"\n")
        seal = hashlib.sha256()
        above = await asyncio.to_thread(_shown, report)
        for text in (above, FACTS + "\n"):
            seal.update(text.encode())
            yield text
        draft.seek(0)
        for text in _packed(draft):
            seal.update(text.encode())
            yield text
            await asyncio.sleep(0)
        end = "</script>\n</body>\n</html>\n"
        seal.update(end.encode())
        yield f"{end}<!-- tiergate slo seal {seal.hexdigest()} -->\n"


def _packed(draft: IO[bytes]) -> Iterator[str]:
    while part := draft.read(_PART):
        text = base64.b64encode(part).decode()
        yield "".join(text[i : i + _LINE] + "\n" for i in range(0, len(text), _LINE))


def _shown(report: Report) -> str:
    facts = body.Facts(report)
    sections = (
        *(body.header, body.summary, body.promises, body.kept, body.days, body.speed),
        *(body.outcomes, body.worst, body.checking),
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{esc(body.page_title(facts))}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<main>\n{''.join(section(facts) for section in sections)}\n</main>\n"
    )
