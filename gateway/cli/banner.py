"""What `tiergate serve` prints once it can answer: where it is, and commands to try, to paste."""

from __future__ import annotations

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
    show(f"  admin     {settings.url}/admin   (any user name; the token is the password)")
    where = "as set" if settings.admin_token is not None else f"kept in {admin_file}"
    show(f"  token     {admin_token}   ({where})")
    if not keys:
        show()
        show("Make a key:  tiergate tenant add acme --tier premium")
        show("             tiergate key create --tenant acme")
        return
    for tier, key in keys.items():
        show(f"  {tier:<8}  {key}")
    show(f"            (demo keys, kept in {keys_file})")
    key = next(iter(keys.values()))
    show()
    show("Try it:", style="bold")
    show(curl_command(settings.url, info.model, key))
    show()
    show(f"  export OPENAI_BASE_URL={settings.url}/v1 OPENAI_API_KEY={key}")
    show(sdk_command(info.model))
    show()


def curl_command(url: str, model: str, key: str) -> str:
    """Return a streamed request for curl."""
    body = (
        f'{{"model": "{model}", "stream": true, '
        '"messages": [{"role": "user", "content": "What is a KV cache?"}]}'
    )
    return (
        f"  curl -N {url}/v1/chat/completions \\\n"
        f"    -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\\n"
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
