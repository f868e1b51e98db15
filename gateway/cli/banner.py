"""What `tiergate serve` prints once it can answer: where it is, and commands to try, to paste.

Secrets are shown on a terminal only: of anything else than somebody's eyes (a container's log, the
journal) it knows that it is kept and read by others. It says where they are kept instead. A token
that was set is never shown: whoever set it has it.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from rich.console import Console

from engine.serving.client import EngineInfo
from gateway.settings import Settings


def print_banner(
    settings: Settings,
    info: EngineInfo,
    admin_token: str,
    admin_file: Path,
    keys: dict[str, str],
    keys_file: Path | None,
) -> None:
    """Print it on stdout; long lines stay whole, so that they can be copied."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    show = console.print
    show()
    show("Tiergate is ready.", style="bold green")
    show(f"  model     {info.model} ({info.device}, {info.dtype}, policy {info.policy})")
    show(f"  API       {settings.url}/v1")
    show(f"  admin     {settings.url}/admin   (log in with the token alone)")
    shows_secrets = sys.stdout.isatty()
    if settings.admin_token is not None:
        show("  token     as set")
    elif shows_secrets:
        show(f"  token     {admin_token}   (kept in {admin_file})")
    else:
        show(f"  token     kept in {admin_file}")
    if not keys:
        show()
        show("Make a key:  tiergate tenant add acme --tier premium")
        show("             tiergate key create --tenant acme")
        return
    assert keys_file is not None
    for tier, key in keys.items():
        show(f"  {tier:<8}  {key if shows_secrets else f'kept in {keys_file}'}")
    if shows_secrets:
        show(f"            (demo keys, kept in {keys_file})")
    tier, key = next(iter(keys.items()))
    show()
    show("Try it:", style="bold")
    if not shows_secrets:
        show(f"  export KEY={key_command(tier, keys_file)}")
        key = "$KEY"
    show(curl_command(settings.url, info.model, key))
    show()
    show(f"  export OPENAI_BASE_URL={settings.url}/v1 OPENAI_API_KEY={key}")
    show(sdk_command(info.model))
    show()


def key_command(tier: str, keys_file: Path) -> str:
    """Return what a shell takes for the key of a tier."""
    script = "import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])"
    return f"$(python -c '{script}' {shlex.quote(str(keys_file.resolve()))} {shlex.quote(tier)})"


def curl_command(url: str, model: str, key: str) -> str:
    """Return a streamed request for curl."""
    body = (
        f'{{"model": "{model}", "stream": true, '
        '"messages": [{"role": "user", "content": "What is a KV cache?"}]}'
    )
    return (
        f"  curl -N {url}/v1/chat/completions \\\n"
        f"    -H \"Authorization: Bearer {key}\" -H 'Content-Type: application/json' \\\n"
        f"    -d '{body}'"
    )


def sdk_command(model: str) -> str:
    """Return the same for the OpenAI SDK."""
    return (
        "  python -c 'from openai import OpenAI; "
        f'print(OpenAI().chat.completions.create(model="{model}", '
        'messages=[{"role": "user", "content": "What is a KV cache?"}])'
        ".choices[0].message.content)'"
    )
