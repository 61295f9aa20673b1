"""The server process: its parts put together, run, and taken apart again."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import structlog
import uvicorn

from keystep_capture.clock import Clock
from keystep_capture.errors import ConfigError
from keystep_models.cues.appearance_cue import appearance_manifest_path
from keystep_models.onnx_model import OnnxModel
from keystep_server.app import AppDeps, Check, create_app
from keystep_server.bundle_shelf import BundleShelf
from keystep_server.clip_shelf import ClipShelf
from keystep_server.config import ServerConfig
from keystep_server.credentials import Access, TokenBook, refuse_unguarded_rest, server_keys
from keystep_server.detector_shelf import DetectorShelf
from keystep_server.events import EventLog
from keystep_server.feed import Feed
from keystep_server.inference import LocalEngine, model_key
from keystep_server.ingest import Ingest, IngestParts
from keystep_server.jobs.runner import JobRunner, JobSettings
from keystep_server.key_steps import ExtractionSettings, ModelIdentity
from keystep_server.method_choice import MethodChooser
from keystep_server.metrics import Metrics
from keystep_server.procedure_publishing import ProcedurePublisher
from keystep_server.procedure_shelf import ProcedureShelf
from keystep_server.publish import Publisher
from keystep_server.rest_protocol import LimitedProtocol
from keystep_server.routes.jobs import job_notice
from keystep_server.sessions import SessionHooks, SessionRegistry
from keystep_server.storage import Store
from keystep_server.tls import check_tls

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """Where a running server can be reached."""

    rest_url: str
    wire_endpoint: str
    publish_endpoint: str
    uvicorn_server: uvicorn.Server
    ingest: Ingest
    publisher: Publisher
    store: Store


@asynccontextmanager
async def running_server(
    config: ServerConfig, *, clock: Clock = time.monotonic_ns
) -> AsyncIterator[RunningServer]:
    """Run a server on the present loop until the context is left.

    Args:
        config: Its settings; `bundle_dir` names other models than the committed ones.
        clock: Monotonic clock of links and sessions, ns.

    Raises:
        ConfigError: A port is in use or an address is not this machine's.
        ModelError: The appearance model is missing, corrupt or not what its manifest says.
        DataError: The database cannot be opened.
    """
    # Long, since it is one list: what is taken is given back in the opposite order.
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(_lock_data_dir(config).close)
        tls = check_tls(config.tls_certificate, config.tls_key)
        store = await asyncio.to_thread(Store.open, config.resolved_database_url)
        stack.callback(store.close)
        access = await asyncio.to_thread(_access, config, store)
        access.start()
        stack.push_async_callback(access.stop)
        model = await asyncio.to_thread(
            OnnxModel.load,
            model_manifest_path(config),
            intra_op_threads=config.inference_threads,
        )
        identity = ModelIdentity(name=model.manifest.name, sha256=model.sha256)
        on_cpu = model.provider == "CPUExecutionProvider"  # where a larger batch costs more a row
        rest_socket = stack.enter_context(_bind_rest(config))
        metrics = Metrics()
        publisher = Publisher(
            config.publish_bind,
            guard=access.guard("follower", exposed="publish_bind" in config.exposed),
        )
        stack.callback(publisher.close)
        engine = stack.enter_context(
            LocalEngine(
                {model_key(model): model},
                max_batch=config.inference_max_batch or (1 if on_cpu else 16),
                max_calls=config.inference_calls or (os.cpu_count() or 1 if on_cpu else 1),
                max_wait_ms=config.inference_max_wait_ms,
                on_batch=metrics.batch_run,
            )
        )
        chooser = MethodChooser(
            procedures=ProcedureShelf(config.resolved_procedures_dir.resolve()),
            bundles=BundleShelf(
                config.data_dir.resolve() / "bundles",
                appearance_sha256=model.sha256,
                slot_count=config.encoder_slots,
            ),
            detectors=DetectorShelf(config.data_dir.resolve() / "detectors", engine.add_model),
            clips=ClipShelf(
                config.data_dir.resolve() / "storm",
                engine,
                appearance_sha256=model.sha256,
            ),
            default=config.default_method,
        )
        events = EventLog(store)
        feed = Feed()
        events.publishers.append(publisher.step_event)
        ingest = Ingest(
            IngestParts(
                store=store,
                events=events,
                metrics=metrics,
                publisher=publisher,
                engine=engine,
                model_key=model_key(model),
                model=identity,
                data_dir=config.data_dir.resolve(),
                chooser=chooser,
                feature_rate_hz=config.feature_rate_hz,
                settings=ExtractionSettings(),
                worker_count=config.pipeline_workers or max(2, os.cpu_count() or 2),
                clock=clock,
                feed=feed,
            )
        )
        registry = SessionRegistry(
            store,
            events,
            SessionHooks(
                on_close=ingest.close_session,
                stats_of=ingest.stats_of,
                validate_procedure=chooser.check_procedure,
                choose_method=chooser.choose,
                latencies_of=ingest.latencies_of,
                ask_to_record=ingest.ask_to_record,
            ),
        )
        receiver = ingest.start(
            registry,
            config.wire_bind,
            access.guard("device", exposed="wire_bind" in config.exposed),
        )
        stack.push_async_callback(ingest.stop)
        jobs = JobRunner(
            store,
            feed,
            config.data_dir,
            JobSettings(
                at_once=config.extraction_jobs, time_limit_s=config.extraction_hours * 3600
            ),
            notice_of=job_notice,
        )
        stack.push_async_callback(jobs.stop)
        await jobs.start()
        app = create_app(
            AppDeps(
                config=config,
                store=store,
                registry=registry,
                events=events,
                metrics=metrics,
                tokens=access.tokens,
                feed=feed,
                jobs=jobs,
                readiness=lambda: [
                    Check(
                        name="model", ok=True, detail=f"{model.manifest.name} on {model.provider}"
                    ),
                    Check(name="wire", ok=True, detail=receiver.endpoint),
                ],
                command=ingest.command,
                chooser=chooser,
                publisher=ProcedurePublisher(
                    store,
                    chooser.procedures,
                    chooser.bundles,
                    data_dir=config.data_dir.resolve(),
                    appearance=identity,
                    appearance_manifest=model_manifest_path(config),
                    rate_hz=config.feature_rate_hz,
                ),
            )
        )
        logging.getLogger("uvicorn.error").addFilter(_is_trouble)
        server = _RestServer(
            uvicorn.Config(
                app,
                log_config=None,
                lifespan="off",
                timeout_graceful_shutdown=5,
                ssl_certfile=tls.certificate if tls else None,
                ssl_keyfile=tls.key if tls else None,
                http=LimitedProtocol,
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[rest_socket]), name="rest")
        stack.push_async_callback(_stop_rest, server, serving, events, feed)
        host, port = rest_socket.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        yield RunningServer(
            rest_url=f"{'https' if tls else 'http'}://{shown}:{port}",
            wire_endpoint=receiver.endpoint,
            publish_endpoint=publisher.endpoint,
            uvicorn_server=server,
            ingest=ingest,
            publisher=publisher,
            store=store,
        )


def _access(config: ServerConfig, store: Store) -> Access:
    """Who is let in (blocks)."""
    exposed = "rest_host" in config.exposed
    bootstrap = config.token.get_secret_value() if config.token else None
    tokens = TokenBook(bootstrap=bootstrap, exposed=exposed)
    access = Access(store, server_keys(config.data_dir, store), tokens)
    if exposed:
        refuse_unguarded_rest(tokens, config.rest_host)
        if config.tls_certificate is None:
            log.warning(
                "REST is not encrypted, tokens can be read on the way; see --tls-certificate"
            )
    return access


class _RestServer(uvicorn.Server):
    """Leaves the process's signals to the command that runs it, and lets a quiet process sleep."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ended = asyncio.Event()

    async def main_loop(self) -> None:
        """Look after the headers each second (uvicorn's own loop does so ten times a second)."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._ended.wait()

    def end(self) -> None:
        """Begin to stop."""
        self.should_exit = True
        self._ended.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take none."""
        yield


def _is_trouble(record: logging.LogRecord) -> bool:
    """Not a request that a stopping server no longer waits for."""
    return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)


async def _stop_rest(
    server: _RestServer, serving: asyncio.Task[None], events: EventLog, feed: Feed
) -> None:
    events.stop()  # open event streams would keep it alive
    feed.stop()
    server.end()
    await serving


def _lock_data_dir(config: ServerConfig) -> IO[str]:
    """Take the data directory for this process, and write the settings into it.

    Raises:
        ConfigError: It is no folder, not writable, or another server's.
    """
    path = config.data_dir
    try:
        config.write_resolved()
        lock = (path / "lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"data_dir {path} cannot be used ({error.strerror}); expected a folder to write to"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigError(
            f"another server uses the data_dir {path}; stop it or choose another --data-dir"
        ) from None
    return lock


def model_manifest_path(config: ServerConfig) -> Path:
    """The appearance model's manifest: the bundle's, or the committed one."""
    if config.bundle_dir is None:
        return appearance_manifest_path()
    return config.bundle_dir / "appearance" / "manifest.json"


def _bind_rest(config: ServerConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.rest_host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.rest_host, config.rest_port))
        listener.listen()  # now: two may bind one port until one of them listens
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot bind REST to {config.rest_host}:{config.rest_port} ({error.strerror}); "
            "stop the other program or choose another --rest-port"
        ) from None
    return listener
