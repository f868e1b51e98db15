"""Builds an engine from its config: the one place that knows executors by name.

Torch is imported here, inside a function, and nowhere else on this floor. It starts no thread and
no process, and knows no transport.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from engine.core.engine_core import CoreConfig, EngineCore
from engine.core.errors import ModelLoadError
from engine.core.executor import Executor
from engine.core.latency_model import LatencyModel
from engine.core.latency_profile import load_profile
from engine.core.policies import make_policy
from engine.core.stats import RequestStats, StepStats
from engine.core.tape import RecordingCore
from engine.core.tape_file import TapeWriter
from engine.serving.client import EngineInfo
from engine.serving.config import EngineConfig
from engine.serving.cores import usable_cores

AUTO = "auto"
BUILTIN_MODEL, BUILTIN_PROFILE = "builtin", "builtin-cpu"

ProgressReport = Callable[[str, float], None]


class ExecutorInfo(Protocol):
    """What an executor says of itself."""

    @property
    def model(self) -> str:
        """The model's name."""
        ...

    @property
    def model_path(self) -> str:
        """Where its tokenizer is."""
        ...

    @property
    def runner(self) -> str:
        """Which way of running it."""
        ...

    @property
    def device(self) -> str:
        """Where it runs."""
        ...

    @property
    def dtype(self) -> str:
        """In what precision."""
        ...


class DescribedExecutor(Executor, Protocol):
    """An executor with a name tag; what every maker of executors returns."""

    @property
    def info(self) -> ExecutorInfo:
        """What this executor says of itself."""
        ...


ExecutorMaker = Callable[[EngineConfig, ProgressReport], DescribedExecutor]


class StepRecorder:
    """The observer inside the engine: holds the newest step's record until the loop takes it."""

    __slots__ = ("_stats",)

    def __init__(self) -> None:
        self._stats: StepStats | None = None

    def on_step(self, stats: StepStats) -> None:
        """See Observer."""
        self._stats = stats

    def on_finish(self, stats: RequestStats) -> None:
        """See Observer; ends travel with their events."""

    def take(self) -> StepStats | None:
        """Return the record of the step just finished, once."""
        stats, self._stats = self._stats, None
        return stats


@dataclass(frozen=True, slots=True)
class Engine:
    """A core, the executor it decides for, and the record of its steps."""

    core: EngineCore | RecordingCore
    executor: Executor
    recorder: StepRecorder
    config: EngineConfig
    info: ExecutorInfo

    def describe(self, pid: int, load_s: float) -> EngineInfo:
        """Return what this engine tells the door when it is ready."""
        capacity = self.executor.capacity
        return EngineInfo(
            model=self.config.served_name or self.info.model,
            model_path=self.info.model_path,
            runner=self.info.runner,
            device=self.info.device,
            dtype=self.info.dtype,
            policy=self.core.policy.name,
            max_model_len=capacity.max_model_len,
            block_size=capacity.block_size,
            num_blocks=capacity.num_blocks,
            max_batch_tokens=capacity.max_batch_tokens,
            max_batch_requests=capacity.max_batch_requests,
            pid=pid,
            load_s=load_s,
            num_host_blocks=capacity.num_host_blocks,
            host_kv_format=self.config.host_kv_format if capacity.num_host_blocks else "",
            policy_options=self.config.policy_options,
            latency_profile=profile_name(self.config),
            # Executors of other makers need not know the words.
            has_grammars=bool(getattr(self.info, "has_grammars", False)),
            embedding_size=int(getattr(self.info, "embedding_size", 0)),
        )


def build_engine(config: EngineConfig, progress: ProgressReport) -> Engine:
    """Load the model and build the core around its capacity.

    Raises ModelLoadError, one line, for whatever an operator can put right.
    """
    try:
        profile = load_profile(profile_name(config))
        model = LatencyModel(profile.with_host_format(config.host_kv_format))
        policy = make_policy(policy_name(config), config.policy_options, model)
        bounds = CoreConfig(
            config.max_waiting_requests, config.max_waiting_prompt_tokens, config.follow_one_in
        )
    except ValueError as error:
        raise ModelLoadError(str(error)) from error
    make_executor = _load_model if config.executor == "model" else _find_maker(config.executor)
    executor = make_executor(config, progress)
    recorder = StepRecorder()
    core = EngineCore(
        executor.capacity,
        policy,
        bounds,
        observer=recorder,
        enable_prefix_cache=config.prefix_caching,
        model=model,
    )
    return Engine(_recorded(core, config.tape), executor, recorder, config, executor.info)


def profile_name(config: EngineConfig) -> str:
    """Return the latency profile to begin with; steps correct it, whatever it is."""
    return BUILTIN_PROFILE if config.latency_profile == AUTO else config.latency_profile


def policy_name(config: EngineConfig) -> str:
    """Return the policy to run: our own where step times are known, else one that asks for none.

    The hybrid plans in time. On a device of another kind, with a profile that is off by orders of
    magnitude, its first steps would be too short or too long by as much.
    """
    if config.policy != AUTO:
        return config.policy
    is_known = config.latency_profile != AUTO or config.model == BUILTIN_MODEL
    return "hybrid" if is_known else "sarathi"


def _recorded(core: EngineCore, tape: str) -> EngineCore | RecordingCore:
    """Return the core, behind a recorder where a tape was asked for."""
    if not tape:
        return core
    try:
        return RecordingCore(core, TapeWriter(tape))
    except OSError as error:
        detail = f"the tape {tape} cannot be written: {error.strerror}"
        raise ModelLoadError(detail) from error


def has_spare_core(threads: int | None, cores: int) -> bool:
    """True where computing leaves one of the usable cores alone: it can carry contexts."""
    return threads is not None and threads < cores


def _load_model(config: EngineConfig, progress: ProgressReport) -> DescribedExecutor:
    try:
        from engine.model.loader import load_runner
    except ImportError as error:
        detail = f"the engine's packages are missing ({error}): pip install 'tiergate[engine]'"
        raise ModelLoadError(detail) from error
    return load_runner(
        config.model,
        config.device,
        config.dtype,
        max_model_len=config.max_model_len,
        max_batch_tokens=config.max_batch_tokens,
        max_batch_requests=config.max_batch_requests,
        block_size=config.block_size,
        kv_cache_bytes=config.kv_cache_bytes,
        host_kv_bytes=config.host_kv_bytes,
        host_kv_format=config.host_kv_format,
        host_kv_group=config.host_kv_group,
        host_kv_checksums=config.host_kv_checksums,
        spare_core=has_spare_core(config.threads, usable_cores()),
        runner=config.runner,
        progress=progress,
    )


def _find_maker(name: str) -> ExecutorMaker:
    """Return the function named "module:function"."""
    module_name, _, function_name = name.partition(":")
    try:
        return cast(ExecutorMaker, getattr(importlib.import_module(module_name), function_name))
    except (ImportError, AttributeError, ValueError) as error:
        detail = f'no executor {name!r}: use "model" or an importable "module:function" ({error})'
        raise ModelLoadError(detail) from error
