"""Feature folders: what is written is read back, and what is not as documented is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keystep_capture.errors import ConfigError, DataError
from keystep_models.steps.feature_folder import (
    CueFeatures,
    VideoFeatures,
    keystep_count,
    map_array,
    read_folder,
    read_video,
    write_json,
    write_labels,
    write_video,
)
from keystep_models.steps.settings import (
    ExtractionSettings,
    TrainingSettings,
    parse_pair_weights,
    preset,
    with_changes,
)
from keystep_models.steps.temporal_sampling import (
    evaluation_frames,
    live_count,
    live_frames,
    sample_frames,
)


def some_video(name: str = "one", count: int = 20) -> VideoFeatures:
    rng = np.random.default_rng(0)
    valid = np.ones(count, bool)
    valid[3:6] = False
    gaze = rng.normal(size=(count, 5)).astype("f4")
    gaze[~valid] = np.nan
    return VideoFeatures(
        name=name,
        rate_hz=10.0,
        times_ns=np.arange(count, dtype=np.int64) * 100_000_000,
        cues={
            "rgb": CueFeatures(
                features=rng.normal(size=(count, 8)).astype("f4"),
                valid=np.ones(count, bool),
                source={"model": "m"},
            ),
            "gaze": CueFeatures(features=gaze, valid=valid),
        },
        labels=np.arange(count, dtype=np.int64) // 7,
        notes=("a note",),
    )


@pytest.mark.parametrize("tempo", [0.5, 1.0, 1.7])
def test_live_frames_follow_each_other_at_a_tempo(tempo: float) -> None:
    rng = np.random.default_rng(0)
    whole, ticks = live_frames(100, live_count(100, tempo), tempo, rng)
    assert (whole[0], ticks.tolist()) == (0, list(range(len(whole))))
    assert 98 <= whole[-1] <= 99
    assert set(np.diff(whole)) <= {int(tempo), int(np.ceil(tempo))}
    starts = {int(live_frames(100, 10, tempo, rng)[1][0]) for _ in range(50)}
    assert len(starts) > 10


def test_a_video_comes_back_and_its_features_are_memory_mapped(tmp_path: Path) -> None:
    video = some_video()
    write_video(tmp_path, video)
    [found] = read_folder(tmp_path)
    assert isinstance(found.cues["rgb"].features, np.memmap)
    np.testing.assert_array_equal(found.cues["gaze"].features, video.cues["gaze"].features)
    np.testing.assert_array_equal(found.cues["gaze"].valid, video.cues["gaze"].valid)
    np.testing.assert_array_equal(found.times_ns, video.times_ns)
    np.testing.assert_array_equal(found.labels, video.labels)
    assert (found.rate_hz, found.notes) == (10.0, ("a note",))
    assert found.cues["rgb"].source == {"model": "m"}
    assert keystep_count(tmp_path, [found]) == 2


def test_a_folder_made_by_hand_needs_a_json_and_arrays_only(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    np.save(folder / "rgb.npy", np.ones((6, 3), "f4"))
    write_json(
        folder / "video.json",
        {"format_version": 1, "rate_hz": 5.0, "frame_count": 6, "cues": {"rgb": {"size": 3}}},
    )
    video = read_video(folder)
    assert video.times_s[-1] == pytest.approx(1.0)
    assert video.cues["rgb"].valid.all()
    assert video.labels is None


def spoil_json(folder: Path, **changes: Any) -> None:
    path = folder / "one" / "video.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "one" / "video.json").write_text("{"), "video.json"),
        (lambda f: spoil_json(f, format_version=9), "format_version 9"),
        (lambda f: spoil_json(f, frame_count=21), "expected shape"),
        (lambda f: spoil_json(f, rate_hz=0), "rate above 0"),
        (lambda f: (f / "one" / "rgb.npy").write_bytes(b"\x93NUMPY"), "NumPy can read"),
        (lambda f: (f / "one" / "rgb.npy").unlink(), "there is none"),
        (lambda f: np.save(f / "one" / "rgb.npy", np.ones((20, 8))), "expected float32"),
        (lambda f: (f / "one" / "gaze.valid.npy").unlink(), "frame 3 is not finite"),
        (lambda f: np.save(f / "one" / "labels.npy", -np.ones(20, int)), "0 or more"),
        (lambda f: np.save(f / "one" / "times_ns.npy", -np.arange(20)), "never decrease"),
        (lambda f: (f / "one" / "video.json").unlink(), "expected folders"),
    ],
)
def test_what_is_not_as_documented_is_said(tmp_path: Path, spoil: Any, message: str) -> None:
    write_video(tmp_path, some_video())
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path)


def test_labels_of_other_frames_are_set_aside_and_told(tmp_path: Path) -> None:
    cue = CueFeatures(features=np.zeros((6, 2), np.float32), valid=np.ones(6, np.bool_))
    video = VideoFeatures(
        name="a", rate_hz=10.0, times_ns=np.arange(6, dtype=np.int64), cues={"gaze": cue}
    )
    write_video(tmp_path, video)
    write_labels(tmp_path, "a", np.ones(6, np.int64))
    write_video(tmp_path, video)
    assert read_video(tmp_path / "a").labels is not None  # still of these frames
    half = CueFeatures(features=cue.features[:3], valid=cue.valid[:3])
    write_video(tmp_path, replace(video, times_ns=video.times_ns[:3], cues={"gaze": half}))
    again = read_video(tmp_path / "a")
    assert again.labels is None
    assert "labels.old.npy" in again.notes[0]
    assert len(np.load(tmp_path / "a" / "labels.old.npy")) == 6


def test_an_array_whose_header_promises_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.npy"
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 1000)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(DataError, match="no array that NumPy can read"):
        map_array(path)
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    with pytest.raises(DataError, match="expected one array"):
        map_array(tmp_path / "two.npz")


@pytest.mark.parametrize("name", ["../up", "", "labels", "a/b", ".hidden"])
def test_names_that_are_no_file_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="file's name"):
        write_video(tmp_path, some_video(name))


def test_a_video_that_was_not_written_to_its_end_is_told(tmp_path: Path) -> None:
    write_video(tmp_path, some_video("one"))
    broken = some_video("two")
    labels = np.zeros(3, np.int64).view(type("Full", (np.ndarray,), {"astype": _full}))
    object.__setattr__(broken, "labels", labels)
    with pytest.raises(OSError, match="No space"):
        write_video(tmp_path, broken)
    with pytest.raises(DataError, match=r"two: has no video\.json"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame_count": 10**15}, "1 to 16777216 frames"),
        ({"frame_count": 9}, r"expected shape \(9, D\)"),
        ({"rate_hz": 1e-300}, "frames at 1e-300 Hz"),
    ],
)
def test_a_document_that_promises_too_much_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    write_video(tmp_path, some_video("one"))
    path = tmp_path / "one" / "video.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path)


@pytest.mark.parametrize("label", [10**12, 2**64 - 1])
def test_labels_beyond_any_procedure_are_refused(tmp_path: Path, label: int) -> None:
    write_video(tmp_path, some_video("one"))
    count = len(np.load(tmp_path / "one" / "times_ns.npy"))
    np.save(tmp_path / "one" / "labels.npy", np.full(count, label, np.uint64))
    with pytest.raises(DataError, match="numbers go up to 65535"):
        read_folder(tmp_path)


def _full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_training_draws_one_frame_from_each_chunk() -> None:
    rng = np.random.default_rng(0)
    frames = sample_frames(1000, 100, 1.0, rng)
    assert np.array_equal(frames // 10, np.arange(100))
    part = sample_frames(1000, 50, 0.2, rng)
    assert part[-1] - part[0] <= 200
    assert len({int(sample_frames(1000, 5, 0.2, rng)[0] // 100) for _ in range(50)}) > 4


def test_short_videos_give_frames_repeatedly() -> None:
    frames = sample_frames(3, 12, 1.0, np.random.default_rng(0))
    assert set(frames.tolist()) == {0, 1, 2}
    assert (np.diff(frames) >= 0).all()


def test_evaluation_takes_the_centre_of_every_chunk() -> None:
    assert evaluation_frames(7).tolist() == [1, 3, 5]
    assert evaluation_frames(4, 1).tolist() == [0, 1, 2, 3]
    assert evaluation_frames(1).tolist() == [0]


def test_published_settings_are_those_of_table_15() -> None:
    settings = preset("published")
    assert (settings.epochs, settings.chunk_count, settings.batch_size) == (300, 1024, 4)
    assert (settings.learning_rate, settings.margin, settings.extent) == (1e-3, 2.0, 1.0)
    again = TrainingSettings.from_document(json.loads(json.dumps(settings.as_document())))
    assert again == settings


def test_the_learning_rate_drops() -> None:
    settings = with_changes(preset("published"), drop_epochs=(2, 4), seed=None)
    rates = [settings.learning_rate_at(epoch) for epoch in range(5)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "gru"}, "encoder is 'gru'"),
        ({"cues": ()}, "expected cues"),
        ({"bootstrap": ("thermal",)}, "'thermal' is not trained on"),
        ({"extent": 1.5}, "extent"),
        ({"epochs": 0}, "epochs must be 1"),
        ({"context": 8}, "causal transformers"),
        ({"drop_epochs": (0,)}, "drop_epochs"),
        ({"pair_weights": (("a", "b", 1.0),)}, "is not trained on"),
        ({"pair_weights": (("appearance", "motion", math.nan),)}, "lambda of appearance:motion"),
        ({"sigma_seconds": math.inf}, "sigma_seconds"),
        ({"seed": -1}, "seed must be 0"),
        ({"seed": 2**31}, "seed must be 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_changes(preset("small"), **changes)


def test_extraction_settings_out_of_range_are_refused() -> None:
    for changes in (
        *({"alpha": 1.0}, {"stride": 0}, {"clustering": "x"}, {"budget": 2.0}),
        *({"min_duration_s": math.nan}, {"gamma_s": math.inf}, {"seed": -1}),
    ):
        with pytest.raises(ConfigError):
            ExtractionSettings(**changes)  # type: ignore[arg-type]


def test_pair_weights_are_read_from_text() -> None:
    weights = parse_pair_weights("rgb:rgb=1,rgb:flow=0.5")
    assert weights == (("rgb", "rgb", 1.0), ("rgb", "flow", 0.5))
    with pytest.raises(ConfigError, match="CUE:CUE=NUMBER"):
        parse_pair_weights("rgb=1")
