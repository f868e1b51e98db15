"""Compiles the CPU kernels for the machine at hand and keeps the result; it does not call them.

The library is named after everything that goes into it: sources, flags, compiler and the CPU's own
features; of torch it uses nothing. A cache folder that moves to another machine is therefore never
wrong, only unused. Two processes that start together wait for each other and compile once.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SOURCES = (
    "attention.cpp",
    "gemm.cpp",
    "elementwise.cpp",
    "sampling.cpp",
    "decoder.cpp",
    "swap.cpp",
    "parallel.cpp",
    "argmax.cpp",
)
HEADERS = ("simd.h", "parallel.h", "attention_math.h", "attention_amx.h")
# Neither -ffast-math nor reassociation: NaN and infinity must arrive where they belong.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-pthread",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
)
_COMPILERS = ("g++", "c++")
_TIMEOUT_S = 600
_logger = logging.getLogger(__name__)


class KernelBuildError(Exception):
    """The kernels cannot be compiled here; the message says why in one line."""


@dataclass(frozen=True, slots=True)
class Toolchain:
    """What a build depends on beside the sources."""

    compiler: str
    version: str
    cpu: str

    def fingerprint(self, source_folder: Path) -> str:
        """Return a name for the library that these sources make."""
        digest = hashlib.sha256()
        for name in (*SOURCES, *HEADERS):
            digest.update(name.encode() + b"\0" + (source_folder / name).read_bytes() + b"\0")
        for text in (*FLAGS, self.version, self.cpu):
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()[:24]


def default_cache_dir() -> Path:
    """Return where compiled kernels are kept for the user."""
    return Path.home() / ".cache" / "tiergate" / "kernels"


def find_toolchain() -> Toolchain:
    """Return the compiler and what else matters; KernelBuildError if there is none."""
    for name in _COMPILERS:
        path = shutil.which(name)
        if path is None:
            continue
        try:
            version = subprocess.run(
                [path, "--version"], capture_output=True, text=True, check=True, timeout=60
            ).stdout
        except (OSError, subprocess.SubprocessError):
            continue
        return Toolchain(path, version, _cpu_identity())
    raise KernelBuildError(f"no C++ compiler found ({', '.join(_COMPILERS)})")


@contextmanager
def built_library(cache_dir: Path) -> Iterator[Path]:
    """Yield the path of the compiled library, made now if the cache lacks it.

    The file may be gone after the block: load it inside. Where `cache_dir` cannot be used, it lies
    in a temporary folder that is removed again. Raises KernelBuildError.
    """
    toolchain = find_toolchain()
    source_folder = Path(__file__).parent
    name = f"tiergate-{toolchain.fingerprint(source_folder)}.so"
    if _is_ours(cache_dir):
        with _locked(cache_dir / "lock"):
            if not (cache_dir / name).exists():
                _compile(toolchain, source_folder, cache_dir / name)
        yield cache_dir / name
        return
    _logger.warning("%s cannot hold compiled kernels: compiling them anew each time", cache_dir)
    with tempfile.TemporaryDirectory(prefix="tiergate-kernels-") as folder:
        _compile(toolchain, source_folder, Path(folder) / name)
        yield Path(folder) / name


def _is_ours(folder: Path) -> bool:
    """True if the folder exists or can be made, and nobody else could put a library there."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except OSError:
        return False
    others_write = bool(state.st_mode & 0o022)
    return state.st_uid == os.geteuid() and not others_write and os.access(folder, os.W_OK)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield  # closing the file gives the lock back


def _compile(toolchain: Toolchain, source_folder: Path, library: Path) -> None:
    """Compile all sources side by side, link, and move the library into place in one step."""
    _logger.info("compiling CPU kernels with %s", toolchain.compiler)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as folder:
        objects = [Path(folder) / f"{Path(name).stem}.o" for name in SOURCES]
        commands = [
            [toolchain.compiler, *FLAGS, "-c", str(source_folder / name), "-o", str(made)]
            for name, made in zip(SOURCES, objects, strict=True)
        ]
        _run(commands)
        made = Path(folder) / library.name
        _run([[toolchain.compiler, "-shared", "-pthread", *map(str, objects), "-o", str(made)]])
        made.replace(library)


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _run(commands: list[list[str]]) -> None:
    """Run all commands at once; KernelBuildError with the first complaint of one that fails."""
    started: list[subprocess.Popen[str]] = []
    try:
        started.extend(_start(command) for command in commands)
        for process in started:
            _, complaint = process.communicate(timeout=_TIMEOUT_S)
            if process.returncode != 0:
                lines = [line for line in complaint.splitlines() if "error" in line]
                first = lines[0] if lines else complaint.strip()[:200]
                raise KernelBuildError(f"compiling the CPU kernels failed: {first}")
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelBuildError(f"compiling the CPU kernels failed: {error}") from error
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.communicate()


def _cpu_identity() -> str:
    """Return the CPU's model and features: -march=native means something else on each."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return f"{platform.machine()} {platform.processor()}"
    seen: dict[str, str] = {}
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        seen.setdefault(key.strip(), value.strip())
    names = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")
    return " ".join([platform.machine(), *(seen.get(name, "") for name in names)])
