"""The `detections` stream of a sample: a detector's real output, one packet a frame.

hl2ss has no port for detections, so they go to the server beside the bridge, at the device times
at which the simulated headset would have captured their frames.
"""

from __future__ import annotations

import asyncio
import secrets
from importlib.metadata import version

import numpy as np

from keystep_capture.errors import ConfigError, DeviceError
from keystep_capture.key_files import DeviceKey
from keystep_capture.samples import DetectionRow, Sample, load_detection_rows, load_truth
from keystep_capture.sender import Sender, Source
from keystep_hololens.hl2ss import conventions
from keystep_hololens.simulator import SimulatedHeadset

_HNS_PER_S = 10_000_000


def procedure_of(sample: Sample) -> str | None:
    """Name of the built-in procedure that a sample's recording follows."""
    return None if sample.procedure is None else f"industreal-{sample.procedure}"


async def publish_detections(
    sample: Sample,
    headset: SimulatedHeadset,
    *,
    server: str,
    device: str,
    method: str | None = None,
    key: DeviceKey | None = None,
) -> None:
    """Send a sample's detections, empty frames included, as the headset's playback goes on.

    Returns when the last frame is sent; the session stays open. `method` is what a new session is
    to recognise its steps by; None leaves it to the server.

    Raises:
        ConfigError: The sample has no detections.
        WireError: The server refused this source for good.
        DeviceError: The headset's playback never began.
    """
    if sample.detections_path is None:
        raise ConfigError(f"sample {sample.name!r} has no detections to publish")
    frames = load_detection_rows(sample.detections_path, frame_count=load_truth(sample).frame_count)
    time_scale = headset.clock.time_scale
    sender = Sender(
        Source(
            device=device,
            client=f"keystep-detections {version('keystep')}",
            streams=("detections",),
            procedure=procedure_of(sample),
            method=method,
            replay=time_scale != 1.0,
            time_scale=time_scale,
        ),
        server=server,
        instance=secrets.token_hex(8),
        key=key,
    )
    link = asyncio.create_task(sender.run(), name="detections")
    sending = asyncio.create_task(_send(frames, sample, headset, sender))
    try:
        await asyncio.wait([link, sending], return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
        else:
            link.result()  # closed or refused before the end
    finally:
        for task in (sending, link):
            task.cancel()
        await asyncio.gather(sending, link, return_exceptions=True)


async def _send(
    frames: list[list[DetectionRow]],
    sample: Sample,
    headset: SimulatedHeadset,
    sender: Sender,
) -> None:
    await headset.playback.started.wait()
    origin_hns = headset.playback_origin_hns
    if origin_hns is None:
        raise DeviceError("the simulated headset says its playback began, but not when")
    clock = asyncio.create_task(_tell_clock(headset, sender))
    try:
        for frame_idx, rows in enumerate(frames):
            captured_hns = origin_hns + round(frame_idx * _HNS_PER_S / sample.frame_rate_hz)
            await headset.clock.sleep_until(captured_hns)
            await sender.room("detections")
            sender.offer(
                "detections",
                conventions.device_time_ns(captured_hns),
                np.array(rows, "<f8").tobytes(),
                encoding="detections_f64",
                frame_idx=frame_idx,
            )
        await sender.finish(close=False)
    finally:
        clock.cancel()


async def _tell_clock(headset: SimulatedHeadset, sender: Sender) -> None:
    """The simulated headset's clock is this process's own: no round trip is needed to read it."""
    while True:
        sender.tell_device_clock(
            device_time_ns=conventions.device_time_ns(headset.clock.now_hns()),
            bridge_time_ns=headset.clock.monotonic_ns(),
            uncertainty_ns=1000,
            rate=headset.clock.time_scale,
        )
        await asyncio.sleep(1.0)
