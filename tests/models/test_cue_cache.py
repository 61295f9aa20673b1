"""Each cue of a recording is cached by itself: what is there is never computed or written again."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from keystep_capture.errors import DataError
from keystep_models.steps.cue_extraction import CueChoice, extract_features
from keystep_models.steps.feature_folder import VideoFeatures, read_video, write_labels
from keystep_models.steps.recording_source import Moment


class Recorded:
    """Simulated ticks of a picture that moves and of a head; how often it was read is counted."""

    name = "simulated"
    warnings: tuple[str, ...] = ("the recording was not closed",)

    def __init__(self, count: int = 60, *, gaze_until: int = 0, mark: int = 0) -> None:
        self.identity = {"kind": "simulated", "mark": mark}
        self.readings = 0
        self.fail_at: int | None = None
        self._count, self._gaze_until = count, gaze_until

    def moments(self, rate_hz: float) -> Iterator[Moment]:
        self.readings += 1
        texture = np.random.default_rng(0).integers(0, 255, (90, 400, 3), np.uint8)
        for index in range(self._count):
            if index == self.fail_at:
                raise OSError(28, "No space left on device")
            shown = np.ascontiguousarray(texture[:, 3 * (index % 80) :][:, :160])
            pose = np.eye(4)
            pose[0, 3] = 0.01 * (index % 7)
            ray = np.array([[0, 0, 0], [0.01 * (index % 5), 0, -1.0]])
            yield Moment(
                epoch=1,
                device_time_ns=index * 10**8,
                picture=av.VideoFrame.from_ndarray(shown, format="rgb24"),
                samples={"head": pose, "gaze": ray if index < self._gaze_until else None},
            )

    def pictures(self, wanted: Sequence[tuple[int, int]]) -> Iterator[Any]:
        yield from ()


def features(source: Recorded, folder: Path, *cues: str) -> VideoFeatures:
    return extract_features(source, CueChoice(cues=cues, threads=1), folder)


def assert_same(one: VideoFeatures, other: VideoFeatures) -> None:
    assert list(one.cues) == list(other.cues)
    assert (one.notes, dict(one.recording)) == (other.notes, dict(other.recording))
    for cue, own in one.cues.items():
        np.testing.assert_array_equal(own.features, other.cues[cue].features)
        np.testing.assert_array_equal(own.valid, other.cues[cue].valid)


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "simulated").glob("*.npy")}


def test_a_cue_is_added_without_making_the_others_again(tmp_path: Path) -> None:
    source = Recorded(20)
    features(source, tmp_path, "appearance")
    before = written(tmp_path)
    both = features(source, tmp_path, "motion", "appearance")
    after = written(tmp_path)
    assert {name: after[name] for name in before} == before
    assert source.readings == 2
    assert_same(both, features(source, tmp_path / "at once", "motion", "appearance"))
    assert list(features(source, tmp_path, "appearance").cues) == ["appearance"]
    assert source.readings == 3  # that of "at once"


def test_what_a_choice_gives_does_not_depend_on_what_was_chosen_before(tmp_path: Path) -> None:
    source = Recorded(gaze_until=10)
    for cues in (("gaze",), ("left_hand", "head"), ("motion",)):
        features(source, tmp_path, *cues)
    chosen = ("head", "gaze", "left_hand")
    mixed = features(source, tmp_path, *chosen)
    assert_same(mixed, features(source, tmp_path / "fresh", *chosen))
    assert mixed.notes[0] == "the recording was not closed"
    assert [note for note in mixed.notes if "motion" in note] == []
    assert set(read_video(tmp_path / "simulated").cues) == {"gaze", "head", "motion"}
    stored = read_video(tmp_path / "fresh" / "simulated")
    assert stored.recording["key"] == mixed.recording["key"]


def test_a_cue_that_is_missing_everywhere_is_not_looked_for_again(tmp_path: Path) -> None:
    source = Recorded()
    first = features(source, tmp_path, "head", "left_hand")
    assert "cue left_hand is missing everywhere and was left out" in first.notes
    assert_same(first, features(source, tmp_path, "head", "left_hand"))
    assert source.readings == 1


def test_a_changed_file_is_taken_anew_without_reading_the_recording(tmp_path: Path) -> None:
    source, path = Recorded(), tmp_path / "heat.npy"
    choice = CueChoice(cues=("head",), files={"heat": path})
    for value in (1.0, 2.0):
        np.save(path, np.full((60, 3), value))
        video = extract_features(source, choice, tmp_path)
        assert video.cues["heat"].features[5, 1] == value
    assert source.readings == 1
    path.unlink()
    with pytest.raises(DataError, match="no such file of cue 'heat'"):
        extract_features(source, choice, tmp_path)


def test_another_recording_of_the_same_name_and_length_takes_nothing_over(tmp_path: Path) -> None:
    features(Recorded(), tmp_path, "head")
    other = Recorded(mark=1)
    video = features(other, tmp_path, "gaze", "head")
    assert other.readings == 1
    assert video.recording["mark"] == 1
    stopped = Recorded(mark=2)
    stopped.fail_at = 50
    with pytest.raises(OSError, match="No space"):
        features(stopped, tmp_path, "head")
    third = Recorded(mark=3)
    assert_same(features(third, tmp_path, "head"), features(third, tmp_path / "alone", "head"))


def test_rows_of_a_stopped_call_are_used_cue_by_cue(tmp_path: Path) -> None:
    source = Recorded()
    source.fail_at = 40
    with pytest.raises(OSError, match="No space"):
        features(source, tmp_path, "motion", "head")
    source.fail_at = None
    features(source, tmp_path, "head")
    rows = tmp_path / "simulated" / ".partial" / "motion.rows"
    assert rows.stat().st_size == 40 * (4 * 128 + 1)
    both = features(source, tmp_path, "motion", "head")
    assert_same(both, features(source, tmp_path / "whole", "motion", "head"))
    assert not rows.parent.exists()


@pytest.mark.parametrize("marker", [b"", b"{", b"[]", b'{"ticks": 1}', b'"old"'])
def test_a_marker_that_is_torn_means_beginning_anew(tmp_path: Path, marker: bytes) -> None:
    source = Recorded()
    source.fail_at = 40
    with pytest.raises(OSError, match="No space"):
        features(source, tmp_path, "head")
    (tmp_path / "simulated" / ".partial" / "key.json").write_bytes(marker)
    source.fail_at = None
    assert_same(features(source, tmp_path, "head"), features(source, tmp_path / "new", "head"))


def test_a_folder_that_was_half_copied_is_made_anew_and_labels_stay(tmp_path: Path) -> None:
    source = Recorded(gaze_until=60)
    whole = features(source, tmp_path / "whole", "head", "gaze")
    features(source, tmp_path, "head", "gaze")
    write_labels(tmp_path, "simulated", np.arange(60) // 30)
    for damage in ("head.npy", "times_ns.npy", "video.json"):
        path = tmp_path / "simulated" / damage
        path.write_bytes(path.read_bytes()[:100])
        again = features(source, tmp_path, "head", "gaze")
        assert_same(again, whole)
        assert again.labels is not None
    (tmp_path / "simulated" / "gaze.npy").unlink()
    assert_same(features(source, tmp_path, "head", "gaze"), whole)


def test_a_full_disk_takes_no_cue_away_that_was_there(tmp_path: Path) -> None:
    source = Recorded(200, gaze_until=200)
    features(source, tmp_path, "gaze")
    before = written(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (20_000, 90_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match=r"too large|full"):
                features(source, tmp_path, "gaze", "motion")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        readings = source.readings
        assert list(features(source, tmp_path, "gaze").cues) == ["gaze"]
        assert source.readings == readings
    video = features(source, tmp_path, "gaze", "motion")
    assert_same(video, features(source, tmp_path / "whole", "gaze", "motion"))
    assert {name: time for name, time in written(tmp_path).items() if name in before} == before


def ended_at(place: int, folder: Path, heat: Path) -> None:
    """Add a cue and replace another; the process ends before its `place`-th file is in place."""
    left, replace = [place], Path.replace

    def or_end(self: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] < 0:
            os._exit(9)
        return replace(self, target)

    Path.replace = or_end  # type: ignore[method-assign, assignment]
    with contextlib.suppress(OSError):
        extract_features(
            Recorded(), CueChoice(cues=("head", "motion"), files={"heat": heat}), folder
        )


def test_a_process_that_ends_anywhere_leaves_every_cue_whole_or_away(tmp_path: Path) -> None:
    heat, source = tmp_path / "heat.npy", Recorded()
    choice = CueChoice(cues=("head", "motion"), files={"heat": heat})
    np.save(heat, np.full((60, 3), 1.0))
    for place in range(30):
        folder = tmp_path / str(place)
        extract_features(source, CueChoice(cues=("head",), files={"heat": heat}), folder)
        before = written(folder)["head.npy"]
        np.save(heat, np.full((60, 3), place + 2.0))
        child = multiprocessing.get_context("fork").Process(
            target=ended_at, args=(place, folder, heat)
        )
        child.start()
        child.join(60)
        left = read_video(folder / "simulated")
        assert "head" in left.cues
        readings = source.readings
        video = extract_features(source, choice, folder)
        assert video.cues["heat"].features[0, 0] == place + 2.0
        assert video.cues["motion"].valid[1:].all()
        assert written(folder)["head.npy"] == before
        if child.exitcode == 0:
            assert source.readings == readings
            break
    assert 4 <= place < 29
