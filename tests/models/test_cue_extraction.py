"""Features of recordings: real video through the real models, cached, resumed, with gaps."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from keystep_capture.errors import ConfigError, DataError
from keystep_capture.samples.catalogue import find_sample
from keystep_models.steps.cue_extraction import CueChoice, device_moments, extract_features
from keystep_models.steps.recording_source import Moment, open_recording

COFFEE = find_sample("pour-coffee").video_path
assert COFFEE is not None


class Recorded:
    """Simulated ticks: a textured picture that moves, head and hands, with holes."""

    name = "simulated"
    warnings: tuple[str, ...] = ()

    def __init__(self, times_s: Sequence[float], **lacking: set[int]) -> None:
        self._times = times_s
        self._lacking = lacking
        self.identity = {"kind": "simulated", "times": list(times_s)}
        self.fail_at: int | None = None
        self.has_camera = True

    def moments(self, rate_hz: float) -> Iterator[Moment]:
        rng = np.random.default_rng(0)
        texture = rng.integers(0, 255, (90, 400, 3), np.uint8)
        for index, time_s in enumerate(self._times):
            if index == self.fail_at:
                raise OSError(28, "No space left on device")
            shown = np.ascontiguousarray(texture[:, 3 * (index % 80) :][:, :160])
            samples: dict[str, Any] = {"head": np.eye(4), "hands": np.ones((2, 26, 9))}
            samples["gaze"] = np.array([[0, 0, 0], [0, 0, -1.0]])
            for stream, where in self._lacking.items():
                if index in where:
                    samples[stream] = None
            picture = av.VideoFrame.from_ndarray(shown, format="rgb24")
            has_picture = index not in self._lacking.get("rgb", set())
            yield Moment(
                epoch=1,
                device_time_ns=round(time_s * 1e9) + 77,
                picture=picture if has_picture else None,
                samples=samples,
                intrinsics=(120.0, 120.0, 80.0, 48.0) if self.has_camera else None,
                pose=np.diag([1.0, -1.0, -1.0, 1.0]).ravel().tolist(),
            )

    def pictures(self, wanted: Sequence[tuple[int, int]]) -> Iterator[Any]:
        yield from ()


@pytest.fixture(scope="module")
def coffee(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("features")
    return folder, extract_features(open_recording(COFFEE), CueChoice(), folder)


def test_a_real_video_gives_appearance_and_motion_at_the_rate_asked_for(coffee: Any) -> None:
    _, video = coffee
    assert video.frame_count == 96
    assert video.cues["appearance"].features.shape == (96, 1280)
    assert video.cues["motion"].features.shape == (96, 128)
    assert not video.cues["motion"].valid[0]
    assert video.cues["motion"].valid[1:].all()
    assert np.diff(video.times_ns).min() > 0.09e9


def test_pictures_of_ticks_are_found_again(coffee: Any) -> None:
    _, video = coffee
    wanted = device_moments(video, [3, 50])
    found = dict(open_recording(COFFEE).pictures(wanted))
    assert sorted(found) == sorted(wanted)


def test_features_are_taken_from_the_cache_unless_a_choice_changed(coffee: Any) -> None:
    folder, video = coffee
    path = folder / video.name / "appearance.npy"
    before = path.stat().st_mtime_ns
    extract_features(open_recording(COFFEE), CueChoice(), folder)
    assert path.stat().st_mtime_ns == before
    slower = extract_features(
        open_recording(COFFEE), CueChoice(cues=("motion",), rate_hz=5), folder
    )
    assert slower.frame_count == 48
    assert set(slower.cues) == {"motion"}


def test_an_extraction_that_broke_off_goes_on_with_the_same_result(tmp_path: Path) -> None:
    times = [0.1 * k for k in range(60)]
    choice = CueChoice(cues=("appearance", "gaze_appearance", "motion", "head"))
    whole = extract_features(Recorded(times), choice, tmp_path / "whole")
    source = Recorded(times)
    source.fail_at = 40
    with pytest.raises(OSError, match="No space left"):
        extract_features(source, choice, tmp_path / "parts")
    assert not (tmp_path / "parts" / "simulated" / "video.json").exists()
    with (tmp_path / "parts" / "simulated" / ".partial" / "motion.rows").open("ab") as file:
        file.write(b"torn")
    source.fail_at = None
    parts = extract_features(source, choice, tmp_path / "parts")
    for cue, own in whole.cues.items():
        np.testing.assert_array_equal(own.features, parts.cues[cue].features)
        np.testing.assert_array_equal(own.valid, parts.cues[cue].valid)
    assert not (tmp_path / "parts" / "simulated" / ".partial").exists()


def test_what_is_around_the_gaze_point_is_missing_where_gaze_or_picture_is(tmp_path: Path) -> None:
    source = Recorded([0.1 * k for k in range(20)], gaze={3, 4}, rgb={7})
    video = extract_features(source, CueChoice(cues=("gaze_appearance",)), tmp_path)
    cue = video.cues["gaze_appearance"]
    assert np.flatnonzero(~cue.valid).tolist() == [3, 4, 7]
    assert cue.features.shape == (20, 1280)
    assert (cue.source["extractor"], cue.source["version"]) == ("gaze-crop", 1)
    source.has_camera = False
    other = extract_features(source, CueChoice(cues=("gaze_appearance",)), tmp_path / "no")
    assert not other.cues
    assert any("needs gaze, and pictures with" in note for note in other.notes)


def test_gaps_become_ticks_without_cues_and_are_told(tmp_path: Path) -> None:
    times = [0.1 * k for k in range(20)] + [3.0 + 0.1 * k for k in range(10)] + [60.0, 60.1]
    video = extract_features(
        Recorded(times), CueChoice(cues=("appearance", "motion", "head")), tmp_path
    )
    appearance = video.cues["appearance"].valid
    assert video.frame_count == 20 + 10 + 10 + 99 + 2
    assert not appearance[20:30].any()
    assert appearance[30:40].all()
    assert not video.cues["motion"].valid[30]
    assert any("nothing for 56.1 s" in note for note in video.notes)
    assert (np.diff(video.times_ns) > 0).all()
    assert device_moments(video, [30])[0] == (1, 3_000_000_077)


def test_a_recording_without_pictures_keeps_its_other_cues_and_says_so(tmp_path: Path) -> None:
    times = [0.1 * k for k in range(12)]
    source = Recorded(times, rgb=set(range(12)), hands={5}, gaze=set(range(12)))
    cues = ("appearance", "motion", "gaze", "head", "left_hand")
    video = extract_features(source, CueChoice(cues=cues), tmp_path)
    assert set(video.cues) == {"head", "left_hand"}
    assert np.flatnonzero(~video.cues["left_hand"].valid).tolist() == [5]
    assert any("cue gaze is missing everywhere" in note for note in video.notes)


def test_a_cue_from_a_file_is_taken_and_its_gaps_are_missing(tmp_path: Path) -> None:
    rows = np.ones((12, 3))
    rows[4, 1] = np.nan
    rows[7, 0] = 1e300  # beyond float32
    np.save(tmp_path / "heat.npy", rows)
    source = Recorded([0.1 * k for k in range(12)])
    choice = CueChoice(cues=("head",), files={"heat": tmp_path / "heat.npy"})
    video = extract_features(source, choice, tmp_path / "out")
    assert np.flatnonzero(~video.cues["heat"].valid).tolist() == [4, 7]
    np.save(tmp_path / "heat.npy", rows[1:])
    with pytest.raises(DataError, match=r"expected numbers of shape \(12, D\)"):
        extract_features(source, choice, tmp_path / "out")


def test_files_that_are_no_video_are_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"\x00" * 5000)
    for path, message in (
        (tmp_path / "none.mp4", "no such recording"),
        (tmp_path, "expected a"),
        (broken, "no video that can be decoded"),
    ):
        with pytest.raises(DataError, match=message):
            extract_features(open_recording(path), CueChoice(cues=("motion",)), tmp_path / "out")


def test_a_video_that_breaks_off_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    cut = tmp_path / "cut.mkv"
    with av.open(str(COFFEE)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    content = cut.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    video = extract_features(open_recording(cut), CueChoice(cues=("motion",)), tmp_path / "out")
    assert 20 < video.frame_count < 90


def test_choices_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no cue is called 'smell'"):
        CueChoice(cues=("smell",))
    with pytest.raises(ConfigError, match="another name"):
        CueChoice(files={"motion": tmp_path})
    with pytest.raises(ConfigError, match="rate_hz"):
        CueChoice(rate_hz=0)


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses longer files, as it refuses any on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_more_leaves_no_result_and_the_next_call_goes_on(
    tmp_path: Path,
) -> None:
    times = [0.1 * k for k in range(400)]
    choice = CueChoice(cues=("motion", "head"))
    with files_of_at_most(60_000), pytest.raises(OSError, match="too large"):
        extract_features(Recorded(times), choice, tmp_path)
    assert not (tmp_path / "simulated" / "video.json").exists()
    kept = (tmp_path / "simulated" / ".partial" / "motion.rows").stat().st_size
    assert 0 < kept <= 60_000
    video = extract_features(Recorded(times), choice, tmp_path)
    whole = extract_features(Recorded(times), choice, tmp_path / "whole")
    np.testing.assert_array_equal(video.cues["motion"].features, whole.cues["motion"].features)
