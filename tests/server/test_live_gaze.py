"""Sessions guided by what is around the wearer's gaze: live as extracted, and published so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import guided_session as cart
from keystep_server.cue_rows import CueRows

CUE = "gaze_appearance"
API = "/api/v1"

pytestmark = pytest.mark.timeout(300)  # sessions of real pictures


async def play(live: Any, packets: list[cart.Packet], **options: Any) -> Any:
    sender = await live.join("hl2", *cart.STREAMS, replay=True, **options)
    for _, stream, packet in packets:
        await live.send(sender, stream, [packet])
    await live.close_session(sender)
    return sender


async def publish(live: Any, session: str) -> Any:
    path = f"{API}/sessions/{session}/key-steps/publish"
    return await live.rest.post(path, json={"name": cart.NAME}, timeout=120)


async def test_a_recording_with_gaze_is_published_by_it_and_seen_live_as_extracted(
    live: Any, learned: cart.Learned, tmp_path: Path
) -> None:
    watched = cart.gazing_packets(learned.packets, holes=False)
    expert = await play(live, watched, kind="expert", task="cart")
    answer = await publish(live, expert.session)
    assert answer.status_code == 201, answer.text
    bundle = await live.get(f"/bundles/{answer.json()['bundle_id']}")
    part, stand_in = bundle["parts"]
    assert (part["cue"], part["source"]["extractor"]) == (CUE, "gaze-crop")
    assert stand_in["cue"] == "appearance"
    assert not any("instead_of" in each["source"] for each in bundle["parts"])

    packets = cart.gazing_packets(learned.packets, holes=True)
    novice = await play(live, packets, procedure=cart.NAME, kind="expert")  # all is recorded
    folder = live.data_dir / "sessions" / str(novice.session)
    features = cart.features_of(folder / "recording", tmp_path / "features", (CUE,))
    extracted = features.cues[CUE]
    rows = CueRows(folder / "cues.rows", {CUE: 1280})
    ticks = rows.read(0, rows.row_count)
    rows.close()
    assert len(ticks) == features.frame_count == cart.GAZE_FRAMES
    seen = np.array([tick.rows.get(CUE) is not None for tick in ticks])
    np.testing.assert_array_equal(seen, extracted.valid)
    assert not seen[32:40].any()  # no gaze
    assert not seen[60:65].any()  # no camera
    assert not seen[92:95].any()  # beyond the picture
    assert seen.sum() > 100
    for tick in ticks:
        if seen[tick.index]:
            # One picture at a time live, sixteen in an extraction: the last bits of sums differ.
            np.testing.assert_allclose(tick.rows[CUE], extracted.features[tick.index], atol=1e-4)


async def test_without_camera_poses_it_is_the_whole_picture_and_says_so(
    live: Any, learned: cart.Learned
) -> None:
    packets = [packet for packet in learned.packets if packet[0] < 13e9]
    expert = await play(live, packets, kind="expert", task="cart")
    answer = await publish(live, expert.session)
    assert answer.status_code == 201, answer.text
    bundle = await live.get(f"/bundles/{answer.json()['bundle_id']}")
    [part] = bundle["parts"]
    assert part["cue"] == "appearance"
    assert part["source"]["instead_of"] == CUE
    assert "no camera poses" in part["source"]["because"]


async def test_a_wearer_without_gaze_is_guided_by_the_whole_picture(
    live: Any, learned: cart.Learned
) -> None:
    watched = cart.gazing_packets(learned.packets, holes=False)
    expert = await play(live, watched, kind="expert", task="cart")
    assert (await publish(live, expert.session)).status_code == 201
    blind = [packet for packet in watched if packet[1] != "gaze"]
    novice = await play(live, blind, procedure=cart.NAME)
    events = (await live.get(f"/sessions/{novice.session}/events?limit=1000"))["events"]
    assert [event for event in events if not event["retracted"]]
