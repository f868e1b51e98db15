"""A Postgres of its own for a test, that can be killed and started again with what it has kept."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import asyncpg
import pytest

START_TIMEOUT_S = 60
USER, NAME = "ledger", "postgres"


def binaries() -> Path:
    """Return the folder of the newest Postgres; skips the test without one."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        if os.environ.get("CI"):
            pytest.fail("no Postgres here")
        pytest.skip("no Postgres here: apt-get install postgresql")
    return found[-1].parent if found else Path(str(on_path)).resolve().parent


def unprivileged() -> dict[str, Any]:
    """Return how to start a process that is not root: Postgres refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


class PostgresServer:
    """A cluster in a folder for temporary files, on a Unix socket; durable, as in earnest."""

    def __init__(self) -> None:
        self._binaries = binaries()
        self._who = unprivileged()
        self._process: subprocess.Popen[bytes] | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="tg-pg-", dir="/tmp"))
        self.url = f"postgresql://{USER}@/{NAME}?host={self.folder}"
        if self._who:
            os.chown(self.folder, self._who["user"], self._who["group"])
        command = [self._binaries / "initdb", "-D", self.folder / "data", "-U", USER, "-A", "trust"]
        options = ["--no-sync", "-E", "UTF8", "--locale=C"]
        subprocess.run(
            [*command, *options], check=True, capture_output=True, cwd=self.folder, **self._who
        )

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def start(self) -> None:
        settings = ["listen_addresses=", f"unix_socket_directories={self.folder}"]
        flags = [part for setting in settings for part in ("-c", setting)]
        log = self.folder / "log"
        # The parts of one that was killed may still be dying.
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self.folder / "data", *flags],
                cwd=self.folder, stdout=out, stderr=out, **self._who,
            )  # fmt: skip
        end = time.monotonic() + START_TIMEOUT_S
        while subprocess.run(
            [self._binaries / "pg_isready", "-q", "-h", self.folder, "-d", NAME, "-U", USER],
            check=False,
        ).returncode:
            if self._process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"Postgres did not start:\n{log.read_text()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to all of it: no farewell, no checkpoint."""
        assert self._process is not None
        children = subprocess.run(
            ["pgrep", "-P", str(self._process.pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        for pid in (self._process.pid, *map(int, children)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()
        for pid in map(int, children):  # their memory is shared: the next one waits for them
            while Path(f"/proc/{pid}").exists() and not _is_zombie(pid):
                time.sleep(0.01)

    def stop_dead(self) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        assert self._process is not None
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        children = subprocess.run(
            ["pgrep", "-P", str(self._process.pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        for pid in (self._process.pid, *map(int, children)):
            os.kill(pid, number)

    def rows(self, query: str) -> list[Any]:
        """Return what a query finds."""

        async def ask() -> list[Any]:
            connection = await asyncpg.connect(
                host=str(self.folder), user=USER, database=NAME, timeout=10
            )
            try:
                return list(await connection.fetch(query))
            finally:
                await connection.close()

        return asyncio.run(ask())

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
