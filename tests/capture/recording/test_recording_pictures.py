"""Pictures and ticks read back from a recording."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame

from keystep_capture.recording import Recording, part_paths
from keystep_capture.recording.export import export_mp4
from keystep_capture.recording.pictures import read_frame_at, read_frames, read_ticks

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


def test_the_picture_on_show_at_a_time_is_the_last_one_until_then(
    recorded: Path, tools: Any
) -> None:
    times = [h.device_time_ns for h, _ in tools.session_packets() if h.stream == "rgb"]
    whole = dict(read_frames([recorded], [(1, time_ns) for time_ns in times]))
    with Recording(recorded) as recording:
        for asked, expected in (
            (times[41] - 1, times[40]),
            (times[41], times[41]),
            (times[0] - SECOND, times[0]),
            (times[-1] + SECOND, times[-1]),
        ):
            found = read_frame_at(recording, asked, epoch=1)
            assert found is not None
            assert found[0] == expected
            np.testing.assert_array_equal(found[1].to_ndarray(), whole[1, expected].to_ndarray())
        assert read_frame_at(recording, times[0], epoch=7) is None


def test_a_stretch_is_exported_from_the_key_frame_before_it(
    recorded: Path, tmp_path: Path, tools: Any
) -> None:
    headers = [h for h, _ in tools.session_packets() if h.stream == "rgb"]
    start_ns, end_ns = headers[40].device_time_ns, headers[70].device_time_ns
    path = tmp_path / "clip.mp4"
    with Recording(recorded) as recording:
        count = export_mp4(recording, path, start_ns=start_ns, end_ns=end_ns)
    first = max(n for n, h in enumerate(headers) if h.keyframe and n <= 40)
    assert count == 71 - first
    with av.open(path) as video:
        shown = [frame.to_ndarray() for frame in video.decode(video=0)]
    wanted = [(1, h.device_time_ns) for h in headers[first:71]]
    whole = dict(read_frames([recorded], wanted))
    for frame, moment in zip(shown, wanted, strict=True):
        np.testing.assert_array_equal(frame, whole[moment].to_ndarray())


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
