"""`extract` on recordings that are short, gappy, constant or uneven, and on a full disk."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: make test-training installs it")

from keystep_capture.errors import DataError  # noqa: E402
from keystep_capture.samples.catalogue import find_sample  # noqa: E402
from keystep_models.steps.cue_extraction import CueChoice  # noqa: E402
from keystep_models.steps.recording_source import Moment, open_recording  # noqa: E402
from keystep_models.steps.settings import ExtractionSettings, TrainingSettings  # noqa: E402
from keystep_models.training.extract import ExtractionPlan, extract  # noqa: E402


class Recorded:
    """Simulated ticks of a head that goes from place to place, and of hands where they are seen."""

    warnings: tuple[str, ...] = ()

    def __init__(
        self, name: str, times_s: Sequence[float], *, hands: bool = True, still: bool = False
    ) -> None:
        self.name = name
        self.identity = {"kind": "simulated", "name": name}
        self._times, self._hands, self._still = times_s, hands, still

    def moments(self, rate_hz: float) -> Iterator[Moment]:
        for index, time_s in enumerate(self._times):
            place = 0 if self._still else index * 4 // len(self._times)
            pose, joints = np.eye(4), np.ones((2, 26, 9))
            pose[:3, 3] = place, 0.0 if self._still else 0.01 * (index % 5), 0
            joints[:, :, 4] = place + 0.1
            samples: dict[str, Any] = {"head": pose, "hands": joints if self._hands else None}
            yield Moment(epoch=1, device_time_ns=round(time_s * 1e9), picture=None, samples=samples)

    def pictures(self, wanted: Sequence[tuple[int, int]]) -> Iterator[Any]:
        yield from ()


def plan(out: Path, *cues: str, **more: Any) -> ExtractionPlan:
    return ExtractionPlan(
        cues=CueChoice(cues=cues),
        training=TrainingSettings(cues=cues, epochs=2, chunk_count=32, **more),
        extraction=ExtractionSettings(),
        out=out,
    )


def run(sources: list[Any], chosen: ExtractionPlan) -> dict[str, Any]:
    return extract(sources, chosen, lambda event: None)


def seconds(count: float) -> list[float]:
    return [0.1 * k for k in range(round(10 * count))]


def steps_of(out: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / name / "key_steps.json").read_text())[
        "key_steps"
    ]
    return found


def test_a_cue_that_one_recording_lacks_is_used_where_it_is(tmp_path: Path) -> None:
    sources = [Recorded("with", seconds(20)), Recorded("without", seconds(20), hands=False)]
    results = run(sources, plan(tmp_path, "head", "left_hand"))
    assert results["with"]["key_steps"] > 0
    assert results["without"]["key_steps"] > 0
    assert any("left_hand" in note for note in results["without"]["notes"])
    assert not any("left_hand" in note for note in results["with"]["notes"])


@pytest.mark.parametrize("ticks", [2, 3, 5])
def test_a_recording_of_a_few_ticks_gives_what_it_has(tmp_path: Path, ticks: int) -> None:
    results = run([Recorded("short", seconds(ticks / 10))], plan(tmp_path, "left_hand"))
    for step in steps_of(tmp_path, "short"):
        assert 0 <= step["start_s"] <= step["end_s"] < ticks / 10
    if ticks > 2:
        assert any("was narrowed" in note for note in results["short"]["notes"])


def test_more_clusters_than_frames_are_told_and_so_is_that_nothing_is_left(tmp_path: Path) -> None:
    chosen = plan(tmp_path, "head", "left_hand")
    chosen = replace(chosen, extraction=ExtractionSettings(cluster_count=5000))
    results = run([Recorded("many", seconds(20))], chosen)["many"]
    assert results["key_steps"] == 0
    assert "5000 clusters were asked for, of only 100 frames" in results["notes"]
    assert any("choose fewer clusters" in note for note in results["notes"])


def test_a_recording_of_one_tick_has_no_movement_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no recording has any of the cues head"):
        run([Recorded("one", [0.0])], plan(tmp_path, "head"))
    assert not list(tmp_path.rglob("key_steps.json"))


def test_no_key_step_shows_a_gap(tmp_path: Path) -> None:
    times = seconds(10) + [17.0 + t for t in seconds(10)]
    results = run([Recorded("gap", times)], plan(tmp_path, "head", "left_hand"))
    assert results["gap"]["key_steps"] > 0
    for step in steps_of(tmp_path, "gap"):
        assert not 10.0 < step["exemplar_s"] < 17.0


def test_features_that_never_change_are_told(tmp_path: Path) -> None:
    results = run([Recorded("still", seconds(30), still=True)], plan(tmp_path, "left_hand"))
    [told] = [note for note in results["still"]["notes"] if "never changes" in note]
    assert told == "cue left_hand never changes: it tells moments apart by their time alone"
    document = json.loads((tmp_path / "still" / "key_steps.json").read_text())
    assert told in document["notes"]
    assert all(np.isfinite(step["confidence"]) for step in document["key_steps"])


def test_a_video_of_one_picture_held_still_gives_a_result(tmp_path: Path) -> None:
    path = tmp_path / "still.mkv"
    with av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", 10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), format="rgb24")
        for number in range(40):
            picture.pts = number
            target.mux(stream.encode(picture))
        target.mux(stream.encode(None))
    before = path.read_bytes(), path.stat().st_mtime_ns
    results = run([open_recording(path)], plan(tmp_path / "out", "appearance", "motion"))
    for cue in ("appearance", "motion"):
        assert any(f"cue {cue} never changes" in note for note in results["still"]["notes"])
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert (tmp_path / "out" / "still" / "key_steps.json").exists()


@pytest.mark.parametrize("limit", [1_000, 30_000, 120_000])
def test_a_full_disk_leaves_no_result_and_the_next_call_makes_it(
    tmp_path: Path, limit: int
) -> None:
    """Files longer than the limit cannot be written: features, then checkpoints, then the model."""
    source, chosen = Recorded("full", seconds(20)), plan(tmp_path, "head", "left_hand")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            run([source], chosen)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.rglob("key_steps.json"))
    assert not list(tmp_path.rglob("model.pt"))
    assert run([source], chosen)["full"]["key_steps"] > 0


def test_the_command_tells_of_a_model_that_is_none_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    clip = find_sample("pour-coffee").video_path
    arguments = ["extract", str(clip), "--cues", "motion,mine", "--out", str(tmp_path / "out")]
    arguments += ["--cue-model", f"mine={tmp_path / 'manifest.json'}"]
    run_it = (
        f"import sys; sys.argv[1:] = {arguments!r}; from keystep_capture.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", run_it], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().count("\n") == 0
    assert "is not a model manifest" in done.stderr
    assert not list(tmp_path.rglob("key_steps.json"))
