"""`tiergate doctor`: looks at all that a gateway needs and says what to do; repairs nothing."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

from gateway.cli.options import AsJson, DatabaseUrl, DataDir, flag, load_settings
from gateway.cli.output import print_json
from tenants.errors import LedgerError

if TYPE_CHECKING:
    from gateway.cli.checks import Check
    from gateway.settings import Settings

HTTP_TIMEOUT_S = 3.0
COLOURS = {"ok": "\033[32m", "warn": "\033[33m", "fail": "\033[31m"}


def doctor(
    host: Annotated[str | None, flag("host", "Address the gateway shall use.", "ADDR")] = None,
    port: Annotated[str | None, flag("port", "Port the gateway shall use.", "PORT")] = None,
    model: Annotated[str | None, flag("model", "Model it shall serve.", "MODEL")] = None,
    device: Annotated[str | None, flag("device", "Device it shall use.", "DEVICE")] = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> int:
    """Check this machine, the settings, the ledger and the gateway, if one is running.

    One line a check: ok, warn (works, but could be better) or fail (will not work), with what to
    do. The exit code is 1 when anything fails. Nothing is changed.

    \b
    Example:
      tiergate doctor --model ./my-model --port 9000
    """
    settings = load_settings(
        host=host,
        port=port,
        model=model,
        device=device,
        database_url=database_url,
        data_dir=data_dir,
    )
    checks = all_checks(settings)
    if as_json:
        print_json(checks)
    else:
        for check in checks:
            print(line_of(check, colour=sys.stdout.isatty()))
    return 1 if any(check.state == "fail" for check in checks) else 0


def all_checks(settings: Settings) -> list[Check]:
    """Run every check, those of the machine first."""
    import asyncio

    from gateway.cli import checks

    return [
        checks.check_python(),
        *checks.check_packages(),
        checks.check_cpu(),
        checks.check_gpu(settings),
        checks.check_compiler(),
        *checks.check_settings(settings),
        check_data_dir(settings),
        check_pepper(settings),
        asyncio.run(check_database(settings)),
        checks.check_workers(settings),
        asyncio.run(check_limits(settings)),
        checks.check_model(settings),
        check_gateway(settings),
    ]


def line_of(check: Check, *, colour: bool) -> str:
    """Return a check as one line."""
    state = f"{check.state:<4}"
    if colour:
        state = f"{COLOURS[check.state]}{state}\033[0m"
    advice = f": {check.advice}" if check.advice else ""
    return f"{state}  {check.name:<12}  {check.found}{advice}"


def check_data_dir(settings: Settings) -> Check:
    """Can the data directory be written to, or made?"""
    import tempfile

    from gateway.cli.checks import fail, ok

    folder = settings.data_dir
    advice = "name another with --data-dir, or give yourself the right to write there"
    if folder.is_dir():
        try:
            with tempfile.TemporaryFile(dir=folder):
                return ok("data-dir", str(folder))
        except OSError as error:
            return fail("data-dir", f"{folder} cannot be written to: {error.strerror}", advice)
    if folder.exists():
        return fail("data-dir", f"{folder} is not a folder", advice)
    nearest = next(parent for parent in folder.parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return fail("data-dir", f"{folder} cannot be made in {nearest}", advice)
    return ok("data-dir", f"{folder} is made at first use")


def check_pepper(settings: Settings) -> Check:
    """Is the pepper there and safe?"""
    from gateway.cli.checks import fail, ok
    from tenants.pepper import load_pepper, make_pepper

    if settings.pepper is not None:
        pepper = make_pepper(settings.pepper.get_secret_value().encode())
        return ok("pepper", f"{pepper.id}, from TIERGATE_PEPPER")
    if not settings.pepper_file.exists():
        return ok("pepper", f"{settings.pepper_file} is made at first use")
    try:
        pepper = load_pepper(settings.pepper_file)
    except LedgerError as error:
        return fail("pepper", str(error), "see the README on keys")
    return ok("pepper", f"{pepper.id}, in {settings.pepper_file}")


async def check_database(settings: Settings) -> Check:
    """Does the database answer, at the right revision, and with keys of our pepper?"""
    from gateway.cli.checks import fail, ok
    from gateway.ledger import existing_pepper
    from migrations.runner import head_revision
    from tenants.database import Database, display_name, parse_url, sqlite_file
    from tenants.repository import Repository

    advice = "see --database-url; schemas are brought up to date by `tiergate migrate`"
    try:
        url = parse_url(settings.database_url)
        file = sqlite_file(url)
        if file is not None and not file.exists():
            return ok("database", f"{file} is made at first use")
        database = await Database.open(settings.database_url)
        try:
            await database.check_revision(head_revision())
            await database.check_writable()
            pepper = existing_pepper(settings)
            repository = Repository(database, pepper)
            await repository.check_pepper()
        finally:
            await database.close()
    except LedgerError as error:
        return fail("database", str(error), advice)
    return ok("database", f"{display_name(url)} at revision {head_revision()}")


async def check_limits(settings: Settings) -> Check:
    """Does the store of limits answer, and would it rather refuse than forget?"""
    import asyncio

    from redis.exceptions import RedisError

    from gateway.cli.checks import fail, ok, warn
    from gateway.limits.redis_store import connect

    if settings.redis_url is None:
        return ok("limits", "counted in this process's memory")
    client = connect(settings.redis_url.get_secret_value(), HTTP_TIMEOUT_S)
    try:
        async with asyncio.timeout(HTTP_TIMEOUT_S):
            server = await client.info("server")
            memory = await client.info("memory")
            await client.set("tiergate:ping", 1, px=1000)
    except (TimeoutError, OSError, RedisError) as error:
        return fail(
            "limits",
            f"Redis does not answer, or takes no writes: {type(error).__name__}",
            "see TIERGATE_REDIS_URL; without it every worker grants its share only",
        )
    finally:
        await client.aclose()
    found = f"counted by Redis {server.get('redis_version', 'of unknown version')}"
    policy = memory.get("maxmemory_policy", "noeviction")
    if memory.get("maxmemory") and policy != "noeviction":
        return warn(
            "limits",
            f"{found}, which forgets when it is full ({policy})",
            "set its maxmemory-policy to noeviction",
        )
    return ok("limits", found)


def check_gateway(settings: Settings) -> Check:
    """Does a gateway run there and is it ready; if none does, is the port free?"""
    import httpx

    from gateway.cli.checks import fail, ok, port_is_free, warn

    if settings.port != 0:
        try:
            with httpx.Client(timeout=HTTP_TIMEOUT_S, trust_env=False) as http:
                alive = http.get(f"{settings.url}/livez")
                ready = http.get(f"{settings.url}/readyz")
            if alive.status_code == 200 and ready.status_code == 200:
                return ok("gateway", f"ready at {settings.url}")
            if alive.status_code == 200:
                reason = " ".join(ready.text.split())[:200]
                return warn("gateway", f"runs at {settings.url}", f"not ready: {reason}")
        except httpx.HTTPError:
            pass
        if not port_is_free(settings.host, settings.port):
            return fail(
                "gateway",
                f"{settings.host}:{settings.port} cannot be listened on: taken by another "
                "program, or no address of this machine",
                "choose another --port or --host",
            )
    return ok("gateway", f"not running; {settings.host}:{settings.port} is free")
