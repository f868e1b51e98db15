"""What a step costs on one device with one model, as a file of numbers; it knows no batch.

The form is affine in what a step holds. With n tokens in all, in nanoseconds:

    linear      base + token * n + tile * ceil(n / tile_tokens) + knee_token * max(0, n - knee)
    decodes     decode_kv * (cached tokens they read), times `mixed_kv_factor` beside a prompt
    prompts     pair * sum(chunk * (cached + chunk / 2)) + prompt_kv * (cached tokens they read)
                + prompt, once, where the step holds any
    rows        row * (requests in the step)
    the sum of these, and never less than `floor`

`base` with a knee is the weights' load seen from afar: they are read once per step whatever n is,
so the first tokens are free until computing takes longer than reading (the measured points of
SLAI's Figure 5a are max(22.6, 6.2 + 0.0923 n) ms: base 22.6, knee 178). Tile steps are those of
RAD's batch-time model (https://arxiv.org/abs/2508.01002, Eq. 7).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from engine.core.executor import Capacity

RAW, INT8 = "raw", "int8"
HOST_FORMATS = (RAW, INT8)


class ProfileError(ValueError):
    """The file cannot be read, or one field of it makes no sense; one sentence says which."""


@dataclass(frozen=True, slots=True)
class LatencyProfile:
    """Prices of one device and model in nanoseconds, and what fits into its memory.

    `link_out_ns_per_token` and `link_in_ns_per_token` are the KV cache of one token on its way to
    the host and back; `link_ns` is what one request's copy costs besides. Both directions run at
    once, beside the compute. `int8_out_ns_per_token` and `int8_in_ns_per_token` are the same where
    the host keeps INT8, quantising included, `int8_kv_bytes_per_token` what it keeps, scales
    included (0: not measured). `mixed_kv_factor` is at least 1: no prompt makes a step cheaper.
    `fit` tells where the numbers come from and how well they hold.
    """

    name: str
    base_ns: float = 0.0
    floor_ns: float = 0.0
    token_ns: float = 0.0
    tile_tokens: int = 1
    tile_ns: float = 0.0
    knee_tokens: int = 0
    knee_token_ns: float = 0.0
    decode_kv_ns: float = 0.0
    mixed_kv_factor: float = 1.0
    pair_ns: float = 0.0
    prompt_kv_ns: float = 0.0
    prompt_ns: float = 0.0
    row_ns: float = 0.0
    link_ns: float = 0.0
    link_out_ns_per_token: float = 0.0
    link_in_ns_per_token: float = 0.0
    int8_out_ns_per_token: float = 0.0
    int8_in_ns_per_token: float = 0.0
    kv_bytes_per_token: int = 0
    int8_kv_bytes_per_token: int = 0
    num_kv_tokens: int = 1 << 20
    num_host_kv_tokens: int = 0
    block_size: int = 16
    max_model_len: int = 1 << 20
    max_batch_tokens: int = 8192
    max_batch_requests: int = 256
    fit: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if spec.type in ("int", "float"):
                _check_number(self.name, spec.name, value, is_whole=spec.type == "int")
        if not isinstance(self.fit, dict):
            raise ProfileError(f"profile {self.name}: fit must be an object, not {self.fit!r}")
        if self.token_ns + self.tile_ns + self.knee_token_ns + self.base_ns <= 0:
            raise ProfileError(f"profile {self.name}: base_ns: a step would take no time at all")
        if self.num_kv_tokens < self.block_size:
            raise ProfileError(
                f"profile {self.name}: num_kv_tokens {self.num_kv_tokens} is less than one block"
                f" of {self.block_size}"
            )

    def with_host_format(self, host_format: str) -> LatencyProfile:
        """Return the profile of an engine whose host keeps parked contexts so: "raw" or "int8".

        Link rates are those of the format, and as many bytes hold more tokens, so that whoever
        reads prices needs to know of no format. Raises ProfileError for what was not measured.
        """
        if host_format == RAW:
            return self
        if host_format != INT8:
            known = ", ".join(HOST_FORMATS)
            raise ProfileError(f"unknown host format {host_format!r:.40}; known: {known}")
        for name in (
            "kv_bytes_per_token",
            "int8_kv_bytes_per_token",
            "int8_out_ns_per_token",
            "int8_in_ns_per_token",
        ):
            if not getattr(self, name):
                raise ProfileError(f"profile {self.name}: {name}: not measured, and INT8 needs it")
        num_bytes = self.num_host_kv_tokens * self.kv_bytes_per_token
        return dataclasses.replace(
            self,
            link_out_ns_per_token=self.int8_out_ns_per_token,
            link_in_ns_per_token=self.int8_in_ns_per_token,
            num_host_kv_tokens=num_bytes // self.int8_kv_bytes_per_token,
        )

    def capacity(self) -> Capacity:
        """Return what an executor of this device can hold."""
        return Capacity(
            num_blocks=self.num_kv_tokens // self.block_size,
            block_size=self.block_size,
            max_model_len=self.max_model_len,
            max_batch_tokens=self.max_batch_tokens,
            max_batch_requests=self.max_batch_requests,
            num_host_blocks=self.num_host_kv_tokens // self.block_size,
        )


AT_LEAST: MappingProxyType[str, float] = MappingProxyType(
    {
        "tile_tokens": 1,
        "mixed_kv_factor": 1,
        "num_kv_tokens": 1,
        "block_size": 1,
        "max_model_len": 1,
        "max_batch_tokens": 1,
        "max_batch_requests": 1,
    }
)
AT_MOST = 1e15  # a step of eleven days; what is larger is a slip, or not even a float


def _check_number(profile: str, name: str, value: object, *, is_whole: bool) -> None:
    kind = "a whole number" if is_whole else "a number"
    allowed: tuple[type, ...] = (int,) if is_whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise ProfileError(f"profile {profile}: {name} must be {kind}, not {value!r:.60}")
    assert isinstance(value, (int, float))
    least = AT_LEAST.get(name, 0)
    if not least <= value <= AT_MOST:
        allowed_range = f"from {least:g} to {AT_MOST:g}"
        raise ProfileError(f"profile {profile}: {name} must be {allowed_range}, not {value!r:.60}")


def profile_names() -> list[str]:
    """Return the names of the profiles that ship with the project."""
    folder = resources.files("engine.core.profiles")
    return sorted(
        p.name.removesuffix(".json") for p in folder.iterdir() if p.name.endswith(".json")
    )


def load_profile(name: str) -> LatencyProfile:
    """Return a profile by its name, or from a file; raises ProfileError with one clear sentence."""
    if name.endswith(".json") or "/" in name:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except OSError as error:
            raise ProfileError(f"profile {name}: {error.strerror or error}") from error
        except ValueError as error:  # not UTF-8, or a name that no file can have
            raise ProfileError(f"profile {name!r}: not a text file: {error}") from error
        return parse_profile(text, name)
    if name not in profile_names():
        known = ", ".join(profile_names())
        raise ProfileError(f"unknown profile {name!r}; known: {known}, or a path ending in .json")
    resource = resources.files("engine.core.profiles").joinpath(f"{name}.json")
    return parse_profile(resource.read_text(encoding="utf-8"), name)


def parse_profile(text: str, where: str) -> LatencyProfile:
    """Return the profile that a JSON text describes; unknown fields are refused by name."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"profile {where}: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ProfileError(f"profile {where}: must be a JSON object")
    if not isinstance(fields.get("name"), str) or not fields["name"]:
        raise ProfileError(f"profile {where}: name must be a text")
    known = {spec.name for spec in dataclasses.fields(LatencyProfile)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ProfileError(f"profile {where}: unknown field {unknown[0]!r}")
    return LatencyProfile(**fields)


def dump_profile(profile: LatencyProfile) -> str:
    """Return the profile as the JSON text that `parse_profile` reads."""
    return json.dumps(dataclasses.asdict(profile), indent=2, ensure_ascii=False) + "\n"
