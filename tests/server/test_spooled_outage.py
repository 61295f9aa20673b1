"""A recording server is killed or hangs under an expert's source with a spool: nothing is missing.

Half a minute of a simulated stream, faster than it would be live; the video is real.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keystep_capture.recording import Recording
from keystep_capture.sender import Sender, Source
from keystep_capture.spool import Spool

STREAMS = ("rgb", "head", "gaze")
PERIOD_NS = 33_366_667


class Headset:
    """Offers 30 moments a second of its own time, without ever waiting."""

    def __init__(self, sender: Sender, coffee: list[Any]) -> None:
        self.sender, self._coffee = sender, coffee
        self.sent: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
        self._number = 0

    async def play(self, moments: int, *, speed: float = 4.0) -> None:
        for _ in range(moments):
            time_ns = self._number * PERIOD_NS
            pose = np.eye(4, dtype="<f4")
            pose[0, 3] = self._number
            picture = dict(self._coffee[self._number % len(self._coffee)])
            self._offer("rgb", picture | {"device_time_ns": time_ns})
            numbers = (("head", pose, "pose_f32"), ("gaze", pose.ravel()[:6], "ray_f32"))
            for stream, values, encoding in numbers:
                payload = np.ascontiguousarray(values).tobytes()
                fields = {"payload": payload, "encoding": encoding, "device_time_ns": time_ns}
                self._offer(stream, fields)
            self._number += 1
            await asyncio.sleep(PERIOD_NS / 1e9 / speed)

    def _offer(self, stream: str, fields: dict[str, Any]) -> None:
        assert self.sender.offer(stream, **fields)
        self.sent[stream].append((fields["device_time_ns"], fields["payload"]))


def recorded(folder: Path) -> dict[str, list[tuple[int, bytes]]]:
    found: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
    with Recording(folder) as recording:
        for packet in recording.packets():
            assert packet.header.epoch == 1
            found[packet.header.stream].append((packet.header.device_time_ns, packet.payload))
    return found


async def until(true: Any) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.02)


@pytest.mark.timeout(300)
async def test_every_packet_of_two_outages_is_in_the_recording_once(
    make_server: Any, coffee: Any, tmp_path: Path
) -> None:
    server = await make_server("server")
    spool = Spool(tmp_path / "spool", segment_bytes=200_000)
    source = Source(device="hl2", client="test", streams=STREAMS, kind="expert", replay=True)
    sender = Sender(source, server=server.wire, instance="one", spool=spool)
    link = asyncio.create_task(sender.run())
    headset = Headset(sender, coffee)
    await headset.play(100)
    await server.kill()
    await headset.play(450)
    assert sender.behind().in_spool
    await server.start()
    await headset.play(100)  # it catches up meanwhile
    await until(lambda: sender.is_welcome and not sender.behind().in_spool)
    server.signal(signal.SIGSTOP)
    await headset.play(450)
    server.signal(signal.SIGCONT)
    await sender.finish(close=True, timeout_s=120)
    await link
    assert not any(sender.dropped().values())
    found = recorded(server.folder / "sessions" / str(sender.session) / "recording")
    assert found == headset.sent
    stats = (await server.get(f"/sessions/{sender.session}/stats"))["stats"]
    assert {name: lane["lost"] for name, lane in stats["streams"].items()} == dict.fromkeys(
        STREAMS, 0
    )
    assert stats["features_left_out"] == {}  # nor was a tick passed over to catch up
    assert stats["ticks"] == stats["appearance_features"]
    times_ns = [time_ns for time_ns, _ in found["rgb"]]
    assert all(b - a == PERIOD_NS for a, b in itertools.pairwise(times_ns))
    assert list((tmp_path / "spool").glob("*.spool")) == []
