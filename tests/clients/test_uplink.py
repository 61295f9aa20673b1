"""Restarts of the headset as the packets' times show them, without any socket."""

from __future__ import annotations

import time

import pytest

from keystep_capture.errors import DeviceError
from keystep_capture.sender import Sender, Source
from keystep_hololens.uplink import Uplink
from keystep_hololens.wire_packets import Outgoing

HNS = 10_000_000  # a second
STREAMS = ("head", "accelerometer", "calibration")


class Restarts:
    """An uplink that counts what it takes for a restart."""

    def __init__(self) -> None:
        self.count = 0
        source = Source(device="hl2", client="test", streams=STREAMS)
        self.sender = Sender(source, server="tcp://127.0.0.1:9", instance="i1")
        self.uplink = Uplink(
            self.sender,
            streams=frozenset(STREAMS),
            replay=False,
            clock=time.monotonic_ns,
            on_restart=self._begin,
        )

    def _begin(self) -> None:
        self.count += 1
        self.uplink.begin_epoch()


def head() -> Outgoing:
    return Outgoing(stream="head", payload=b"", encoding="pose_f32", valid=0)


def constants(stream: str) -> Outgoing:
    return Outgoing(stream="calibration", payload=b"", encoding="none", calibrates=stream)


async def test_a_time_that_runs_back_is_a_restart_and_ends_the_connections_of_before() -> None:
    restarts = Restarts()
    before, after = restarts.uplink.open(), restarts.uplink.open()
    await before.send(100 * HNS, head())
    await after.send(5 * HNS, head())
    assert restarts.count == 1
    await after.send(6 * HNS, head())
    with pytest.raises(DeviceError, match="restarted"):
        await before.send(101 * HNS, head())
    await restarts.uplink.open().send(7 * HNS, head())
    assert restarts.count == 1


async def test_packets_out_of_order_are_no_restart() -> None:
    restarts = Restarts()
    feed = restarts.uplink.open()
    for timestamp_hns in (100 * HNS, 99 * HNS + 1, 100 * HNS):
        await feed.send(timestamp_hns, head())
    assert restarts.count == 0


async def test_constants_of_sensors_that_lag_behind_each_other_are_no_restart() -> None:
    restarts = Restarts()
    feed = restarts.uplink.open()
    for stream, seconds in (("accelerometer", 100), ("gyroscope", 5), ("accelerometer", 101)):
        await feed.calibrate(seconds * HNS, constants(stream))
    assert restarts.count == 0
    assert feed.sent_count == 2  # once each


async def test_constants_are_told_again_in_a_new_epoch() -> None:
    restarts = Restarts()
    await restarts.uplink.open().calibrate(HNS, constants("accelerometer"))
    restarts.uplink.begin_epoch()
    feed = restarts.uplink.open()
    await feed.calibrate(HNS, constants("accelerometer"))
    assert feed.sent_count == 1


async def test_a_time_that_no_headset_has_costs_the_connection_and_not_the_epoch() -> None:
    restarts = Restarts()
    feed = restarts.uplink.open()
    with pytest.raises(DeviceError, match="ns after boot"):
        await feed.send(2**63, head())
    await restarts.uplink.open().send(HNS, head())
    assert restarts.count == 0


async def test_what_the_stream_cannot_hold_costs_the_connection() -> None:
    feed = Restarts().uplink.open()
    too_large = Outgoing(stream="accelerometer", payload=bytes(20 * 1025), encoding="samples_f32")
    with pytest.raises(DeviceError, match="cannot be passed on"):
        await feed.send(HNS, too_large)


async def test_a_stream_that_is_not_wanted_is_left_out() -> None:
    feed = Restarts().uplink.open()
    await feed.send(HNS, Outgoing(stream="gaze", payload=b"", encoding="ray_f32", valid=0))
    assert feed.sent_count == 0
    assert not feed.wants("gaze", "hands")
