"""Profiles as files: what ships is sound and says its errors truly, what is wrong is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.latency_fit import fit_errors
from engine.core.latency_model import LatencyModel, StepCost
from engine.core.latency_profile import (
    LatencyProfile,
    ProfileError,
    dump_profile,
    load_profile,
    parse_profile,
    profile_names,
)

CALIBRATION = Path(__file__).parents[2].parent / "shared" / "data" / "calibration"
PROMISED = {
    "builtin-cpu",
    "llama31-8b-a6000",
    "llama31-8b-h100",
    "llama31-8b-rtx4090",
    "llama31-8b-rtxpro6000",
    "mistral-7b-rtx6000ada",
    "opt-13b-v100",
}
MS = 1e6


def step_ns(model: LatencyModel, decodes: int, context: int, chunk: int, start: int) -> float:
    cost = StepCost(model)
    cost.add_decodes(decodes, decodes * context)
    if chunk:
        cost.add_prefill(start, chunk)
    return cost.total_ns


def test_every_promised_profile_ships() -> None:
    assert set(profile_names()) >= PROMISED


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_a_shipped_profile_is_sound(name: str) -> None:
    """It loads under its own name, holds at least one context, and says where it comes from."""
    profile = load_profile(name)
    assert profile.name == name
    capacity = profile.capacity()
    assert capacity.num_blocks * capacity.block_size >= profile.max_model_len
    assert capacity.max_batch_tokens >= capacity.max_batch_requests
    assert profile.kv_bytes_per_token > 0
    assert profile.link_out_ns_per_token > 0
    assert {"source", "method", "assumed"} <= set(profile.fit)
    assert parse_profile(dump_profile(profile), name) == profile


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_a_shipped_profile_is_monotone_in_everything(name: str) -> None:
    model = LatencyModel(load_profile(name))
    grid: list[dict[str, int]] = [
        {"decodes": decodes, "context": context, "chunk": chunk, "start": start}
        for decodes in (0, 1, 8, 64, 128)
        for context in (1, 100, 1000)
        for chunk in (0, 1, 100, 255, 256, 257, 512)
        for start in (0, 500, 1500)
    ]
    for held in grid:
        for what in held:
            more = {**held, what: held[what] + 1}
            assert step_ns(model, **more) >= step_ns(model, **held), (held, what)


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_a_shipped_profile_makes_parking_cheaper_than_computing_again(name: str) -> None:
    """What the papers say of every device: a round trip over the link beats a recomputation."""
    profile = load_profile(name)
    model = LatencyModel(profile)
    assert 0 < model.park_ns(1000) < model.prefill_ns(0, 1000)


def test_the_headline_profile_is_the_line_of_the_headline() -> None:
    """Mistral-7B on an RTX 6000 Ada: max(22.8, 6.3 + 0.092 n) ms and 0.15 us a cached token."""
    model = LatencyModel(load_profile("mistral-7b-rtx6000ada"))
    for n in (1, 64, 128, 200, 256, 512, 1024, 4096):
        expected = max(22.8, 6.3 + 0.092 * n) * MS
        assert step_ns(model, 0, 0, n, 0) == pytest.approx(expected, rel=0.01)
        with_decodes = max(22.8, 6.3 + 0.092 * (n + 50)) * MS + 50 * 2000 * 150
        assert step_ns(model, 50, 2000, n, 0) == pytest.approx(with_decodes, rel=0.01)
    assert model.profile.num_kv_tokens == 230_000


@pytest.mark.skipif(not CALIBRATION.is_dir(), reason="the calibration tables are not here")
def test_the_stated_errors_of_the_fits_are_those_of_the_data() -> None:
    """Fitting the tables again gives every shipped profile, its prices and errors included."""
    from benchmarks.scheduling.fit_profiles import recipes

    seen = set()
    for recipe in recipes():
        shipped = load_profile(recipe.rest.name)
        assert recipe.make(CALIBRATION) == shipped
        if recipe.steps is None:
            assert "error" not in shipped.fit, "nothing was measured, so no error may be claimed"
            continue
        steps = recipe.steps(CALIBRATION, recipe.rest)
        errors = {regime: e.as_dict() for regime, e in fit_errors(shipped, steps).items()}
        assert errors == shipped.fit["error"]
        assert len(steps) == shipped.fit["points"]
        seen.add(shipped.name)
    assert seen == PROMISED - {"builtin-cpu", "opt-13b-v100"}


GOOD: dict[str, Any] = {"name": "mine", "base_ns": 5.0, "num_kv_tokens": 64}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"base_ns": -1.0}, "base_ns"),
    ({"base_ns": "fast"}, "base_ns"),
    ({"base_ns": True}, "base_ns"),
    ({"base_ns": None}, "base_ns"),
    ({"base_ns": 0.0}, "base_ns"),
    ({"token_ns": float("nan")}, "token_ns"),
    ({"token_ns": float("inf")}, "token_ns"),
    ({"token_ns": 10**400}, "token_ns"),
    ({"row_ns": [1]}, "row_ns"),
    ({"tile_tokens": 0}, "tile_tokens"),
    ({"tile_tokens": 1.0}, "tile_tokens"),
    ({"mixed_kv_factor": 0.5}, "mixed_kv_factor"),
    ({"num_kv_tokens": 2.5}, "num_kv_tokens"),
    ({"num_kv_tokens": 0}, "num_kv_tokens"),
    ({"num_kv_tokens": 15}, "num_kv_tokens"),
    ({"block_size": 0}, "block_size"),
    ({"max_batch_tokens": "many"}, "max_batch_tokens"),
    ({"num_host_kv_tokens": -16}, "num_host_kv_tokens"),
    ({"name": ""}, "name"),
    ({"name": 7}, "name"),
    ({"fit": []}, "fit"),
    ({"latency": 3}, "latency"),
]


@pytest.mark.parametrize(("change", "field"), WRONG, ids=lambda value: str(value)[:40])
def test_a_bad_field_is_refused_with_one_line_that_names_it(
    change: dict[str, Any], field: str
) -> None:
    with pytest.raises(ProfileError) as caught:
        parse_profile(json.dumps({**GOOD, **change}), "mine.json")
    message = str(caught.value)
    assert field in message
    assert "\n" not in message


def test_the_text_that_the_bad_ones_are_made_from_is_good() -> None:
    assert parse_profile(json.dumps(GOOD), "mine.json").base_ns == 5.0


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 100_000])
def test_a_text_that_is_no_profile_is_refused_by_its_place(text: str) -> None:
    with pytest.raises(ProfileError, match=r"mine\.json"):
        parse_profile(text, "mine.json")


def test_a_profile_that_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes(b'{"name": "\xe9"}')
    for name in (
        "no-such-card",
        str(tmp_path / "missing.json"),
        f"{tmp_path}/",
        str(tmp_path / "latin.json"),
        "a\0b.json",
    ):
        with pytest.raises(ProfileError) as caught:
            load_profile(name)
        assert "\n" not in str(caught.value)


def test_an_unknown_name_is_answered_with_those_that_are_known() -> None:
    with pytest.raises(ProfileError, match="opt-13b-v100"):
        load_profile("no-such-card")


numbers = st.floats(0, 1e15)
profiles = st.builds(
    LatencyProfile,
    name=st.text(min_size=1),
    base_ns=st.floats(1, 1e12),
    token_ns=numbers,
    tile_tokens=st.integers(1, 4096),
    tile_ns=numbers,
    decode_kv_ns=numbers,
    mixed_kv_factor=st.floats(1, 100),
    num_kv_tokens=st.integers(16, 10**9),
    num_host_kv_tokens=st.integers(0, 10**9),
    fit=st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.lists(st.integers()))),
)


@given(profiles)
def test_what_is_written_is_read_back(profile: LatencyProfile) -> None:
    """Every float survives, through a file's bytes as well."""
    text = dump_profile(profile).encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass")
    assert parse_profile(text, "there") == profile


def test_a_file_is_read_by_its_path(tmp_path: Path) -> None:
    profile = LatencyProfile("mine", base_ns=7.0)
    path = tmp_path / "mine.json"
    path.write_text(dump_profile(profile))
    assert load_profile(str(path)) == profile


def test_capacity_counts_whole_blocks() -> None:
    profile = LatencyProfile("odd", base_ns=1.0, num_kv_tokens=100, num_host_kv_tokens=50)
    capacity = dataclasses.replace(profile, block_size=16).capacity()
    assert (capacity.num_blocks, capacity.num_host_blocks) == (6, 3)


INT8 = LatencyProfile(
    "both",
    base_ns=1.0,
    link_out_ns_per_token=20.0,
    link_in_ns_per_token=10.0,
    int8_out_ns_per_token=16.0,
    int8_in_ns_per_token=7.0,
    kv_bytes_per_token=1000,
    int8_kv_bytes_per_token=520,
    num_host_kv_tokens=5200,
)


def test_a_host_format_changes_rates_and_room_and_nothing_else() -> None:
    """As many bytes hold more tokens, and who reads prices need not know why."""
    made = INT8.with_host_format("int8")
    assert (made.link_out_ns_per_token, made.link_in_ns_per_token) == (16.0, 7.0)
    assert made.num_host_kv_tokens == 10_000
    changed = {"link_out_ns_per_token", "link_in_ns_per_token", "num_host_kv_tokens"}
    for spec in dataclasses.fields(INT8):
        assert spec.name in changed or getattr(made, spec.name) == getattr(INT8, spec.name)
    assert LatencyModel(made).park_ns(100) == 2300.0
    assert INT8.with_host_format("raw") is INT8


@pytest.mark.parametrize(
    "name",
    [
        "kv_bytes_per_token",
        "int8_kv_bytes_per_token",
        "int8_out_ns_per_token",
        "int8_in_ns_per_token",
    ],
)
def test_a_format_that_was_not_measured_is_refused_by_name(name: str) -> None:
    """Rates are not made up; and of another format nothing is known."""
    with pytest.raises(ProfileError, match=f"{name}: not measured"):
        dataclasses.replace(INT8, **{name: 0}).with_host_format("int8")
    with pytest.raises(ProfileError, match="unknown host format 'int4'"):
        INT8.with_host_format("int4")
