"""Runs a gateway from settings until a stop signal; it wires nothing inside the gateway itself.

Whatever can be told to be wrong is told before the model is loaded, in the order of what it costs
to find out: settings, model, port, admin token, database. Each fault is one line on stderr and exit
code 2. A first stop signal drains: readiness falls, new requests are refused, running answers may
finish. A second one ends them at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from socket import socket

import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from engine.core.errors import EngineError
from engine.serving.client import EngineInfo
from engine.serving.config import EngineConfig
from engine.serving.process import EngineProcess
from engine.sim.choices import ChoiceError, PolicyChoice, parse_choice
from gateway import logging as gateway_logging
from gateway.admin.oidc_settings import require_oidc
from gateway.admin_token import admin_token_file, find_admin_token
from gateway.app import create_app
from gateway.cli.banner import print_banner
from gateway.cli.checks import State, check_model, check_workers
from gateway.cli.output import CommandError, note
from gateway.data_lock import DataDirTaken, only_gateway
from gateway.demo import demo_keys_file, ensure_demo
from gateway.door_run import DoorRun
from gateway.ledger import Ledger, ledger
from gateway.private_file import write_private
from gateway.process import prepare_process
from gateway.server import listen
from gateway.settings import Settings, SettingsError, unknown_variables
from gateway.workers.parent import WorkersRun
from gateway.workers.pool import WorkerError

GIB = 2**30


def serve(settings: Settings) -> int:
    """Serve until a stop signal; return the exit code. Raises CommandError or LedgerError."""
    gateway_logging.set_up(settings.log_level)
    policy_choice(settings.policy)  # a typing error must not cost a model's loading
    prepare_process()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Gateway(settings).run())


def engine_config(settings: Settings) -> EngineConfig:
    """Return what the engine's process is told; raises CommandError for a policy's bad option."""
    choice = policy_choice(settings.policy)
    memory, parked = settings.kv_cache_gib, settings.host_kv_gib
    folder = Path(settings.model).expanduser()
    return EngineConfig(
        model=settings.model,
        # Clients get to see a folder's name, not where it lies on this machine.
        served_name=folder.resolve().name if folder.is_dir() else "",
        device=settings.device,
        dtype=settings.dtype,
        policy=choice.name,
        policy_options=choice.options,
        latency_profile=settings.latency_profile,
        threads=settings.threads,
        max_batch_tokens=settings.max_batch_tokens,
        max_model_len=settings.max_model_len,
        max_batch_requests=settings.max_running,
        kv_cache_bytes=None if memory is None else int(memory * GIB),
        host_kv_bytes=None if parked is None else int(parked * GIB),
        host_kv_format=settings.host_kv_format,
        host_kv_group=settings.host_kv_group,
        # The door's own bounds come first; these only catch what they should have caught.
        max_waiting_requests=settings.max_queue + settings.max_running,
        max_waiting_prompt_tokens=2 * settings.max_queue_prompt_tokens,
    )


def policy_choice(text: str) -> PolicyChoice:
    """Return the policy and its options, written as in the simulator: NAME[key=value;...]."""
    try:
        choice = parse_choice(text)
    except ChoiceError as error:
        raise CommandError(f"--policy: {error}") from error
    if choice.predictor or choice.num_kv_tokens or choice.num_host_kv_tokens:
        raise CommandError(f"--policy: {text!r:.80} has options that only the simulator knows")
    return choice


class Loading:
    """Shows how loading goes: a bar on a terminal, a line per stage elsewhere."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar = None
        self._task: TaskID | None = None
        self._stage = ""
        if console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
            self._bar = Progress(*columns, console=console, transient=True)

    def show(self, stage: str, fraction: float) -> None:
        """Show that loading has come to `fraction` (0 to 1) of `stage`."""
        if self._bar is None:
            if stage != self._stage:
                note(f"loading: {stage}")
        elif self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(stage, total=1.0)
        else:
            self._bar.update(self._task, description=stage, completed=fraction)
        self._stage = stage

    def end(self) -> None:
        """Show nothing any more."""
        if self._bar is not None and self._task is not None:
            self._bar.stop()


class Gateway:
    """One run of a gateway: checks, port, ledger, engine, server, drain."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._run: DoorRun | None = None
        self._engine_error: EngineError | None = None
        self._loading = Loading()

    async def run(self) -> int:
        """Serve until a stop signal; return the exit code."""
        settings = self._settings
        for name in unknown_variables():
            note(f"warning: {name} is not a setting and has no effect")
        for check in (check_model(settings), check_workers(settings)):
            if check.state is State.FAIL:
                raise CommandError(f"{check.found}; {check.advice}")
        with self._listen() as bound:
            self._settings = settings.model_copy(update={"port": bound.getsockname()[1]})
            with self._own_folder():
                try:
                    token = find_admin_token(settings)
                    require_oidc(settings)
                except SettingsError as error:
                    raise CommandError(str(error)) from None
                async with ledger(settings, note) as opened:
                    await opened.database.check_writable()
                    keys = await self._demo_keys(opened)
                    if settings.workers == 1:
                        await self._serve(bound, opened, token, keys)
                if settings.workers > 1:
                    await self._share(bound, token, keys)
        if self._engine_error is not None:
            raise self._engine_error
        return 0

    def _listen(self) -> socket:
        settings = self._settings
        try:
            return listen(settings.host, settings.port)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise CommandError(
                f"cannot listen on {settings.host}:{settings.port}: {reason}"
            ) from None

    @contextlib.contextmanager
    def _own_folder(self) -> Iterator[None]:
        """Hold the data directory; only its owner may touch what an earlier run has left."""
        settings = self._settings
        with contextlib.ExitStack() as held:
            try:
                settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
                held.enter_context(only_gateway(settings.data_dir))
                if settings.ready_file is not None:
                    settings.ready_file.unlink(missing_ok=True)
                    settings.ready_file.parent.mkdir(parents=True, exist_ok=True)
            except DataDirTaken as error:
                raise CommandError(str(error)) from None
            except OSError as error:
                raise CommandError(f"cannot use {error.filename}: {error.strerror}") from None
            yield

    async def _demo_keys(self, opened: Ledger) -> dict[str, str]:
        if not self._settings.demo:
            return {}
        try:
            keys = await ensure_demo(opened, self._settings.data_dir)
        except OSError as error:
            raise CommandError(
                f"the demo keys cannot be kept in {demo_keys_file(self._settings.data_dir)}: "
                f"{error.strerror}"
            ) from None
        if not keys:
            note("--demo: this database has tenants of its own; no demo tenants were made")
        return keys

    async def _serve(self, bound: socket, opened: Ledger, token: str, keys: dict[str, str]) -> None:
        settings = self._settings
        engine = EngineProcess(engine_config(settings), on_progress=self._loading.show)
        tiers = await opened.repository.list_tiers()
        app = create_app(
            settings,
            engine,
            opened,
            tiers,
            admin_token=token,
            on_engine_failed=self._on_engine_failed,
        )
        run = self._run = DoorRun(app, lambda: run.stop())
        with self._until_over():
            await run.run(
                bound,
                on_started=lambda: self._announce(engine.info, token, keys),
                on_drain=say_draining,
                on_cut=say_cut,
            )

    async def _share(self, bound: socket, token: str, keys: dict[str, str]) -> None:
        """Serve with several workers; this process starts and ends them, and the engine."""
        settings = self._settings
        with self._until_over():
            run = WorkersRun(settings, engine_config(settings), token, bound, self._loading.show)
            try:
                await run.run(on_started=lambda info: self._announce(info, token, keys))
            except OSError as error:
                detail = f"cannot make {error.filename}: {error.strerror}"
                raise CommandError(detail) from None
            except WorkerError as error:
                raise CommandError(str(error)) from None

    @contextlib.contextmanager
    def _until_over(self) -> Iterator[None]:
        """Take away at the end what was shown and written of a running gateway."""
        try:
            yield
        finally:
            self._loading.end()
            self._remove_ready_file()

    def _on_engine_failed(self, error: EngineError) -> None:
        assert self._run is not None
        if not self._run.is_stopping:  # else it was told to end while it was loading
            self._engine_error = error
        self._run.stop()

    def _announce(self, info: EngineInfo | None, token: str, keys: dict[str, str]) -> None:
        """Tell people and scripts where to go: the gateway can answer requests now."""
        settings = self._settings
        assert info is not None
        self._loading.end()
        kept = demo_keys_file(settings.data_dir) if keys else None
        print_banner(settings, info, token, admin_token_file(settings.data_dir), keys, kept)
        if settings.ready_file is not None:
            ready = {
                "url": settings.url,
                "admin_url": f"{settings.url}/admin",
                "admin_token": token,
                "keys": keys,
                "pid": os.getpid(),
            }
            self._write_ready_file(settings.ready_file, json.dumps(ready, indent=2) + "\n")

    def _write_ready_file(self, path: Path, text: str) -> None:
        try:
            write_private(path, text)
        except OSError as error:
            raise CommandError(f"cannot write {path}: {error.strerror}") from None

    def _remove_ready_file(self) -> None:
        if self._settings.ready_file is not None:
            with contextlib.suppress(OSError):
                self._settings.ready_file.unlink(missing_ok=True)


def say_draining(num_answers: int) -> None:
    """Tell who waits for the end, why it takes so long."""
    note(f"draining: {num_answers} answers are running; press Ctrl-C again to end them now")


def say_cut(num_answers: int) -> None:
    """Tell that not all was finished."""
    note(f"{num_answers} answers were ended before they were done")
