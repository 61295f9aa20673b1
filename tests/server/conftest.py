"""A real store, registry and application per test; or a whole server with real sources."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import httpx
import numpy as np
import pytest
import structlog
import uvicorn
import zmq
import zmq.asyncio
from fastapi import FastAPI

from keystep_capture import wire
from keystep_capture.errors import ConfigError, KeystepError, NotFoundError
from keystep_capture.samples import find_sample
from keystep_capture.sender import Callbacks, Sender, Source
from keystep_models.cues.appearance_cue import appearance_manifest_path
from keystep_server.app import AppDeps, Check, create_app
from keystep_server.bundle_shelf import BundleShelf
from keystep_server.clip_shelf import ClipShelf
from keystep_server.commands import CommandOutcome
from keystep_server.config import ServerConfig
from keystep_server.credentials import TokenBook
from keystep_server.detector_shelf import DetectorShelf
from keystep_server.events import EventLog
from keystep_server.feed import Feed
from keystep_server.inference import LocalEngine
from keystep_server.jobs.runner import JobRunner, JobSettings
from keystep_server.key_steps import ModelIdentity
from keystep_server.method_choice import MethodChooser
from keystep_server.metrics import Metrics
from keystep_server.procedure_publishing import ProcedurePublisher
from keystep_server.procedure_shelf import ProcedureShelf
from keystep_server.routes.jobs import job_notice
from keystep_server.serving import RunningServer, running_server
from keystep_server.sessions import SessionHooks, SessionRegistry
from keystep_server.storage import Branch, StepEvent, StepEventKind, Store

START = datetime(2026, 3, 2, 9, 15, tzinfo=UTC)
TOY_BIKE = "toy-bike"
PATIENT = httpx.Limits(keepalive_expiry=2.0)
"""A client gives an idle connection up before uvicorn closes it, after 5 s, under its hands."""


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
    if name != TOY_BIKE:
        raise NotFoundError(f"there is no procedure {name!r}")


def _choose_method(_procedure: str, asked: str | None) -> str:
    if asked not in (None, "b2", "b3"):
        raise ConfigError(f"no method {asked!r}; there are b2, b3")
    return asked or "b3"


@dataclass
class Rig:
    """The server's parts over one database, with hooks that a test can change."""

    config: ServerConfig
    store: Store
    closed: list[str] = field(default_factory=list)
    ready: bool = True
    on_close: Callable[[str], Any] | None = None
    validate_procedure: Callable[[str], None] = _validate_procedure
    job_settings: JobSettings = field(default_factory=JobSettings)

    def __post_init__(self) -> None:
        seconds = itertools.count()
        self.metrics = Metrics()
        secret = self.config.token
        self.tokens = TokenBook(
            bootstrap=secret.get_secret_value() if secret else None,
            exposed="rest_host" in self.config.exposed,
        )
        self.events = EventLog(self.store, capacity=50)
        self.feed = Feed()
        self.chooser = MethodChooser(
            procedures=ProcedureShelf(self.config.resolved_procedures_dir),
            bundles=BundleShelf(
                self.config.data_dir / "bundles", appearance_sha256="0" * 64, slot_count=2
            ),
            detectors=DetectorShelf(self.config.data_dir / "detectors", LocalEngine().add_model),
            clips=ClipShelf(
                self.config.data_dir / "storm",
                LocalEngine(),
                appearance_sha256="0" * 64,
            ),
            default="auto",
        )
        self.publisher = ProcedurePublisher(
            self.store,
            self.chooser.procedures,
            self.chooser.bundles,
            data_dir=self.config.data_dir,
            appearance=ModelIdentity(name="appearance", sha256="0" * 64),
            appearance_manifest=appearance_manifest_path(),
            rate_hz=10.0,
        )
        self.jobs = JobRunner(
            self.store, self.feed, self.config.data_dir, self.job_settings, notice_of=job_notice
        )
        hooks = SessionHooks(
            on_close=self._on_close,
            stats_of=lambda _session: {"rgb": {"packets": 3}},
            validate_procedure=lambda name: self.validate_procedure(name),
            choose_method=_choose_method,
        )
        self.registry = SessionRegistry(
            self.store, self.events, hooks, now=lambda: START + timedelta(seconds=next(seconds))
        )

    async def _on_close(self, session_id: str) -> None:
        self.closed.append(session_id)
        if self.on_close is not None:
            await self.on_close(session_id)

    async def command(self, _session: str, command: str, _command_id: str) -> CommandOutcome:
        return CommandOutcome(accepted=False, text=f"nobody does {command}")

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
                tokens=self.tokens,
                feed=self.feed,
                jobs=self.jobs,
                readiness=lambda: [Check(name="models", ok=self.ready, detail="2 of 2")],
                chooser=self.chooser,
                publisher=self.publisher,
                command=self.command,
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
            self.feed.stop()
            server.should_exit = True
            await running


Packet = dict[str, Any]  # arguments of `Sender.offer`


async def eventually(true: Callable[[], Any], what: str = "") -> None:
    """Wait until something holds; twenty seconds are a hung test, not a measurement."""
    try:
        async with asyncio.timeout(20):
            while not true():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"did not come to pass: {what or true}") from None


@dataclass
class Live:
    """A whole running server, its REST client and the real sources that stream to it."""

    server: RunningServer
    rest: httpx.AsyncClient
    data_dir: Path
    senders: list[tuple[Sender, asyncio.Task[None]]] = field(default_factory=list)

    def connect(self, device: str, *streams: str, **options: Any) -> Sender:
        """Start a source; options are those of `Source`, `callbacks`, `instance`, `server`."""
        sender = Sender(
            Source(
                device=device,
                client="test 1",
                streams=streams,
                **{k: v for k, v in options.items() if k not in ("callbacks", "instance", "key")},
            ),
            server=self.server.wire_endpoint,
            instance=options.get("instance", secrets.token_hex(8)),
            callbacks=options.get("callbacks", Callbacks()),
            key=options.get("key"),
        )
        self.senders.append((sender, asyncio.create_task(sender.run())))
        return sender

    def running(self, sender: Sender) -> asyncio.Task[None]:
        """The task of a source."""
        return next(task for other, task in self.senders if other is sender)

    async def join(self, device: str, *streams: str, **options: Any) -> Sender:
        """Start a source and wait until it is welcome."""
        sender = self.connect(device, *streams, **options)
        await eventually(lambda: sender.state == "open", f"{device} is welcome")
        return sender

    @staticmethod
    async def send(sender: Sender, stream: str, packets: Iterable[Packet]) -> None:
        """Send packets, each when there is credit for it."""
        for packet in packets:
            if not sender.has_room(stream):
                await sender.room(stream)
            sender.offer(stream, **packet)

    async def get(self, path: str) -> Any:
        """The JSON that REST answers."""
        answer = await self.rest.get(f"/api/v1{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def stats(self, sender: Sender) -> dict[str, Any]:
        """Counters of a source's session."""
        found: dict[str, Any] = (await self.get(f"/sessions/{sender.session}/stats"))["stats"]
        return found

    async def worked_off(self, sender: Sender, stream: str, packet_count: int) -> dict[str, Any]:
        """Wait until so many packets of a stream were taken and worked off; the counters."""
        while True:
            stats = await self.stats(sender)
            lane = stats["streams"].get(stream)
            if lane and lane["packets"] >= packet_count and not lane["waiting"]:
                return stats
            await asyncio.sleep(0.02)

    async def until_stats(self, sender: Sender, true: Callable[[dict[str, Any]], bool]) -> None:
        """Wait until the session's counters are as wanted; the test's time limit ends it."""
        while not true(await self.stats(sender)):  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.02)

    async def steps(self, sender: Sender) -> list[tuple[int, int]]:
        """(frame, step id) of the session's step events, as REST lists them."""
        events = await self.get(f"/sessions/{sender.session}/events?limit=1000")
        return [(event["frame_idx"], event["step_id"]) for event in events["events"]]

    async def close_session(self, sender: Sender) -> dict[str, Any]:
        """Close a source's session over REST; it must close without an error."""
        answer = await self.rest.post(f"/api/v1/sessions/{sender.session}/close", timeout=60)
        closed: dict[str, Any] = answer.json()
        assert (closed["state"], closed["error"]) == ("closed", None)
        return closed


class RawSource:
    """A source that numbers and describes its packets as it likes, within its first credit."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(live.server.wire_endpoint)
        self.session = ""
        self._epoch = 0

    async def hear(self, kind: type[Any]) -> Any:
        """The next message of this kind."""
        async with asyncio.timeout(20):
            while not isinstance(
                message := wire.decode_server_message(await self._socket.recv()), kind
            ):
                pass
        return message

    async def join(self, device: str, *streams: str, **fields: Any) -> None:
        hello = wire.Hello(
            protocol=wire.PROTOCOL,
            device=device,
            client="raw",
            instance="i1",
            kind="expert",
            streams=list(streams),
            **fields,
        )
        await self._socket.send(wire.encode(hello))
        welcome = await self.hear(wire.Welcome)
        self.session, self._epoch = welcome.session, welcome.epoch

    async def send(self, stream: str, sequence: int, packet: Packet, **changes: Any) -> None:
        fields = {**packet, **changes}
        payload = fields.pop("payload")
        header = wire.PacketHeader(
            protocol=wire.PROTOCOL,
            session=self.session,
            epoch=self._epoch,
            stream=stream,
            sequence=sequence,
            send_time_ns=0,
            **fields,
        )
        await self._socket.send_multipart([wire.encode(header), payload])

    async def finish(self) -> None:
        """Say that all was sent and have the session closed."""
        finished = wire.Finished(protocol=wire.PROTOCOL, last_sequences={}, close=True)
        await self._socket.send(wire.encode(finished))
        await self.hear(wire.Closed)

    def close(self) -> None:
        self._socket.close()


@asynccontextmanager
async def live_server(
    data_dir: Path, *, options: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Live]:
    """A real server on free ports; `options` are those of `running_server`."""
    ports = {"wire_bind": "tcp://127.0.0.1:*", "publish_bind": "tcp://127.0.0.1:*", "rest_port": 0}
    config = ServerConfig(data_dir=data_dir, **{**ports, **settings})
    async with (
        running_server(config, **(options or {})) as server,
        httpx.AsyncClient(base_url=server.rest_url, timeout=30, limits=PATIENT) as rest,
    ):
        live = Live(server, rest, data_dir)
        try:
            yield live
        finally:
            for _, task in live.senders:
                task.cancel()
            ends = await asyncio.gather(*(t for _, t in live.senders), return_exceptions=True)
            broken = [e for e in ends if isinstance(e, Exception)]
            assert all(isinstance(e, KeystepError) for e in broken), broken


class ServerProcess:
    """`keystep serve` as a process that is killed and started again on the same data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wire = "tcp://127.0.0.1:*"
        self.rest = ""
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, rest_port: str = "0") -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "keystep_capture.cli", "serve", "--rest-port", rest_port),
            *("--data-dir", str(self.folder), "--publish-bind", "tcp://127.0.0.1:*"),
            *("--wire-bind", self.wire),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if line.startswith(b"READY "):
                ready = dict(part.split("=", 1) for part in line.decode().split()[1:])
                self.wire, self.rest = ready["wire"], ready["rest"]
                return
        raise AssertionError("the server ended before it was ready")

    async def kill(self) -> None:
        """SIGKILL: it cannot do anything about it."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def signal(self, number: int) -> None:
        """Have it hang, or go on."""
        assert self._process is not None
        self._process.send_signal(number)

    async def get(self, path: str) -> Any:
        async with httpx.AsyncClient(base_url=self.rest, timeout=60, limits=PATIENT) as rest:
            answer = await rest.get(f"/api/v1{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()


def pictures(path: Path, size: tuple[int, int]) -> Iterator[av.VideoFrame]:
    """A video's pictures, scaled to (width, height)."""
    with av.open(path) as container:
        for frame in container.decode(video=0):
            yield frame.reformat(width=size[0], height=size[1], format="yuv420p")


def encode_h264(
    frames: Iterable[av.VideoFrame],
    *,
    rate_hz: float = 30.0,
    gop: int = 30,
    first_frame: int = 0,
) -> list[Packet]:
    """Pictures as PV sends them: Annex B, one access unit a packet, no B frames."""
    encoder: av.VideoCodecContext | None = None
    packets: list[Packet] = []
    for number, frame in enumerate(frames):
        if encoder is None:
            encoder = av.VideoCodecContext.create("libx264", "w")
            encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, "yuv420p"
            encoder.time_base, encoder.framerate = Fraction(1, 30), Fraction(30)
            encoder.gop_size, encoder.max_b_frames, encoder.thread_count = gop, 0, 1
            encoder.options = {
                "preset": "ultrafast",
                "tune": "zerolatency",
                "x264-params": "aud=1:repeat-headers=1:scenecut=0",
            }
        frame.pts, frame.time_base = number, encoder.time_base
        frame.pict_type = av.video.frame.PictureType.NONE
        (packet,) = encoder.encode(frame)
        packets.append(
            {
                "device_time_ns": round((first_frame + number) * 1e9 / rate_hz),
                "payload": bytes(packet),
                "encoding": "h264",
                "keyframe": packet.is_keyframe,
                "width": frame.width,
                "height": frame.height,
            }
        )
    return packets


def detection_packets(frames: Iterable[Iterable[Any]], first_frame: int = 0) -> list[Packet]:
    """A detector's rows (class, confidence, x, y, width, height), one packet a frame at 10 Hz."""
    return [
        {
            "device_time_ns": frame_idx * 100_000_000,
            "payload": np.array(list(rows), "<f8").tobytes(),
            "encoding": "detections_f64",
            "frame_idx": frame_idx,
        }
        for frame_idx, rows in enumerate(frames, start=first_frame)
    ]


@pytest.fixture(scope="session")
def coffee() -> list[Packet]:
    """The real video sample as PV H.264, 640x360, 29.97 Hz."""
    sample = find_sample("pour-coffee")
    assert sample.video_path is not None
    return encode_h264(pictures(sample.video_path, (640, 360)), rate_hz=sample.frame_rate_hz)


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A bundle made from the recording of a simulated expert's session (`guided_session`)."""
    import guided_session as cart

    folder = tmp_path_factory.mktemp("expert")
    packets = cart.cart_packets(encode_h264, pictures)

    async def record() -> str:
        async with live_server(folder / "data") as live:
            sender = await live.join("hl2", *cart.STREAMS, replay=True, kind="expert")
            for _, stream, packet in packets:
                await live.send(sender, stream, [packet])
            await live.close_session(sender)
            return str(sender.session)

    with ThreadPoolExecutor(1) as other:  # pytest's own loop may run
        session = other.submit(lambda: asyncio.run(record())).result()
    recording = folder / "data" / "sessions" / session / "recording"
    features = cart.features_of(recording, folder / "features")
    bundle = cart.make_cart_bundle(features, folder / "bundle")
    return cart.Learned(packets=packets, bundle=bundle)


@pytest.fixture
async def make_server(tmp_path: Path) -> AsyncIterator[Any]:
    servers: list[ServerProcess] = []

    async def make(name: str) -> ServerProcess:
        server = ServerProcess(tmp_path / name)
        servers.append(server)
        await server.start()
        return server

    yield make
    for server in servers:
        await server.kill()


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with live_server(tmp_path) as running:
        yield running


class ForwardClock:
    """The real clock, which a test can set forward."""

    def __init__(self) -> None:
        self._ahead_ns = 0

    def __call__(self) -> int:
        return time.monotonic_ns() + self._ahead_ns

    def advance(self, seconds: float) -> None:
        self._ahead_ns += round(seconds * 1e9)


@pytest.fixture
def clock() -> ForwardClock:
    return ForwardClock()


@pytest.fixture
def raw(live: Live) -> Iterator[RawSource]:
    source = RawSource(live)
    yield source
    source.close()


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """This file's functions, for tests that start servers or make packets themselves."""
    return SimpleNamespace(
        live_server=live_server,
        raw_source=RawSource,
        eventually=eventually,
        encode_h264=encode_h264,
        pictures=pictures,
        detection_packets=detection_packets,
    )


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
