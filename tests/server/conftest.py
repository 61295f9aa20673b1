"""A real store, registry and application per test; the hooks are the test's own functions."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import uvicorn
from fastapi import FastAPI

from keystep_capture.errors import NotFoundError
from keystep_server.app import AppDeps, Check, ProcedureStep, ProcedureSummary, create_app
from keystep_server.config import ServerConfig
from keystep_server.events import EventLog
from keystep_server.metrics import Metrics
from keystep_server.sessions import SessionHooks, SessionRegistry
from keystep_server.storage import Branch, StepEvent, StepEventKind, Store

START = datetime(2026, 3, 2, 9, 15, tzinfo=UTC)
TOY_BIKE = ProcedureSummary(
    name="toy-bike",
    title="Assemble the toy bike",
    steps=(ProcedureStep(step_id=7, title="Fit the front wheel"),),
)


def step_event(number: int, **changes: Any) -> StepEvent:
    """The step event of one frame, all events with different numbers being different."""
    values: dict[str, Any] = {
        "step_id": number % 5,
        "title": f"Step {number % 5}",
        "kind": StepEventKind.COMPLETED,
        "frame_idx": number,
        "device_time_ns": 2**60 + number,
        "epoch": 1,
        "detected_at": START + timedelta(seconds=number),
        "confidence": 0.5,
        "branch": Branch.ASSEMBLY_STATE,
        "evidence": {"state": [1, 0, -1]},
    }
    return StepEvent(**{**values, **changes})


def _validate_procedure(name: str) -> None:
    if name != TOY_BIKE.name:
        raise NotFoundError(f"there is no procedure {name!r}")


@dataclass
class Rig:
    """The server's parts over one database, with hooks that a test can change."""

    config: ServerConfig
    store: Store
    closed: list[str] = field(default_factory=list)
    ready: bool = True
    on_close: Callable[[str], Any] | None = None
    validate_procedure: Callable[[str], None] = _validate_procedure

    def __post_init__(self) -> None:
        seconds = itertools.count()
        self.metrics = Metrics()
        self.events = EventLog(self.store, capacity=50)
        hooks = SessionHooks(
            on_close=self._on_close,
            stats_of=lambda _session: {"rgb": {"packets": 3}},
            validate_procedure=lambda name: self.validate_procedure(name),
        )
        self.registry = SessionRegistry(
            self.store, self.events, hooks, now=lambda: START + timedelta(seconds=next(seconds))
        )

    async def _on_close(self, session_id: str) -> None:
        self.closed.append(session_id)
        if self.on_close is not None:
            await self.on_close(session_id)

    def restarted(self) -> Rig:
        """A new server over the same data; this one's database is let go."""
        self.store.close()
        return Rig(config=self.config, store=Store.open(self.config.resolved_database_url))

    def app(self, *, keepalive_s: float = 15.0) -> FastAPI:
        return create_app(
            AppDeps(
                config=self.config,
                store=self.store,
                registry=self.registry,
                events=self.events,
                metrics=self.metrics,
                readiness=lambda: [Check(name="models", ok=self.ready, detail="2 of 2")],
                procedures=lambda: [TOY_BIKE],
                keepalive_s=keepalive_s,
            )
        )

    def client(self, **headers: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app(), raise_app_exceptions=False)
        return httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1:8040", headers=headers
        )

    @asynccontextmanager
    async def serving(self, *, keepalive_s: float = 15.0) -> AsyncIterator[httpx.AsyncClient]:
        """A real uvicorn on a free port, and a client of it."""
        settings = uvicorn.Config(
            self.app(keepalive_s=keepalive_s), port=0, ws="none", lifespan="off", log_config=None
        )
        server = uvicorn.Server(settings)
        running = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                yield client
        finally:
            self.events.stop()
            server.should_exit = True
            await running


@pytest.fixture(autouse=True)
def _plain_log() -> Iterator[None]:
    """Log as the server does; structlog's default draws every local variable."""
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    yield
    structlog.reset_defaults()


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    return ServerConfig(data_dir=tmp_path)


@pytest.fixture
def store(config: ServerConfig) -> Iterator[Store]:
    opened = Store.open(config.resolved_database_url)
    yield opened
    opened.close()


@pytest.fixture
def rig(config: ServerConfig, store: Store) -> Rig:
    return Rig(config=config, store=store)


@pytest.fixture
def make_event() -> Callable[..., StepEvent]:
    return step_event


@pytest.fixture
def start() -> datetime:
    return START
