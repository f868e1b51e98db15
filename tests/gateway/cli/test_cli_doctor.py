"""The doctor: what it sees, what it advises, and that it changes nothing."""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import checks
from gateway.cli.checks import State, port_is_free
from gateway.settings import Settings

CPUINFO = """\
processor\t: 0
model name\t: A CPU
flags\t\t: fpu sse2 avx2 {}
"""


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def looked(tiergate: Any, free_port: int) -> Any:
    """Return what the doctor found, by name, with an exit code."""

    def look(*arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
        port = () if "--port" in arguments else ("--port", str(free_port))
        done = tiergate("doctor", "--json", *port, *arguments)
        assert done.err == ""
        return done.code, {check["name"]: check for check in done.json}

    return look


def test_before_the_first_run_nothing_is_missing_and_nothing_is_made(
    looked: Any, home: Path
) -> None:
    _, found = looked()
    for name in ("data-dir", "pepper", "database", "gateway", "settings", "python"):
        assert found[name]["state"] == "ok", found[name]
    assert found["database"]["found"].endswith("is made at first use")
    assert not home.exists()


def test_after_the_first_run_the_ledger_is_well(looked: Any, tiergate: Any, home: Path) -> None:
    tiergate("tenant", "add", "acme")
    tiergate("key", "create", "--tenant", "acme")
    _, found = looked()
    assert found["database"] == {
        "name": "database",
        "state": "ok",
        "found": f"{home}/tiergate.db at revision 0004",
        "advice": "",
    }
    assert found["pepper"]["found"].endswith(f"in {home}/pepper")


def test_lines_are_for_people_and_the_exit_code_is_for_scripts(
    tiergate: Any, free_port: int, home: Path
) -> None:
    tiergate("migrate")
    (home / "pepper").write_text("damaged")
    done = tiergate("doctor", "--port", str(free_port))
    assert done.code == 1
    lines = {line.split()[1]: line for line in done.out.splitlines()}
    assert lines["pepper"].startswith("fail  pepper ")
    assert "chmod 600" in lines["pepper"]
    assert lines["python"].startswith("ok    python ")
    assert "\033" not in done.out


def test_a_pepper_that_others_can_read_fails(looked: Any, tiergate: Any, home: Path) -> None:
    tiergate("tenant", "add", "acme")
    (home / "pepper").chmod(0o644)
    code, found = looked()
    assert (code, found["pepper"]["state"]) == (1, "fail")


def test_a_lost_pepper_fails_when_there_are_keys(looked: Any, tiergate: Any, home: Path) -> None:
    tiergate("tenant", "add", "acme")
    tiergate("key", "create", "--tenant", "acme")
    (home / "pepper").unlink()
    code, found = looked()
    assert (code, found["database"]["state"]) == (1, "fail")
    assert "restore the pepper file" in found["database"]["found"]
    assert not (home / "pepper").exists()


def test_an_outdated_schema_fails_with_what_to_do(looked: Any, tiergate: Any, home: Path) -> None:
    tiergate("migrate")
    with sqlite3.connect(home / "tiergate.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0000'")
    connection.close()
    code, found = looked()
    assert (code, found["database"]["state"]) == (1, "fail")
    assert "tiergate migrate" in found["database"]["found"]


def test_a_database_that_is_away_fails(looked: Any, free_port: int) -> None:
    url = f"postgresql://u:secret@127.0.0.1:{free_port}/n"
    code, found = looked("--database-url", url)
    assert (code, found["database"]["state"]) == (1, "fail")
    assert "cannot be reached" in found["database"]["found"]
    assert "secret" not in found["database"]["found"]


def test_a_data_dir_that_cannot_be_fails(looked: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        code, found = looked("--data-dir", str(folder))
        assert (code, found["data-dir"]["state"]) == (1, "fail"), folder


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_data_dir_without_the_right_to_write_fails(looked: Any, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    for folder in (tmp_path / "closed", tmp_path / "closed" / "below"):
        code, found = looked("--data-dir", str(folder))
        assert (code, found["data-dir"]["state"]) == (1, "fail"), folder


def test_a_misspelt_variable_is_a_warning(looked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIERGATE_PROT", "1")
    _, found = looked()
    assert found["settings"]["state"] == "warn"
    assert "TIERGATE_PROT" in found["settings"]["found"]


def test_an_open_address_and_a_bad_token_are_told(
    looked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIERGATE_ADMIN_TOKEN", "admin")
    code, found = looked("--host", "0.0.0.0")
    assert found["address"]["state"] == "warn"
    assert (code, found["admin token"]["state"]) == (1, "fail")
    assert found["admin logins"]["state"] == "warn"
    monkeypatch.setenv("TIERGATE_ADMIN_URL", "https://gateway.example")
    assert "admin logins" not in looked("--host", "0.0.0.0")[1]


def test_a_provider_that_cannot_be_used_is_told(
    looked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the words that `serve` would refuse with; no provider, no line."""
    assert "oidc" not in looked()[1]
    monkeypatch.setenv("TIERGATE_OIDC_ISSUER", "http://id.example")
    code, found = looked()
    assert (code, found["oidc"]["state"]) == (1, "fail")
    assert "must be an https URL" in found["oidc"]["found"]
    monkeypatch.setenv("TIERGATE_OIDC_ISSUER", "https://id.example")
    monkeypatch.setenv("TIERGATE_OIDC_CLIENT_ID", "tiergate")
    monkeypatch.setenv("TIERGATE_ADMIN_URL", "https://gateway.example")
    assert looked()[1]["oidc"]["state"] == "ok"


@pytest.mark.parametrize(
    ("model", "state", "said"),
    [
        ("./nowhere", "fail", "there is no folder"),
        ("/nowhere/at/all", "fail", "there is no folder"),
        ("what", "fail", "neither builtin, nor a folder"),
        ("a/b/c", "fail", "neither builtin, nor a folder"),
        ("Qwen/Qwen3-0.6B", "warn", "Qwen/Qwen3-0.6B"),
    ],
)
def test_a_model_is_judged_by_its_name(looked: Any, model: str, state: str, said: str) -> None:
    _, found = looked("--model", model)
    assert found["model"]["state"] == state
    assert said in found["model"]["found"]


def test_a_model_folder_needs_its_parts(looked: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    _, found = looked("--model", str(folder))
    assert found["model"]["found"] == f"{folder} has no tokenizer, safetensors weights"
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model-00001-of-00002.safetensors").write_text("")
    _, found = looked("--model", str(folder))
    assert found["model"]["state"] == "ok"


class Health(BaseHTTPRequestHandler):
    """Answers as a gateway does that lives and is, or is not, ready."""

    ready = 200

    def do_GET(self) -> None:
        status = 200 if self.path == "/livez" else self.ready
        body = b'{"status": "the engine is loading"}'
        self.send_response(status if self.path in ("/livez", "/readyz") else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture(params=[200, 503])
def gateway(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """A program that answers health questions; yields its port and what it says of readiness."""
    handler = type("Handler", (Health,), {"ready": request.param})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, request.param
        server.shutdown()
        thread.join()


def test_a_running_gateway_is_asked(looked: Any, gateway: tuple[int, int]) -> None:
    port, ready = gateway
    _, found = looked("--port", str(port))
    if ready == 200:
        assert found["gateway"]["found"] == f"ready at http://127.0.0.1:{port}"
    else:
        assert found["gateway"]["state"] == "warn"
        assert "the engine is loading" in found["gateway"]["advice"]


def test_a_port_that_another_program_has_fails(looked: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        threading.Thread(target=hang_up_on_everyone, args=(other,), daemon=True).start()
        code, found = looked("--port", str(port))
        other.shutdown(socket.SHUT_RDWR)
    assert (code, found["gateway"]["state"]) == (1, "fail")
    assert "taken by another program" in found["gateway"]["found"]


def hang_up_on_everyone(server: socket.socket) -> None:
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            return


def test_a_port_is_free_when_nobody_listens(free_port: int) -> None:
    assert port_is_free("127.0.0.1", free_port)
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert not port_is_free("127.0.0.1", other.getsockname()[1])
    assert not port_is_free("192.0.2.1", free_port)  # TEST-NET-1: no machine has this address
    assert not port_is_free("no such host", free_port)


@pytest.mark.parametrize(
    ("flags", "state", "said"),
    [
        ("avx512f avx512_bf16", State.OK, "avx2, avx512f, avx512_bf16"),
        ("avx512f amx_bf16", State.OK, "amx_bf16"),
        ("", State.WARN, "avx2"),
    ],
)
def test_the_cpu_is_read(tmp_path: Path, flags: str, state: State, said: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(CPUINFO.format(flags))
    found = checks.check_cpu(cpuinfo)
    assert found.state is state
    assert found.found.endswith(said)
    assert checks.check_cpu(tmp_path / "none").state is State.WARN


def test_a_missing_compiler_is_a_warning() -> None:
    assert checks.check_compiler(("no-such-compiler",)).state is State.WARN
    assert checks.check_compiler(("no-such-compiler", "sh")).found.endswith("/sh")


def test_an_old_python_fails() -> None:
    assert checks.check_python((3, 10, 14)).state is State.FAIL
    assert checks.check_python((3, 11)).state is State.OK


def test_a_gpu_is_asked_for_only_where_one_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checks.check_gpu(Settings(device="auto")).state is State.OK
    assert checks.check_gpu(Settings(device="cuda:0")).state is State.FAIL
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA H100'\n")
    smi.chmod(0o755)
    assert checks.check_gpu(Settings(device="cuda:0")).found == "NVIDIA H100"
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert checks.check_gpu(Settings(device="cuda:0")).state is State.FAIL
