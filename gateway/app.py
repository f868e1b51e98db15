"""Builds the gateway: every object once, wired by hand; the lifespan starts and drains it.

The ledger is opened by the caller, so that what is wrong with it can be told in one line before
anything is served. The engine is started by the lifespan but not waited for: a gateway that is
loading its model already answers health checks, and says so on readiness.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Lifespan

from engine.core.admission import AdmissionRules, Gatekeeper, Mode
from engine.core.clock import Clock, MonotonicClock, utc_now
from engine.core.errors import EngineError
from engine.serving.client import EngineClient
from gateway.admin.desk import AdminDesk
from gateway.admission import Admission
from gateway.auth import Authenticator
from gateway.background import Background
from gateway.dashboard.frame import Frame
from gateway.dashboard.route import lost_page
from gateway.dialects.errors import ANTHROPIC_REQUEST_ID, error_response, is_anthropic
from gateway.edge import REQUEST_ID, Edge
from gateway.engine_watch import EngineWatch
from gateway.errors import ApiError, Problem
from gateway.forecast_gauges import observe_forecasts
from gateway.forecasts import Forecasts
from gateway.gate import Gate
from gateway.gauges import observe
from gateway.ledger import Ledger
from gateway.ledger_watch import LOOK_S, LedgerWatch
from gateway.lengths import Lengths, make_predictor
from gateway.limit_desk import LimitDesk, tell_alert
from gateway.limits.allowances import LedgerSpent
from gateway.limits.limiter import Limiter
from gateway.limits.memory_store import MemoryStore
from gateway.limits.redis_store import RedisStore, connect
from gateway.live import STALL_S, LiveAnswers
from gateway.metering import Meter
from gateway.otel.push import Push
from gateway.request_records import Journal
from gateway.routes import embeddings, health, inference, messages, models, responses
from gateway.routes.admin_rooms import admin_routers
from gateway.services import LoadCodec, ModelHost, Services, TierTable
from gateway.settings import Settings
from gateway.slo_desk import SloDesk
from gateway.spool import Spool
from gateway.telemetry import Telemetry
from gateway.text import load_codec
from gateway.workers.answers import answerers
from gateway.workers.peers import Peers
from gateway.workers.place import ALONE, Place
from tenants.errors import LedgerError
from tenants.listener import ChangeListener
from tenants.slo_store import prune_minutes
from tenants.slo_windows import MINUTES_KEPT
from tenants.values import TierRecord

logger = logging.getLogger(__name__)

SWEEP_S = 0.25
LAST_USED_S = 10.0
PRUNE_S = 600.0
FLUSH_LIMIT_S = 10.0
LEFTOVERS_S = 10.0
SETTLE_LIMIT_S = 2.0  # of what is left, the store knows in time: it takes it in full
EngineFailed = Callable[[EngineError], None]


def create_app(
    settings: Settings,
    engine: EngineClient,
    ledger: Ledger,
    tiers: Sequence[TierRecord],
    *,
    admin_token: str | None = None,
    clock: Clock | None = None,
    load: LoadCodec = load_codec,
    stall_s: float = STALL_S,
    on_engine_failed: EngineFailed | None = None,
    place: Place = ALONE,
) -> FastAPI:
    """Return the gateway as an ASGI application; inside an event loop.

    `tiers` are those of the ledger at start-up. `on_engine_failed` hears when the engine cannot be
    started at all. `place` is this process's among the workers.
    """
    clock = clock or MonotonicClock()
    services = build_services(
        settings, engine, ledger, tiers, admin_token, clock, load, stall_s, place
    )
    app = FastAPI(
        title="Tiergate",
        lifespan=_lifespan(services, on_engine_failed),
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.services = services
    app.add_middleware(Edge, clock=services.clock, tracing=services.push.tracing)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unforeseen)
    for room in (inference, messages, responses, embeddings, models, health):
        app.include_router(room.router)
    if admin_token is not None:  # without a secret there is no admin route at all
        app.state.admin = AdminDesk(settings, ledger, admin_token, services.clock)
        app.state.frame = Frame()
        for router in admin_routers():
            app.include_router(router)
    return app


def build_services(
    settings: Settings,
    engine: EngineClient,
    ledger: Ledger,
    tiers: Sequence[TierRecord],
    admin_token: str | None,
    clock: Clock,
    load: LoadCodec,
    stall_s: float,
    place: Place = ALONE,
) -> Services:
    """Return all parts, wired to each other; nothing runs yet."""
    telemetry, journal = Telemetry(tiers), Journal()
    meter = Meter(
        ledger.database,
        Spool(settings.data_dir / "spool", name=spool_name(place)),
        max_buffer=settings.usage_buffer,
        flush_s=settings.usage_flush_s,
        on_judged=telemetry.written,
    )
    slo = SloDesk(clock, meter.judge)
    meter.watch(slo.under_way)
    engine.add_finish_listener(meter.on_finish)
    engine.add_finish_listener(telemetry.on_finish)
    folder = settings.data_dir / "learning"
    pepper = ledger.pepper.secret
    make = partial(make_predictor, folder, settings.learn_scope, pepper, keeps=place.index == 0)
    lengths = Lengths(make if settings.learn else None)
    engine.add_finish_listener(lengths.on_finish)
    watch = EngineWatch()
    engine.add_step_listener(watch.on_step)
    table = TierTable(tuple(tiers))
    admission = Admission(
        clock,
        max_queue=settings.max_queue,
        max_queue_prompt_tokens=settings.max_queue_prompt_tokens,
        tenant_factor=settings.tenant_queue_factor,
        place=place,
    )
    rules = AdmissionRules(Mode(settings.admission), settings.admission_factor)
    forecasts = Forecasts(engine, Gatekeeper(rules))
    gate = Gate(clock, admission, forecasts, rules, lambda: table.current)
    if rules.mode is not Mode.OFF:
        engine.add_step_listener(forecasts.on_step)
    services = Services(
        settings=settings,
        clock=clock,
        ledger=ledger,
        ledger_watch=LedgerWatch(ledger, clock),
        tiers=table,
        host=ModelHost(engine, load, clock, lengths, settings.aliases),
        auth=Authenticator(
            ledger.repository,
            clock,
            salt_secret=pepper,
            ttl_s=settings.key_cache_ttl_s,
            size=settings.key_cache_size,
        ),
        admission=admission,
        gate=gate,
        lengths=lengths,
        desk=LimitDesk(make_limiter(settings, ledger, clock, place.count), gate.lower_tiers),
        meter=meter,
        slo=slo,
        telemetry=telemetry,
        push=Push(settings, telemetry.instruments, clock, place, journal.find, engine.explain),
        live=LiveAnswers(clock, timeout_s=settings.stream_timeout_s, stall_s=stall_s),
        watch=watch,
        journal=journal,
        background=Background(),
        peers=Peers(place),
        admin_token=admin_token,
    )
    observe(services)
    observe_forecasts(services)
    return services


def make_limiter(settings: Settings, ledger: Ledger, clock: Clock, workers: int = 1) -> Limiter:
    """Return the limiter over Redis where one is set, else over this process's memory."""
    url = settings.redis_url
    store = MemoryStore() if url is None else RedisStore(connect(url.get_secret_value()))
    spent = LedgerSpent(ledger.database)
    return Limiter(store, clock, workers=workers, spent=spent, on_alert=tell_alert)


def _lifespan(services: Services, on_failed: EngineFailed | None) -> Lifespan[FastAPI]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        background = services.background
        services.push.start()
        background.every("sweep", SWEEP_S, _sweep(services))
        background.start("keys", _follow_keys(services))
        listener = ChangeListener(services.ledger.database, services.auth.hear)
        background.start("key-notices", listener.run())
        background.every("schema", LOOK_S, services.ledger_watch.look)
        background.start("limits", services.desk.limiter.run())
        background.every("slo-minutes", PRUNE_S, _prune(services))
        background.every("last-used", LAST_USED_S, services.auth.write_last_used)
        writer = background.start("usage", services.meter.run())
        background.every("usage-note", services.settings.usage_flush_s, services.meter.note)
        if services.peers.place.count > 1:
            background.every("leftovers", LEFTOVERS_S, services.meter.look_for_leftovers)
        background.start("engine", _start_engine(services, on_failed))
        try:
            async with services.peers.answering(answerers(services)):
                yield
        finally:
            services.admission.draining = True
            await services.host.close()
            services.meter.close()
            # A writer that a dead database holds is cancelled below, and then writes to disk.
            await asyncio.wait([writer], timeout=FLUSH_LIMIT_S)
            if not await services.desk.limiter.flush(SETTLE_LIMIT_S):
                logger.warning("not all reservations of limits could be given back")
            await services.auth.write_last_used()
            await background.stop()
            await services.meter.release()
            await services.push.tracing.settle()
            await asyncio.to_thread(services.push.close)

    return lifespan


def spool_name(place: Place) -> str:
    """Return the name of this process's own spool; empty for one that is alone.

    It is new with every process: whoever hands in what a dead one has left is in nobody's way.
    """
    return f"worker-{place.index}-{secrets.token_hex(4)}" if place.count > 1 else ""


async def _start_engine(services: Services, on_failed: EngineFailed | None) -> None:
    try:
        await services.host.start()
    except EngineError as error:
        if on_failed is None:
            raise
        on_failed(error)


def _sweep(services: Services) -> Callable[[], Coroutine[Any, Any, None]]:
    async def sweep() -> None:
        services.live.sweep(utc_now())
        services.host.look()
        snapshot, owes = services.host.engine.snapshot, services.admission.waiting > 0
        services.watch.look(snapshot, services.clock.now_ns(), owes=owes)

    return sweep


def _prune(services: Services) -> Callable[[], Coroutine[Any, Any, None]]:
    async def prune() -> None:
        try:
            await prune_minutes(services.ledger.database, utc_now() - MINUTES_KEPT)
        except LedgerError as error:
            logger.warning("old minutes of SLO accounts stay: %s", error)

    return prune


async def _follow_keys(services: Services) -> None:
    poll = _poll_keys(services)
    while True:
        await poll()
        await services.auth.wait_for_change(services.settings.key_poll_s)


def _poll_keys(services: Services) -> Callable[[], Coroutine[Any, Any, None]]:
    is_due = False  # stays so until all of it is done: the counter tells of a change once only

    async def poll() -> None:
        nonlocal is_due
        try:
            is_due = await services.auth.poll() or is_due
            services.ledger_watch.answered()
            if is_due:
                services.tiers.current = tuple(await services.ledger.repository.list_tiers())
                services.telemetry.know(services.tiers.current)
                await services.live.recheck_keys(services.auth.still_opens)
                is_due = False
        except LedgerError as error:
            services.ledger_watch.failed()
            logger.warning("key changes cannot be seen: %s", error)

    return poll


async def _api_error(request: Request, error: Exception) -> Response:
    """Tell an error in the words of the API that the path belongs to."""
    assert isinstance(error, ApiError)
    request_id = str(request.scope.get("state", {}).get("request_id", ""))
    return error_response(error, request.url.path, request_id)


async def _http_error(request: Request, error: Exception) -> Response:
    """Give what the router itself refuses (no such path, wrong method) the path's shape."""
    assert isinstance(error, HTTPException)
    if error.status_code == Problem.METHOD.value.status:
        problem, message = Problem.METHOD, "This path does not take that method."
    elif error.status_code == Problem.NOT_FOUND.value.status:
        problem, message = Problem.NOT_FOUND, "There is no such path here."
    else:
        problem, message = Problem.BAD_REQUEST, "This request cannot be taken."
    told = ApiError(problem, message, headers=error.headers)
    return lost_page(request, told) or await _api_error(request, told)


async def _unforeseen(request: Request, error: Exception) -> Response:
    """A fault of ours: the client learns that it is one, and the id to report, and nothing else."""
    request_id = str(request.scope.get("state", {}).get("request_id", ""))
    logger.error("request %s failed: %s", request_id, type(error).__name__, exc_info=error)
    response = await _api_error(
        request, ApiError(Problem.INTERNAL, f"An internal error occurred (request {request_id}).")
    )
    response.headers[REQUEST_ID] = request_id
    if is_anthropic(request.url.path):
        response.headers[ANTHROPIC_REQUEST_ID] = request_id
    return response
