"""One answer of the doctor, and the checks of the machine: what is installed, what it can do.

Nothing is imported to be checked: metadata and the file system tell enough, and in no time.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from gateway.settings import Settings, SettingsError, unknown_variables
from tenants.keys import is_well_formed_admin_token

OLDEST_PYTHON = (3, 11)
COMPILERS = ("c++", "g++", "clang++")
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
SMI_TIMEOUT_S = 10


class State(StrEnum):
    """What a check found."""

    OK = "ok"
    WARN = "warn"  # it works, but not as well as it could
    FAIL = "fail"  # `tiergate serve` will not work


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, what was found and, unless all is well, what to do."""

    name: str
    state: State
    found: str
    advice: str = ""


def ok(name: str, found: str) -> Check:
    """Return a check that found all well."""
    return Check(name, State.OK, found)


def warn(name: str, found: str, advice: str) -> Check:
    """Return a check that found something to improve."""
    return Check(name, State.WARN, found, advice)


def fail(name: str, found: str, advice: str) -> Check:
    """Return a check that found something to repair."""
    return Check(name, State.FAIL, found, advice)


def check_python(found: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Is this a Python that the project is written for?"""
    shown = ".".join(map(str, found))
    if found < OLDEST_PYTHON:
        return fail("python", shown, "install Python 3.11 or newer")
    return ok("python", shown)


def check_packages() -> Iterator[Check]:
    """Is what the engine needs installed?"""
    for name in ("torch", "transformers", "tokenizers", "safetensors"):
        try:
            yield ok(name, version(name))
        except PackageNotFoundError:
            yield fail(name, "not installed", "pip install 'tiergate[engine]'")


def check_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Check:
    """How many cores are there, and which of the instructions that the fast kernels use?"""
    cores = f"{len(os.sched_getaffinity(0))} cores" if hasattr(os, "sched_getaffinity") else ""
    cores = cores or f"{os.cpu_count()} cores"
    flags = cpu_flags(cpuinfo)
    if flags is None:
        return warn("cpu", f"{cores}, {platform.machine()}", "the plain kernels will be used")
    has = [feature for feature in CPU_FEATURES if feature in flags]
    found = f"{cores}, {', '.join(has) or 'none of ' + ', '.join(CPU_FEATURES)}"
    if "avx512f" not in has:
        return warn("cpu", found, "answers are slower without AVX-512: the plain kernels are used")
    return ok("cpu", found)


def cpu_flags(cpuinfo: Path) -> set[str] | None:
    """Return the instruction set flags that Linux reports, None where it reports none."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return set(value.split())
    return None


def check_gpu(settings: Settings) -> Check:
    """Is there an NVIDIA GPU, and does the setting `device` agree?"""
    smi = shutil.which("nvidia-smi")
    gpus: list[str] = []
    if smi is not None:
        try:
            done = subprocess.run(
                [smi, "--query-gpu=name", "--format=csv,noheader"],
                capture_output=True,
                text=True,
                timeout=SMI_TIMEOUT_S,
                check=False,
            )
            gpus = done.stdout.split("\n")[:-1] if done.returncode == 0 else []
        except (OSError, subprocess.TimeoutExpired):
            gpus = []
    if settings.device.startswith("cuda") and not gpus:
        return fail("gpu", f"none, but device is {settings.device}", "use --device auto or cpu")
    return ok("gpu", ", ".join(gpus) or "none: the CPU computes")


def check_compiler(compilers: tuple[str, ...] = COMPILERS) -> Check:
    """Can the CPU kernels be compiled?"""
    for name in compilers:
        path = shutil.which(name)
        if path is not None:
            return ok("compiler", path)
    return warn(
        "compiler",
        "none of " + ", ".join(compilers),
        "install g++ for the fast CPU kernels; without it the plain ones are used",
    )


def check_settings(settings: Settings) -> Iterator[Check]:
    """Is anything set that has no effect, or that is not safe?"""
    unknown = unknown_variables()
    if unknown:
        yield warn("settings", "no effect: " + ", ".join(unknown), "check the spelling")
    else:
        yield ok("settings", "every TIERGATE_ variable is known")
    token = settings.admin_token
    if token is not None and not is_well_formed_admin_token(token.get_secret_value()):
        yield fail("admin token", "not of the form tga_...", "set TIERGATE_ADMIN_TOKEN anew")
    if not settings.is_loopback:
        yield warn(
            "address",
            f"{settings.host} is reachable from other machines in plain http",
            "put a proxy with TLS in front",
        )
        if not (settings.admin_url or "").startswith("https://"):
            yield warn(
                "admin logins",
                "their cookie is not bound to https",
                "set TIERGATE_ADMIN_URL to where people reach the gateway",
            )
    if settings.oidc_issuer is not None:
        yield check_oidc(settings)


def check_oidc(settings: Settings) -> Check:
    """Can the provider be used as it is set? It is not asked."""
    from gateway.admin.oidc_settings import require_oidc

    try:
        require_oidc(settings)
    except SettingsError as error:
        return fail("oidc", str(error), "see docs/admin.md")
    return ok("oidc", f"users of {settings.oidc_issuer} may log in")


def check_workers(settings: Settings) -> Check:
    """Can so many workers share what they must share?"""
    if settings.workers == 1:
        return ok("workers", "1")
    if settings.redis_url is None:
        return fail(
            "workers",
            f"{settings.workers} workers, and no Redis to count limits for all of them",
            "set TIERGATE_REDIS_URL, or serve with one worker",
        )
    where = "one SQLite file" if settings.database_url.startswith("sqlite") else "one database"
    return ok("workers", f"{settings.workers}, with one engine, one Redis and {where}")


def check_model(settings: Settings) -> Check:
    """Is the model there, as far as can be told without loading it?"""
    if settings.model == "builtin":
        return _check_builtin()
    folder = Path(settings.model).expanduser()
    if folder.is_dir():
        missing = [what for what, pattern in _PARTS if not any(folder.glob(pattern))]
        if missing:
            return fail("model", f"{folder} has no {', '.join(missing)}", "name another --model")
        return ok("model", str(folder))
    if folder.is_absolute() or settings.model.startswith((".", "~")):
        return fail("model", f"there is no folder {folder}", "name another --model")
    if settings.model.count("/") != 1:
        return fail(
            "model",
            f"{settings.model!r} is neither builtin, nor a folder, nor an id like Qwen/Qwen3-0.6B",
            "name another --model",
        )
    return warn("model", settings.model, "not in this folder: fetched from the hub at start")


_PARTS = (
    ("config.json", "config.json"),
    ("tokenizer", "tokenizer*"),
    ("safetensors weights", "*.safetensors"),
)


def _check_builtin() -> Check:
    package = find_spec("engine.model.builtin")
    places = [] if package is None else list(package.submodule_search_locations or ())
    if any(any(Path(place).glob("weights/*.safetensors")) for place in places):
        return ok("model", "builtin")
    return fail("model", "the built-in model has no weights here", "make train-builtin")


def port_is_free(host: str, port: int) -> bool:
    """True when a server could listen there now."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError:
        return False
    with socket.socket(family, kind, proto) as probe:
        # As servers do: an address whose last connections are still closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError:
            return False
    return True
