"""`keystep simulate`: a simulated HoloLens 2 on this machine.

What it needs is imported when it runs: every `keystep` command loads this module.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keystep_capture.errors import ConfigError
from keystep_capture.logs import set_up_logs
from keystep_capture.samples import SAMPLES, Sample, find_sample
from keystep_hololens.hl2ss.protocol import DEFAULT_BASE_PORT

DEFAULT_DEVICE = "hololens2-127-0-0-1"

if TYPE_CHECKING:
    from keystep_capture.key_files import DeviceKey
    from keystep_hololens.simulator import RecordedHeadset, SimulatedHeadset


def simulate(
    sample: Annotated[
        str | None, typer.Option(help=f"Bundled sample: {', '.join(sorted(SAMPLES))}.")
    ] = None,
    video: Annotated[
        Path | None, typer.Option(help="Any video file, in place of a sample.")
    ] = None,
    recording: Annotated[
        Path | None,
        typer.Option(help="A recording, in place of a sample: one .mcap file or its folder."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    base_port: Annotated[
        int, typer.Option(min=0, max=65514, help="Port of the first service; 0 takes free ports.")
    ] = DEFAULT_BASE_PORT,
    time_scale: Annotated[
        float, typer.Option(help="Device seconds per second; above 1 plays faster.")
    ] = 1.0,
    loop: Annotated[bool, typer.Option("--loop", help="Play over and over.")] = False,
    whole: Annotated[
        bool,
        typer.Option(
            "--whole",
            help="Every other sensor too, of a simulated room: depth, grey cameras, inertial "
            "sensors, eye tracker; a Unity app and voice input.",
        ),
    ] = False,
    microphone: Annotated[
        bool, typer.Option("--microphone", help="Sound too (a tone); with --whole.")
    ] = False,
    server: Annotated[
        str | None, typer.Option(help="Server to publish the sample's detections to.")
    ] = None,
    device_id: Annotated[
        str | None,
        typer.Option(help=f"Id of the headset, for the detections' session; {DEFAULT_DEVICE}."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Step recognition of a new session: b1, b2, b3, tracker; else the server's choice."
        ),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Key file of the headset, for --server off loopback.")
    ] = None,
) -> None:
    """Run a simulated HoloLens 2 (hl2ss) until its sample has played, or until Ctrl-C.

    The headset is simulated: real video or real head poses and gaze, invented time stamps,
    intrinsics and camera settings. It encodes H.264 or HEVC, as the bridge asks. With --whole,
    depth, grey pictures, inertial samples and eyes are of an invented room. With --recording
    nothing is invented: every stream that hl2ss has a port for, as it was recorded; what cannot
    be told is said on stderr.
    """
    from keystep_hololens.target import check_target, load_key

    set_up_logs("info")
    if recording is not None:
        given = {
            "--sample": sample,
            "--video": video,
            "--loop": loop,
            "--whole": whole,
            "--microphone": microphone,
            "--server": server,
            "--device-id": device_id,
            "--method": method,
            "--key": key,
        }
        _check_alone(given)
        asyncio.run(_run_recorded(recording, host=host, base_port=base_port, time_scale=time_scale))
        return
    chosen = choose_sample(sample, video)
    if microphone and not whole:
        raise ConfigError("--microphone is simulated with the room: give --whole too")
    headset = make_headset(
        chosen,
        video,
        host=host,
        base_port=base_port,
        time_scale=time_scale,
        loop=loop,
        whole=whole,
        microphone=microphone,
    )
    target = None
    if method is not None and server is None:
        raise ConfigError("--method is for the session that --server's detections go to")
    if server is not None:
        device_key, server, named = load_key(key, server=server, device=device_id)
        device = named or DEFAULT_DEVICE
        check_target(server=server, device=device, key=device_key)
        target = Target(server=server, device=device, method=method, key=device_key)
    asyncio.run(_run(headset, chosen, target))


def _check_alone(given: Mapping[str, object]) -> None:
    """Refuse options that a recording takes no part in."""
    for name, value in given.items():
        if value:
            raise ConfigError(f"{name} and --recording exclude each other")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a sample's detections go."""

    server: str
    device: str
    method: str | None
    key: DeviceKey | None


async def _run(headset: SimulatedHeadset, sample: Sample | None, target: Target | None) -> None:
    if target is not None and (sample is None or sample.detections_path is None):
        raise ConfigError("--server is for samples with detections; this one has none")
    await _run_until_played(headset, lambda: _play(headset, sample, target))


async def _run_recorded(path: Path, *, host: str, base_port: int, time_scale: float) -> None:
    from keystep_hololens.simulator import RecordedHeadset, UnityApp, VoiceControl

    headset = RecordedHeadset(
        path,
        host=host,
        base_port=base_port,
        time_scale=time_scale,
        app=UnityApp(),
        voice=VoiceControl(),
    )
    for remark in headset.remarks:
        typer.echo(remark, err=True)
    await _run_until_played(headset, headset.finished.wait)
    if headset.failure is not None:
        raise headset.failure


async def _run_until_played(
    headset: SimulatedHeadset | RecordedHeadset, play: Callable[[], Awaitable[object]]
) -> None:
    """Serve until all has played, or the process is asked to stop."""
    interrupted = _interruption()
    async with headset:
        announce(headset)
        stopping = asyncio.create_task(interrupted.wait())
        playing = asyncio.ensure_future(play())
        await asyncio.wait([stopping, playing], return_when=asyncio.FIRST_COMPLETED)
        if playing.done():
            playing.result()  # raises what went wrong
        for task in (stopping, playing):
            task.cancel()
        await asyncio.gather(stopping, playing, return_exceptions=True)


def _interruption() -> asyncio.Event:
    """An event that is set when the process is asked to stop."""
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    return asked


async def _play(headset: SimulatedHeadset, sample: Sample | None, target: Target | None) -> None:
    """Return when the sample has played and its detections are sent."""
    publishing = asyncio.create_task(_publish(headset, sample, target))
    finished = asyncio.create_task(headset.finished.wait())
    try:
        await asyncio.wait([publishing, finished], return_when=asyncio.FIRST_EXCEPTION)
        if publishing.done():
            publishing.result()
    finally:
        for task in (publishing, finished):
            task.cancel()
        await asyncio.gather(publishing, finished, return_exceptions=True)


async def _publish(headset: SimulatedHeadset, sample: Sample | None, target: Target | None) -> None:
    from keystep_hololens.detections import publish_detections

    if target is not None and sample is not None:
        await publish_detections(
            sample,
            headset,
            server=target.server,
            device=target.device,
            method=target.method,
            key=target.key,
        )


def choose_sample(name: str | None, video: Path | None) -> Sample | None:
    """Return the sample that was named, None where a video was given.

    Raises:
        ConfigError: Neither or both were given, or no such sample.
    """
    if (name is None) == (video is None):
        raise ConfigError("give either --sample NAME or --video FILE, or --recording PATH")
    return None if name is None else find_sample(name)


def make_headset(
    sample: Sample | None,
    video: Path | None,
    *,
    host: str,
    base_port: int,
    time_scale: float,
    loop: bool,
    whole: bool = False,
    microphone: bool = False,
) -> SimulatedHeadset:
    """Make the headset that plays a sample or a video file; `whole`: with every sensor."""
    from keystep_hololens.simulator import (
        DeviceClock,
        Room,
        SimulatedHeadset,
        UnityApp,
        VideoSource,
        VoiceControl,
    )

    if sample is not None:
        headset = SimulatedHeadset.of_sample(
            sample,
            host=host,
            base_port=base_port,
            time_scale=time_scale,
            loop=loop,
            whole=whole,
            microphone=microphone,
        )
        headset.app, headset.voice = UnityApp(), VoiceControl()
        return headset
    assert video is not None
    return SimulatedHeadset(
        video=VideoSource.open(video, loop=loop),
        room=Room() if whole else None,
        app=UnityApp(),
        voice=VoiceControl(),
        microphone=microphone,
        host=host,
        base_port=base_port,
        clock=DeviceClock(time_scale=time_scale),
    )


def announce(headset: SimulatedHeadset | RecordedHeadset) -> None:
    """Say what is served: one line for people, one for programs."""
    ports = ", ".join(f"{name} {number}" for name, number in headset.open_ports.items())
    typer.echo(f"Simulated HoloLens 2 on {headset.host}: {ports}")
    typer.echo(f"READY base_port={headset.base_port}")
