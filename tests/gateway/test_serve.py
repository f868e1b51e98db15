"""`tiergate serve` as people and scripts use it: a process, its output, its signals, its faults."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIError, OpenAI
from tiny_checkpoint import write_checkpoint

from gateway.admin_token import find_admin_token
from gateway.settings import Settings, SettingsError
from tenants.keys import generate_admin_token

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "engine" / "model" / "builtin" / "weights"
START_LIMIT_S = 240.0


def command(data: Path, *flags: str) -> list[str]:
    base = [sys.executable, "-m", "gateway.cli.main", "serve", "--data-dir", str(data)]
    return [*base, "--threads", "1", *flags]


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TIERGATE_")}
    return kept | more


def fails(data: Path, *flags: str, **more: str) -> str:
    """Run a command that must fail: exit code 2, nothing on stdout; return its error line."""
    done = subprocess.run(
        command(data, *flags), cwd=ROOT, env=environment(**more), text=True, capture_output=True,
        timeout=START_LIMIT_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return errors[0]


class Running:
    """A gateway in a process of its own, and what its ready file says."""

    def __init__(self, process: subprocess.Popen[str], ready: dict[str, Any], log: Path) -> None:
        self.process = process
        self.ready = ready
        self.log = log

    def client(self, tier: str) -> OpenAI:
        key = self.ready["keys"][tier]
        return OpenAI(base_url=f"{self.ready['url']}/v1", api_key=key, max_retries=0)


@contextmanager
def serving(data: Path, *flags: str, **variables: str) -> Iterator[Running]:
    """Start a gateway, wait for its ready file, and kill whatever is left of it at the end."""
    data.mkdir(exist_ok=True)
    ready_file, out, err = data / "ready.json", data / "out.txt", data / "err.txt"
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(
            command(data, "--port", "0", "--ready-file", str(ready_file), *flags),
            cwd=ROOT, env=environment(**variables), text=True, stdout=stdout, stderr=stderr,
        )  # fmt: skip
    try:
        end = time.monotonic() + START_LIMIT_S
        while not ready_file.exists():
            assert process.poll() is None, err.read_text()
            assert time.monotonic() < end, err.read_text()
            time.sleep(0.05)
        assert stat.S_IMODE(ready_file.stat().st_mode) == 0o600
        yield Running(process, json.loads(ready_file.read_text()), out)
    finally:
        process.kill()
        process.wait()


QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0}


def ask(client: OpenAI, model: str, **options: Any) -> tuple[str, str | None]:
    """Ask plain and streamed; both must say the same. Return the text and the tier served."""
    plain = client.chat.completions.create(model=model, **QUESTION, **options)
    text = ""
    for chunk in client.chat.completions.create(model=model, stream=True, **QUESTION, **options):
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
        assert chunk.service_tier == plain.service_tier
    assert text == plain.choices[0].message.content
    return text, plain.service_tier


def how_it_ended(stream: Any) -> str | None:
    """Read a stream; return its finish reason, or the code of the error that cut it off."""
    reason: str | None = None
    try:
        for chunk in stream:
            reason = chunk.choices[0].finish_reason
    except APIError as error:
        return error.code
    return reason


@pytest.mark.slow
def test_a_first_run_a_drain_and_a_second_run(tmp_path: Path) -> None:
    """Ready means answering: both demo keys work at once; SIGTERM lets a stream finish.

    A second start on the same folder gives the same keys, and they still work.
    """
    model = write_checkpoint(tmp_path / "tiny")
    data = tmp_path / "data"
    with serving(data, "--demo", "--model", str(model)) as gateway:
        assert set(gateway.ready) == {"url", "admin_url", "admin_token", "keys", "pid"}
        assert gateway.ready["pid"] == gateway.process.pid
        tiers = {t: ask(gateway.client(t), "tiny", max_tokens=8)[1] for t in ("premium", "free")}
        assert tiers == {"premium": "priority", "free": "default"}
        admin = httpx.get(gateway.ready["admin_url"], auth=("x", gateway.ready["admin_token"]))
        assert "Ready to serve" in admin.text
        shown = gateway.log.read_text()
        for word in (gateway.ready["url"], "demo-keys.json", "admin-token", "curl", "OpenAI()"):
            assert word in shown
        for secret in (gateway.ready["admin_token"], *gateway.ready["keys"].values()):
            assert secret not in shown
        first_keys = gateway.ready["keys"]
        stream = gateway.client("free").chat.completions.create(
            model="tiny", stream=True, max_tokens=400, extra_body={"ignore_eos": True}, **QUESTION
        )
        next(iter(stream))
        gateway.process.send_signal(signal.SIGTERM)
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert gateway.process.wait(60) == 0
        assert not (data / "ready.json").exists()
    with sqlite3.connect(data / "tiergate.db") as ledger:
        rows = ledger.execute("SELECT finish_reason, output_tokens FROM usage").fetchall()
    ledger.close()
    assert sorted(tokens for _, tokens in rows)[-1] == 400
    assert len(rows) == 5
    with serving(data, "--demo", "--model", str(model), "--drain-timeout-s", "3600") as gateway:
        assert gateway.ready["keys"] == first_keys
        client = gateway.client("premium")
        stream = client.chat.completions.create(
            model="tiny", stream=True, max_tokens=450, extra_body={"ignore_eos": True}, **QUESTION
        )
        next(iter(stream))
        gateway.process.send_signal(signal.SIGINT)
        gateway.process.send_signal(signal.SIGINT)
        assert how_it_ended(stream) in ("length", "draining")  # or it was faster than the signal
        assert gateway.process.wait(60) == 0


@pytest.mark.slow
def test_the_command_that_is_printed_works(tmp_path: Path) -> None:
    """The lines of the banner can be pasted as they are, also from a log, which has no key."""
    model = write_checkpoint(tmp_path / "tiny")
    with serving(tmp_path / "data", "--demo", "--model", str(model)) as gateway:
        end = time.monotonic() + 30
        while "OpenAI()" not in gateway.log.read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        found = re.search(
            r"^  export KEY=.*?\n  curl .*?\n\n", gateway.log.read_text(), re.DOTALL | re.MULTILINE
        )
        assert found
        done = subprocess.run(
            ["bash", "-c", found[0].replace("curl ", "curl -sS ", 1)],
            env=environment(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}"),
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        assert done.stdout.endswith("data: [DONE]\n\n")


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the built-in model has not been trained here")
def test_the_builtin_model_answers_both_tiers(tmp_path: Path) -> None:
    """The model that ships with the project says something sensible, plain and streamed."""
    with serving(tmp_path / "data", "--demo") as gateway:
        for tier in ("premium", "free"):
            text, _ = ask(gateway.client(tier), "builtin", max_tokens=60)
            assert re.search(r"[A-Za-z]{3,} [a-z]{2,}", text), text


def test_a_signal_while_loading_ends_it_in_good_order(tmp_path: Path) -> None:
    """Being stopped before it was ready is no failure."""
    model = write_checkpoint(tmp_path / "tiny")
    process = subprocess.Popen(
        command(tmp_path / "data", "--port", "0", "--model", str(model)),
        cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("loading: "):
                break
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=START_LIMIT_S)
    assert process.returncode == 0, rest
    assert "error" not in rest


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    """Nothing is loaded for a port that cannot be had."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        model = write_checkpoint(tmp_path / "tiny")
        line = fails(tmp_path / "data", "--port", str(port), "--model", str(model))
    assert f"127.0.0.1:{port}" in line
    assert "in use" in line


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    """A folder that does not exist, or holds no model, is told before anything is made."""
    assert "no-such-model" in fails(tmp_path / "data", "--model", str(tmp_path / "no-such-model"))
    (tmp_path / "empty").mkdir()
    assert "config.json" in fails(tmp_path / "data", "--model", str(tmp_path / "empty"))
    assert not (tmp_path / "data").exists()


def test_an_engine_that_refuses_its_settings_is_one_line(tmp_path: Path) -> None:
    """What only the engine can find wrong ends the command the same way."""
    model = write_checkpoint(tmp_path / "tiny")
    flags = ("--port", "0", "--model", str(model), "--policy", "coin-toss")
    assert "coin-toss" in fails(tmp_path / "data", *flags)


def test_a_ledger_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    """A database that is read-only, none at all, or of another kind."""
    model = write_checkpoint(tmp_path / "tiny")
    data = tmp_path / "data"
    started = ("--port", "0", "--model", str(model))
    sqlite3.connect(tmp_path / "other.db").close()
    (tmp_path / "text.db").write_text("this is no database, whatever its name says" * 100)
    for url in (f"sqlite:///{tmp_path}/text.db", "mysql://x/y", "postgresql://127.0.0.1:9/x"):
        assert fails(data, *started, "--database-url", url)
    good = tmp_path / "good"
    subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", "migrate", "--data-dir", str(good)],
        cwd=ROOT, env=environment(), check=True, capture_output=True,
    )  # fmt: skip
    url = f"sqlite:///file:{good}/tiergate.db?mode=ro&uri=true"
    assert "read-only" in fails(good, *started, "--database-url", url)


def test_an_open_address_needs_a_chosen_admin_token(tmp_path: Path) -> None:
    """Fail closed: no secret, no start; a weak or mistyped secret is none."""
    model = write_checkpoint(tmp_path / "tiny")
    flags = ("--host", "0.0.0.0", "--port", "0", "--model", str(model))
    assert "without an admin token" in fails(tmp_path / "data", *flags)
    assert "TIERGATE_ADMIN_TOKEN" in fails(
        tmp_path / "data", *flags, TIERGATE_ADMIN_TOKEN="secret123"
    )


def settings_of(tmp_path: Path, host: str = "127.0.0.1", **more: Any) -> Settings:
    (tmp_path / "data").mkdir(exist_ok=True)
    return Settings(data_dir=tmp_path / "data", host=host, **more)


def test_the_admin_token_is_made_once_and_kept_private(tmp_path: Path) -> None:
    """On a loopback address a token is made; it stays, and serves an open address afterwards."""
    token = find_admin_token(settings_of(tmp_path))
    file = tmp_path / "data" / "admin-token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert find_admin_token(settings_of(tmp_path)) == token
    assert find_admin_token(settings_of(tmp_path, "0.0.0.0")) == token
    own = generate_admin_token()
    assert find_admin_token(settings_of(tmp_path, "0.0.0.0", admin_token=own)) == own
    file.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        find_admin_token(settings_of(tmp_path))
    file.chmod(0o600)
    file.write_text("tga_0\n")
    with pytest.raises(SettingsError, match="checksum"):
        find_admin_token(settings_of(tmp_path))
