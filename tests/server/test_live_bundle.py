"""Sessions that are guided by a bundle made from one recording: simulated toy carts."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import guided_session as cart
from keystep_capture.errors import RefusedError
from keystep_capture.sender import Callbacks
from keystep_server.cue_rows import CueRows
from keystep_server.features import APPEARANCE, read_ticks

NAME = cart.NAME

pytestmark = pytest.mark.timeout(300)  # several sessions of real pictures


async def play(live: Any, packets: list[cart.Packet], **options: Any) -> Any:
    """Stream packets as a lossless replay."""
    sender = await live.join("hl2", *cart.STREAMS, replay=True, **options)
    for _, stream, packet in packets:
        await live.send(sender, stream, [packet])
    return sender


@pytest.fixture
async def guiding(learned: cart.Learned, tools: Any, tmp_path: Path) -> AsyncIterator[Any]:
    learned.publish(tmp_path)
    async with tools.live_server(tmp_path) as live:
        yield live


async def test_a_session_is_guided_by_the_experts_key_steps(
    guiding: Any, learned: cart.Learned, tmp_path: Path
) -> None:
    told: list[Any] = []
    sender = await play(
        guiding,
        learned.packets,
        procedure=NAME,
        callbacks=Callbacks(on_guidance=told.append),
    )
    closed = await guiding.close_session(sender)
    assert closed["method"] == "key_steps"
    listed = await guiding.get(f"/sessions/{sender.session}/events?limit=1000")
    standing = [event for event in listed["events"] if not event["retracted"]]
    assert [event["step_id"] for event in standing] == [1, 2, 3, 4, 5]
    assert {event["branch"] for event in standing} == {"key_step_filter"}
    assert standing[0]["title"] == "Install chassis"
    for event, segment in zip(standing, cart.SEGMENTS, strict=True):
        assert abs(event["frame_idx"] - segment.end_tick) <= 30
    texts = [guidance.text for guidance in told]
    assert texts[0] == "Install chassis."
    assert told[-1].progress == (5, 5)
    steps = (await guiding.get(f"/sessions/{sender.session}/key-steps"))["key_steps"]
    progress = [step["status"] for step in steps if step["source"] == "procedure"]
    assert progress == ["completed"] * 5


async def test_live_cues_are_those_of_an_extraction_of_the_recording(
    guiding: Any, learned: cart.Learned, tmp_path: Path
) -> None:
    sender = await play(guiding, learned.packets, procedure=NAME, kind="expert")
    await guiding.close_session(sender)
    folder = tmp_path / "sessions" / str(sender.session)
    features = cart.features_of(folder / "recording", tmp_path / "features")
    stored = read_ticks(folder / "ticks.rows")
    cues = [cue for cue in cart.CUES if cue in ("motion", "right_hand")]
    sizes = {cue: cart.CUE_SIZES[cue] for cue in cues}
    rows = CueRows(folder / "cues.rows", sizes)
    live = rows.read(0, rows.row_count)
    rows.close()
    assert [tick.index for tick in live] == list(range(len(features.times_ns)))
    assert len(live) == len(stored) == cart.LAST_FRAME
    for cue in cues:
        extracted = features.cues[cue]
        for tick in live:
            row = tick.rows.get(cue)
            assert (row is not None) == extracted.valid[tick.index]
            if row is not None:
                assert row.tobytes() == extracted.features[tick.index].tobytes()
    appearance = features.cues["appearance"]
    assert np.array_equal((stored["cues"] & APPEARANCE) != 0, appearance.valid)
    # One picture at a time live, sixteen in an extraction: the last bits of sums differ.
    np.testing.assert_allclose(stored["appearance"], appearance.features, atol=1e-4)


async def test_the_same_replay_gives_the_same_events_beside_another_session(
    guiding: Any, learned: cart.Learned
) -> None:
    async def run(device: str) -> list[tuple[Any, ...]]:
        sender = await guiding.join(device, *cart.STREAMS, replay=True, procedure=NAME)
        for _, stream, packet in learned.packets:
            await guiding.send(sender, stream, [packet])
        await guiding.close_session(sender)
        listed = await guiding.get(f"/sessions/{sender.session}/events?limit=1000")
        keys = ("frame_idx", "step_id", "device_time_ns", "confidence", "retracted")
        return [tuple(event[key] for key in keys) for event in listed["events"]]

    first, second = await asyncio.gather(run("hl2-a"), run("hl2-b"))
    assert first
    assert first == second == await run("hl2-c")


async def test_a_damaged_or_missing_bundle_is_refused_in_plain_words(
    guiding: Any, learned: cart.Learned, tmp_path: Path
) -> None:
    folder = tmp_path / "bundles" / learned.bundle.id
    prototypes = folder / "prototypes.npz"
    content = prototypes.read_bytes()
    prototypes.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    body = {"device_id": "hl2", "kind": "guided", "procedure": NAME}
    answer = await guiding.rest.post("/api/v1/sessions", json=body)
    assert (answer.status_code, "damaged" in answer.json()["detail"]) == (422, True)
    shutil.rmtree(folder)
    answer = await guiding.rest.post("/api/v1/sessions", json=body)
    assert (answer.status_code, "not on this server" in answer.json()["detail"]) == (404, True)
    sender = guiding.connect("hl2", *cart.STREAMS, procedure=NAME)
    with pytest.raises(RefusedError, match="not on this server"):
        await guiding.running(sender)


async def test_only_the_bundle_can_follow_a_procedure_that_pins_one(guiding: Any) -> None:
    body = {"device_id": "hl2", "kind": "guided", "procedure": NAME, "method": "b3"}
    answer = await guiding.rest.post("/api/v1/sessions", json=body)
    assert answer.status_code == 422
    assert "pins a bundle" in answer.json()["detail"]


async def test_a_paused_session_reports_nothing_and_goes_on(
    guiding: Any, learned: cart.Learned
) -> None:
    sender = await guiding.join("hl2", *cart.STREAMS, replay=True, procedure=NAME)
    path = f"/api/v1/sessions/{sender.session}"
    at = next(n for n, (time_ns, _, _) in enumerate(learned.packets) if time_ns >= 9 * 10**9)
    for number, (_, stream, packet) in enumerate(learned.packets):
        if number in (at, at + 1500):
            command = {"command": "pause" if number == at else "go on", "command_id": str(number)}
            await guiding.worked_off(sender, "rgb", 1)
            answer = await guiding.rest.post(f"{path}/commands", json=command)
            assert answer.status_code == 200, answer.text
        await guiding.send(sender, stream, [packet])
    await guiding.close_session(sender)
    listed = await guiding.get(f"/sessions/{sender.session}/events?limit=1000")
    times_s = [int(event["device_time_ns"]) / 1e9 for event in listed["events"]]
    paused_s = [learned.packets[n][0] / 1e9 for n in (at, at + 1500)]
    assert times_s
    assert not [t for t in times_s if paused_s[0] + 1.5 < t < paused_s[1] - 0.5]
