"""Settings: where they come from, what outranks what, and that every fault is one clear line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.settings import (
    ENV_PREFIX,
    Settings,
    SettingsError,
    default_data_dir,
    unknown_variables,
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


def test_without_any_setting_it_is_private_to_this_machine(tmp_path: Path) -> None:
    settings = Settings.load()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.is_loopback
    assert settings.data_dir == tmp_path / "tiergate"
    assert settings.database_url == f"sqlite:///{tmp_path}/tiergate/tiergate.db"
    assert settings.pepper_file == tmp_path / "tiergate" / "pepper"
    assert settings.admin_token is None


def test_a_flag_outranks_a_variable_and_a_variable_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TIERGATE_PORT", "9000")
    assert Settings.load().port == 9000
    assert Settings.load(port="9001").port == 9001
    assert Settings.load(port=None).port == 9000


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files write `TIERGATE_PORT=${PORT}` and leave it empty."""
    monkeypatch.setenv("TIERGATE_PORT", "")
    assert Settings.load().port == 8000


def test_the_database_follows_the_data_dir_unless_it_is_named() -> None:
    assert Settings.load(data_dir="/srv/tg").database_url == "sqlite:////srv/tg/tiergate.db"
    named = Settings.load(data_dir="/srv/tg", database_url="postgresql://u:p@h/n")
    assert named.database_url == "postgresql://u:p@h/n"


def test_folders_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A relative path must mean the same to the gateway and to the process it starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert Settings.load(data_dir="here").data_dir == tmp_path / "here"
    assert Settings.load(data_dir="~/tg").data_dir == Path("/home/someone/tg")


@pytest.mark.parametrize("base", ["", "relative/folder"])
def test_a_data_home_that_the_xdg_rules_ignore_is_ignored(
    monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", base)
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_data_dir() == Path("/home/someone/.local/share/tiergate")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("port", "70000", r"less than or equal to 65535"),
        ("port", "http", r"valid integer"),
        ("port", "tcp://10.0.0.1:8000", r"enableServiceLinks: false"),
        ("data_dir", "/srv/what?", r"may not contain a question mark"),
        ("dtype", "int3", r"'auto', 'float32', 'bfloat16' or 'float16'"),
        ("log_level", "loud", r"'debug', 'info'"),
        ("max_queue", "0", r"greater than or equal to 1"),
        ("kv_cache_gib", "-1", r"greater than 0"),
        ("kv_cache_gib", "inf", r"less than or equal to"),
        ("host_kv_gib", "-1", r"greater than or equal to 0"),
        ("host_kv_gib", "1e300", r"less than or equal to"),
        ("host_kv_format", "int4", r"'raw' or 'int8'"),
        ("host_kv_group", "0", r"greater than or equal to 1"),
        ("pepper", "short", r"at least 32 characters"),
        ("stream_timeout_s", "0", r"greater than 0"),
        ("stream_timeout_s", "inf", r"less than or equal to"),
        ("body_timeout_s", "inf", r"less than or equal to"),
        ("admission", "strict", r"'off', 'shadow', 'soft' or 'hard'"),
        ("admission_factor", "0.5", r"greater than or equal to 1"),
        ("admission_factor", "nan", r"less than or equal to"),
        ("redis_url", "http://cache:6379", r"must begin with redis://, rediss:// or unix://"),
        ("redis_url", "redis://", r"must begin with redis://"),
        ("redis_url", "redis://cache:port/0", r"the port must be a number"),
        ("tenant_queue_factor", "0", r"greater than 0"),
        ("learn", "perhaps", r"valid boolean"),
        ("learn_scope", "org", r"'tenant' or 'all'"),
    ],
)
def test_a_bad_value_is_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    variable = ENV_PREFIX + name.upper()
    with pytest.raises(SettingsError, match=said) as caught:
        Settings.load(**{name: value})
    assert str(caught.value).startswith(f"--{name.replace('_', '-')} ({variable}): ")
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=said) as caught:
        Settings.load()
    assert str(caught.value).startswith(f"{variable}: ")
    assert "\n" not in str(caught.value)


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.load(
        pepper="p" * 40,
        admin_token="tga_hushhush",
        database_url="postgresql://u:hidden@h/n",
        redis_url="rediss://u:concealed@h/0",
    )
    shown = repr(settings) + str(settings)
    assert "pppp" not in shown
    assert "hushhush" not in shown
    assert "hidden" not in shown
    assert "concealed" not in shown
    monkeypatch.setenv("TIERGATE_PEPPER", "tooshortsecret")
    with pytest.raises(SettingsError) as caught:
        Settings.load()
    assert "tooshortsecret" not in str(caught.value)


def test_settings_do_not_change() -> None:
    settings = Settings.load()
    with pytest.raises(ValidationError):
        settings.port = 1


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(SettingsError, match="unknown setting 'prot'"):
        Settings.load(prot=1)


def test_misspelt_variables_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIERGATE_PORT", "1")
    monkeypatch.setenv("TIERGATE_PROT", "1")
    monkeypatch.setenv("TIERGATE_KEY", "tgk_live_x")
    assert unknown_variables() == ["TIERGATE_PROT"]


def test_every_setting_says_what_it_is() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


@pytest.mark.parametrize(
    ("host", "is_loopback", "url"),
    [
        ("127.0.0.1", True, "http://127.0.0.1:8000"),
        ("127.9.9.9", True, "http://127.9.9.9:8000"),
        ("localhost", True, "http://localhost:8000"),
        ("::1", True, "http://[::1]:8000"),
        ("0.0.0.0", False, "http://127.0.0.1:8000"),
        ("::", False, "http://[::1]:8000"),
        ("10.0.0.7", False, "http://10.0.0.7:8000"),
        ("gateway.example", False, "http://gateway.example:8000"),
    ],
)
def test_the_address_tells_who_can_reach_it(host: str, is_loopback: bool, url: str) -> None:
    settings = Settings.load(host=host)
    assert (settings.is_loopback, settings.url) == (is_loopback, url)
