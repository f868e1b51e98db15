"""Everything an operator may set, and the only reader of the environment on the gateway's side.

A setting comes from a flag, else from `TIERGATE_<NAME>`, else from its default; what it is used
for is not known here. Invalid values give one clear line (`SettingsError`), never a traceback.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from gateway.command_variables import COMMAND_VARIABLES
from gateway.push_settings import (
    DISABLED_VARIABLE,
    INTERVAL_VARIABLE,
    SAMPLER_SHARE_VARIABLE,
    SAMPLER_VARIABLE,
    STANDARD_VARIABLES,
    PushSettings,
    standard_interval_s,
    standard_share,
)

ENV_PREFIX = "TIERGATE_"

# Far above all that makes sense, and small enough to be counted in bytes and nanoseconds.
MOST_GIB = 2**20
MOST_S = 30 * 24 * 3600
_REDIS_URL = re.compile(r"(rediss?|unix)://.")


class SettingsError(Exception):
    """A setting has a value that cannot be used; the message is one clear line."""


def default_data_dir() -> Path:
    """Return `$XDG_DATA_HOME/tiergate`, or `~/.local/share/tiergate` where that is not set."""
    base = os.environ.get("XDG_DATA_HOME", "")
    # The XDG base directory specification says that a relative path here is to be ignored.
    root = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "share"
    return root / "tiergate"


class Settings(PushSettings):
    """All settings of a gateway and of the engine it starts; immutable once read.

    `_s` are seconds, `_gib` are 2**30 bytes, `_bytes` are bytes. `None` for a size of the engine
    means: measured or read from the model at start-up.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    # the door
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    ready_file: Path | None = Field(
        None,
        description="JSON file with URL, keys and admin token; exists while the gateway serves.",
    )
    max_body_bytes: int = Field(
        4 * 2**20, ge=1024, description="Largest request body; longer ones are refused unread."
    )
    body_timeout_s: float = Field(
        30.0,
        gt=0,
        le=MOST_S,
        description="Longest time a client may take to send its request body.",
    )
    stream_timeout_s: float = Field(
        600.0,
        gt=0,
        le=MOST_S,
        description="Longest life of one answer; every stream has a deadline.",
    )
    workers: int = Field(
        1, ge=1, le=64, description="Gateway processes at one engine; more than one needs Redis."
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, description="How long running answers may go on after a stop signal."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="How much is logged; prompts and answers never are."
    )
    demo: bool = Field(
        False, description="Create two demo tenants at start-up and print a key for each."
    )

    # the ledger
    data_dir: Path = Field(
        default_factory=default_data_dir,
        description="Folder of the pepper and of the SQLite database.",
    )
    database_url: str = Field(
        default_factory=lambda data: f"sqlite:///{data['data_dir'] / 'tiergate.db'}",
        min_length=1,
        repr=False,  # may hold a password
        description="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME.",
    )
    pepper: SecretStr | None = Field(
        None,
        description="Secret that key digests are made with; unset: the file `pepper` in data_dir.",
    )
    admin_token: SecretStr | None = Field(
        None,
        description="Token of the operator's routes (tga_...); unset: made and kept in data_dir.",
    )
    admin_url: str | None = Field(
        None,
        pattern=r"^https?://[^/?#\s]+$",
        description="Where people reach the admin pages, such as https://gateway.example.com.",
    )
    admin_session_s: float = Field(
        12 * 3600.0, ge=60, le=MOST_S, description="Longest life of a login of the admin pages."
    )
    admin_idle_s: float = Field(
        1800.0, ge=60, le=MOST_S, description="A login of the admin pages ends so long unused."
    )
    admin_recent_s: float = Field(
        900.0, ge=1, le=MOST_S, description="Keys, tiers and users need a login this recent."
    )
    oidc_issuer: str | None = Field(
        None, max_length=512, description="The one OpenID Connect issuer whose users may log in."
    )
    oidc_client_id: str = Field("", description="What the issuer knows this gateway as.")
    oidc_client_secret: SecretStr | None = Field(
        None, description="The secret of that client; unset: a public client, with PKCE alone."
    )
    oidc_scopes: str = Field("openid profile email", description="What the issuer is asked for.")
    oidc_role_claim: str = Field("groups", description="The claim that `oidc_roles` looks into.")
    oidc_roles: str = Field(
        "",
        description="VALUE=ROLE with commas between; tenant-viewer:TENANT for one tenant. Unset:"
        " only users that are known by their subject.",
    )
    key_cache_ttl_s: float = Field(
        30.0, gt=0, le=300, description="How long a looked-up key may be served from memory."
    )
    key_cache_size: int = Field(
        10_000, ge=1, description="Most keys held in memory, known and unknown ones together."
    )
    key_poll_s: float = Field(
        # Of the two seconds within which a revoked key is refused everywhere, at most one.
        0.5,
        gt=0,
        le=1,
        description="How often the ledger is asked whether any key has changed.",
    )
    redis_url: SecretStr | None = Field(
        None,  # may hold a password
        description="Redis or Valkey that counts limits for all workers: redis://, rediss:// or"
        " unix://; unset: this process's memory.",
    )
    usage_buffer: int = Field(
        100_000, ge=1, description="Most usage rows held in memory while the database is away."
    )
    usage_flush_s: float = Field(
        0.5, gt=0, le=60, description="Longest time a usage row waits before it is written."
    )

    # the engine
    model: str = Field(
        "builtin", min_length=1, description="`builtin`, a folder, or a Hugging Face model id."
    )
    model_aliases: str = Field(
        "", description="Other names the model answers to, with commas between; * is any name."
    )
    device: str = Field("auto", min_length=1, description="auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number format of weights and KV cache."
    )
    policy: str = Field(
        "auto",
        min_length=1,
        description="Scheduling policy, NAME or NAME[key=value;...]; auto: hybrid where the model"
        " has a profile.",
    )
    latency_profile: str = Field(
        "auto",
        min_length=1,
        description="What steps cost: a profile's name, or a file that `tiergate profile` wrote.",
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads of the engine; unset: one per physical core."
    )
    max_running: int = Field(
        64, ge=1, le=4096, description="Most requests in one step of the engine."
    )
    max_batch_tokens: int | None = Field(
        None, ge=1, description="Most tokens in one step; unset: chosen for the device."
    )
    max_model_len: int | None = Field(
        None, ge=2, description="Longest prompt plus answer in tokens; unset: the model's own."
    )
    kv_cache_gib: float | None = Field(
        None,
        gt=0,
        le=MOST_GIB,
        description="Memory of the KV cache; unset: measured at start-up.",
    )
    host_kv_gib: float | None = Field(
        None,
        ge=0,
        le=MOST_GIB,
        description="Host memory for parked requests; unset: a share of what is free; 0: none.",
    )
    host_kv_format: Literal["raw", "int8"] = Field(
        "raw", description="How parked contexts are kept: byte for byte, or about half as large."
    )
    host_kv_group: int | None = Field(
        None,
        ge=1,
        description="int8: tokens that share their keys' scales; divides a block of 16; unset: 16.",
    )
    max_queue: int = Field(512, ge=1, description="Most requests that may wait for the engine.")
    max_queue_prompt_tokens: int = Field(
        262_144, ge=1, description="Most prompt tokens that may wait for the engine."
    )
    tenant_queue_factor: float = Field(
        8.0,
        gt=0,
        le=1e6,
        description="A tenant may have at most so many times as much waiting as is still free.",
    )

    # what is known in advance
    admission: Literal["off", "shadow", "soft", "hard"] = Field(
        "soft",
        description="May a forecast refuse, where a tier's on_overload lets it? Never (off, shadow:"
        " noted), behind the first tier who would be far too late (soft), whoever is late (hard).",
    )
    admission_factor: float = Field(
        2.0,
        ge=1,
        le=1000,
        description="soft: so many times the promised time to first token is too late.",
    )
    learn: bool = Field(
        True, description="Learn from finished answers how long the next will be; kept in data_dir."
    )
    learn_scope: Literal["tenant", "all"] = Field(
        "tenant",
        description="Whose answers may tell of a tenant's next one: its own only, or everybody's.",
    )

    @model_validator(mode="before")
    @classmethod
    def _look_at_standard_variables(cls, values: Any) -> Any:
        """Take from OpenTelemetry's own variables what is not set otherwise."""
        return {**standard_values(), **values} if isinstance(values, dict) else values

    @field_validator("port", mode="before")
    @classmethod
    def _explain_service_links(cls, value: Any) -> Any:
        # Kubernetes sets TIERGATE_PORT=tcp://... in every pod beside a Service named `tiergate`.
        if isinstance(value, str) and value.startswith("tcp://"):
            raise ValueError(
                "looks like a Kubernetes service link; set enableServiceLinks: false in the pod "
                "or pass --port"
            )
        return value

    @field_validator("data_dir", "ready_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("data_dir")
    @classmethod
    def _fits_a_url(cls, value: Path) -> Path:
        # The database's URL is made of it, and there a question mark ends the path.
        if "?" in str(value):
            raise ValueError("the path may not contain a question mark")
        return value

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            url = value.get_secret_value()
            if not _REDIS_URL.match(url):
                raise ValueError("must begin with redis://, rediss:// or unix://")
            try:
                _ = urlsplit(url).port
            except ValueError:
                raise ValueError("the port must be a number up to 65535") from None
        return value

    @field_validator("pepper")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 32:
            raise ValueError("must have at least 32 characters")
        return value

    @property
    def pepper_file(self) -> Path:
        """Where the pepper is kept when it is not given as a setting."""
        return self.data_dir / "pepper"

    @property
    def is_loopback(self) -> bool:
        """True when only this machine can reach the gateway."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def aliases(self) -> frozenset[str]:
        """Other names that the model answers to; `*` among them stands for any name."""
        return frozenset(name.strip() for name in self.model_aliases.split(",")) - {""}

    @property
    def url(self) -> str:
        """The gateway's URL as seen from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @classmethod
    def load(cls, **flags: Any) -> Self:
        """Read the settings; `flags` that are not None outrank the environment.

        Raises `SettingsError` with the first fault found.
        """
        given = {name: value for name, value in flags.items() if value is not None}
        try:
            return cls(**given)
        except ValidationError as error:
            raise SettingsError(_first_fault(error, given)) from None


def _first_fault(error: ValidationError, flags: dict[str, Any]) -> str:
    """Return one line that names the setting as the operator wrote it, and the fault."""
    fault = error.errors(include_url=False, include_input=False)[0]
    name = str(fault["loc"][0]) if fault["loc"] else ""
    said = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        return f"unknown setting {name!r}"
    variable = f"{ENV_PREFIX}{name.upper()}"
    where = f"--{name.replace('_', '-')} ({variable})" if name in flags else variable
    return f"{where}: {said[:1].lower()}{said[1:]}"


def standard_values() -> dict[str, str]:
    """Return what OpenTelemetry's variables say of settings; those that are empty say nothing."""
    found = {
        name: os.environ[variable]
        for name, variable in STANDARD_VARIABLES.items()
        if os.environ.get(variable)
    }
    if os.environ.get(DISABLED_VARIABLE, "").lower() == "true":
        found = {name: value for name, value in found.items() if not name.endswith("_endpoint")}
    share = standard_share(
        os.environ.get(SAMPLER_VARIABLE, ""), os.environ.get(SAMPLER_SHARE_VARIABLE, "")
    )
    interval_s = standard_interval_s(os.environ.get(INTERVAL_VARIABLE, ""))
    more = {"trace_sample": share, "otlp_interval_s": interval_s}
    return found | {name: value for name, value in more.items() if value is not None}


def unknown_variables() -> list[str]:
    """Return the names of `TIERGATE_*` variables that no setting reads: most likely misspelt."""
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields} | COMMAND_VARIABLES
    found = {name for name in os.environ if name.startswith(ENV_PREFIX)}
    return sorted(found - known)
