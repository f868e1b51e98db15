"""`tiergate profile`: what it writes can be used, and what is wrong is one line and no file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.core.errors import ModelLoadError
from engine.core.latency_profile import LatencyProfile, load_profile
from engine.serving.build import build_engine
from engine.serving.config import EngineConfig
from gateway.cli.output import CommandError
from gateway.cli.profile import default_name, machine, show
from gateway.cli.serve import engine_config
from gateway.settings import Settings

FIT: dict[str, Any] = {
    "error": {
        "decode": {"points": 12, "mean": 0.01, "p95": 0.02, "max": 0.034},
        "mixed": {"points": 120, "mean": 0.05, "p95": 0.1, "max": 0.2},
    }
}


@pytest.mark.slow
def test_a_quick_profile_of_the_built_in_model_can_be_simulated_with(
    tiergate: Any, tmp_path: Path
) -> None:
    """The whole way once: an engine is started and measured, and the file is a good profile."""
    path = tmp_path / "here.json"
    done = tiergate("profile", "--quick", "--device", "cpu", "--out", str(path))
    assert done.code == 0, done.err
    assert "decode" in done.out
    assert "mixed" in done.out
    assert f"written to {path}" in done.err
    profile = load_profile(str(path))
    assert profile.name == "here"
    assert profile.kv_bytes_per_token > 0
    assert profile.link_in_ns_per_token > 0
    assert profile.max_model_len == 2048
    assert profile.base_ns + profile.token_ns + profile.tile_ns > 0  # which, noise may decide
    assert set(profile.fit["error"]) == {"decode", "prefill", "mixed"}
    assert [p.name for p in tmp_path.iterdir() if not p.is_dir()] == ["here.json"]
    trace = tmp_path / "trace.csv"
    trace.write_text("input_tokens,output_tokens\n40,10\n")
    told = ("--trace", str(trace), "--policy", "fcfs", "--rate", "1", "--requests", "20")
    assert tiergate("simulate", "--profile", str(path), *told).code == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--model", "no-such-folder/model"), "no-such-folder"),
        (("--device", "abacus"), "abacus"),
        (("--out", "profile.txt"), ".json"),
        (("--out", "missing/profile.json"), "missing/profile.json"),
        (("--out", "folder.json"), "folder.json"),
    ],
)
def test_bad_input_is_one_line_and_no_file(
    tiergate: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    word: str,
) -> None:
    here = tmp_path / "here"
    (here / "folder.json").mkdir(parents=True)
    monkeypatch.chdir(here)
    done = tiergate("profile", "--quick", *arguments)
    assert done.code == 2
    assert done.out == ""
    last = done.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert word in last
    assert [path.name for path in here.iterdir()] == ["folder.json"]


def test_a_file_that_was_there_survives_a_failure(tiergate: Any, tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    path.write_text("mine")
    done = tiergate("profile", "--out", str(path), "--model", str(tmp_path / "nothing"))
    assert done.code == 2
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("model", "device", "name"),
    [
        ("builtin", "cpu", "builtin-cpu"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "cuda:0", "qwen2.5-0.5b-instruct-cuda-0"),
        ("Mine (v2)", "cpu", "mine-v2-cpu"),
    ],
)
def test_a_profile_is_named_after_model_and_device(model: str, device: str, name: str) -> None:
    assert default_name(model, device) == name


def test_the_machine_is_described(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: A  CPU (TM)\n")
    assert machine(EngineConfig("builtin", threads=3), cpuinfo) == "A CPU (TM), 3 threads"
    assert machine(EngineConfig("builtin", threads=3), tmp_path / "none").endswith(", 3 threads")


def test_errors_and_prices_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    show(LatencyProfile("p", base_ns=2.5e6, token_ns=20_000.0, fit=FIT))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["decode", "12", "1.0%", "2.0%", "3.4%"]
    assert lines[-2].split() == ["2500", "a", "step"]
    assert lines[-1].split() == ["20", "a", "token"]


def test_the_engine_of_serve_is_told_its_profile(home: Path) -> None:
    """What was measured reaches the scheduler; a file that is none is refused in one line."""
    assert engine_config(Settings.load()).latency_profile == "auto"
    config = engine_config(Settings.load(latency_profile="no-such.json"))
    with pytest.raises(ModelLoadError, match=r"no-such\.json: No such file") as caught:
        build_engine(config, lambda stage, fraction: None)
    assert "\n" not in str(caught.value)


def test_a_policy_is_written_as_in_the_simulator() -> None:
    """Its options go to the engine; what only a simulation has is refused in one line."""
    told = engine_config(Settings.load(policy="hybrid[pause_s=40;guard=0]"))
    assert (told.policy, told.policy_options) == ("hybrid", (("pause_s", 40.0), ("guard", 0.0)))
    assert engine_config(Settings.load()).policy_options == ()
    for text, why in (
        ("hybrid[", "must be NAME"),
        ("hybrid[pause_s=x]", "pause_s"),
        ("alise[predictor=oracle]", "only the simulator knows"),
    ):
        with pytest.raises(CommandError, match=f"^--policy: .*{why}[^\n]*$"):
            engine_config(Settings.load(policy=text))
