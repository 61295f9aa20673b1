"""Pictures and ticks read back from a recording."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from av.video.frame import VideoFrame

from keystep_capture.recording import Recording, part_paths
from keystep_capture.recording.pictures import read_frames, read_ticks

SECOND = 10**9


def test_pictures_of_moments_are_those_of_a_whole_decoding(recorded: Path, tools: Any) -> None:
    headers = [h for h, _ in tools.session_packets() if h.stream == "rgb"]
    wanted = [(1, headers[idx].device_time_ns) for idx in (0, 40, 149)]
    found = dict(read_frames(part_paths(recorded), wanted))
    whole = dict(read_frames([recorded], [(1, h.device_time_ns) for h in headers]))
    assert list(found) == wanted
    assert len(whole) == 150
    for moment, frame in found.items():
        np.testing.assert_array_equal(frame.to_ndarray(), whole[moment].to_ndarray())


def test_moments_that_cannot_be_decoded_are_left_out(tmp_path: Path, tools: Any) -> None:
    video = [one for one in tools.coffee_packets()[:60] if one[0].sequence != 20]
    folder = tools.record(tmp_path, video)
    wanted = [(1, video[idx][0].device_time_ns) for idx in range(len(video))] + [(2, 5)]
    found = [time_ns for (_, time_ns), _ in read_frames([folder], wanted)]
    lost = [h.device_time_ns for h, _ in video if 20 < h.sequence < 30]
    assert set(found) == {h.device_time_ns for h, _ in video} - set(lost)


def test_a_part_that_is_no_recording_is_passed_over(recorded: Path, tmp_path: Path) -> None:
    broken = tmp_path / "x.mcap"
    broken.write_bytes(b"")
    found = list(read_frames([broken, recorded], [(1, 10**12)]))
    assert len(found) == 1


def test_ticks_hold_every_stream(recorded: Path, tools: Any) -> None:
    with Recording(recorded) as recording:
        ticks = list(read_ticks(recording, epoch=1))
    assert len(ticks) == 50
    for tick in ticks:
        samples = {name: sample.value for name, sample in tick.samples.items() if sample}
        assert isinstance(samples["rgb"], VideoFrame)
        assert samples["head"].shape == (4, 4)
        assert samples["hands"].shape == (2, 26, 9)
        assert samples["detections"].shape == (1, 6)


def test_ticks_from_a_moment_on_are_those_of_the_whole(recorded: Path) -> None:
    start_ns = 10**12 + 2 * SECOND + 50_000_000
    with Recording(recorded) as recording:
        whole = [t.device_time_ns for t in read_ticks(recording, epoch=1, rate_hz=30.0)]
        some = list(read_ticks(recording, epoch=1, rate_hz=30.0, start_ns=start_ns))
    assert [tick.device_time_ns for tick in some] == [t for t in whole if t >= start_ns]
    assert all(tick.samples["rgb"] for tick in some)


def test_a_leading_sensor_that_had_nothing_still_makes_ticks(tmp_path: Path, tools: Any) -> None:
    sent = [(tools.packet("head", n, n * SECOND // 60, valid=0), b"") for n in range(60)]
    with Recording(tools.record(tmp_path, sent)) as recording:
        ticks = list(read_ticks(recording, epoch=1, leading="head"))
    assert len(ticks) == 10
    assert [sample.value for tick in ticks if (sample := tick.samples["head"])] == [None] * 10


def test_an_epoch_without_the_leading_stream_has_no_ticks(recorded: Path) -> None:
    with Recording(recorded) as recording:
        assert list(read_ticks(recording, epoch=7)) == []
