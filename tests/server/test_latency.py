"""From capture to display: what is measured against clocks whose truth is known."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from keystep_capture import wire
from keystep_capture.peers import Peer
from keystep_server.latency import MAX_SHOWN, DisplayLatencies, Evidence

MS = 1_000_000
NOW_NS = 1_000_000 * MS  # the server's clock
delays = st.integers(0, 80 * MS)
offsets = st.integers(-(10**15), 10**15)


def peer_with(
    bridge_offset_ns: int, device_offset_ns: int, there_ns: int, back_ns: int, *, epoch: int = 1
) -> Peer:
    """A bridge whose clock, and its headset's, were read in round trips of these delays.

    Offsets are those of bridge and headset to the server's clock.
    """
    hello = wire.Hello(
        protocol=wire.PROTOCOL,
        device="hl2",
        client="test",
        instance="i1",
        kind="guided",
        streams=["head"],
    )
    peer = Peer(
        routing_id=b"1",
        user=None,
        fd=-1,
        hello=hello,
        session_id="ses",
        epoch=epoch,
        lanes={},
        heard_ns=NOW_NS,
    )
    read_ns = NOW_NS - there_ns - back_ns
    peer.clock.add(
        send_ns=read_ns,
        remote_receive_ns=read_ns + there_ns + bridge_offset_ns,
        receive_ns=NOW_NS,
    )
    asked_ns, answered_ns = read_ns, NOW_NS  # the bridge asks the headset in the same way
    peer.device_clock = wire.DeviceClock(
        protocol=wire.PROTOCOL,
        epoch=epoch,
        device_time_ns=asked_ns + there_ns + device_offset_ns,
        bridge_time_ns=(asked_ns + answered_ns) // 2 + bridge_offset_ns,
        uncertainty_ns=(answered_ns - asked_ns) // 2 + 1,
        rate=1.0,
    )
    return peer


def ack(revision: int, time_ns: int, *, displayed: bool = True) -> wire.GuidanceAck:
    return wire.GuidanceAck(
        protocol=wire.PROTOCOL, revision=revision, displayed_time_ns=time_ns, displayed=displayed
    )


@given(
    bridge_offset_ns=offsets,
    device_offset_ns=offsets,
    there_ns=delays,
    back_ns=delays,
    took_ns=st.integers(0, 500 * MS),
)
def test_the_uncertainty_covers_the_truth_however_asymmetric_the_paths(
    bridge_offset_ns: int, device_offset_ns: int, there_ns: int, back_ns: int, took_ns: int
) -> None:
    peer = peer_with(bridge_offset_ns, device_offset_ns, there_ns, back_ns)
    latencies = DisplayLatencies()
    captured_ns = NOW_NS - took_ns
    evidence = Evidence(
        device_time_ns=captured_ns + device_offset_ns, epoch=1, sent_ns=NOW_NS - took_ns // 2
    )
    latencies.expect(3, evidence)
    measured = latencies.close(peer, ack(3, NOW_NS + bridge_offset_ns), NOW_NS)
    assert measured is not None
    assert abs(measured.latency_ms - took_ns / MS) <= measured.uncertainty_ms + 1e-3
    assert measured.uncertainty_ms <= (there_ns + back_ns) / MS / 2 + 0.2


def test_a_revision_is_measured_once_and_only_when_it_is_on_show() -> None:
    peer, latencies = peer_with(7, 11, MS, MS), DisplayLatencies()
    evidence = Evidence(device_time_ns=NOW_NS - 50 * MS + 11, epoch=1, sent_ns=NOW_NS - 20 * MS)
    latencies.expect(3, evidence)
    assert latencies.close(peer, ack(3, NOW_NS + 7, displayed=False), NOW_NS) is None
    assert latencies.close(peer, ack(2, NOW_NS + 7), NOW_NS) is None
    assert latencies.close(peer, ack(3, NOW_NS + 7), NOW_NS) is not None
    assert latencies.close(peer, ack(3, NOW_NS + 7), NOW_NS) is None


def test_times_of_another_epoch_are_not_compared() -> None:
    latencies = DisplayLatencies()
    latencies.expect(3, Evidence(device_time_ns=NOW_NS, epoch=1, sent_ns=NOW_NS))
    restarted = peer_with(0, 0, MS, MS, epoch=2)
    assert latencies.close(restarted, ack(3, NOW_NS), NOW_NS) is None


def test_revisions_that_are_never_acknowledged_take_no_memory() -> None:
    peer, latencies = peer_with(0, 0, MS, MS), DisplayLatencies()
    evidence = Evidence(device_time_ns=NOW_NS, epoch=1, sent_ns=NOW_NS)
    for revision in range(10 * MAX_SHOWN):
        latencies.expect(revision, evidence)
    closed = [latencies.close(peer, ack(n, NOW_NS), NOW_NS) for n in range(10 * MAX_SHOWN)]
    assert sum(one is not None for one in closed) == MAX_SHOWN
