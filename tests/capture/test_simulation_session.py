import csv
import hashlib
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from keystep_capture.errors import ConfigError
from keystep_capture.payloads import read_array, read_image
from keystep_capture.recording import Recording
from keystep_capture.simulation.generate import DatasetSpec, generate
from keystep_capture.simulation.labels import state_classes, steps_between
from keystep_capture.simulation.session import Session, SessionSpec
from keystep_capture.simulation.tasks import find_task
from keystep_capture.video import GapFilter, PacketDecoder

LIMIT_S = 16.0
SPEC = SessionSpec(task="cart", seed=4, person=1, mistake_scale=3.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "set"
    generate(DatasetSpec(session=SPEC, people=1, limit_s=LIMIT_S), folder)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_the_seed_decides_every_byte(dataset: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    generate(DatasetSpec(session=SPEC, people=1, limit_s=LIMIT_S), again, jobs=2)
    assert digest(again) == digest(dataset)


def test_generation_goes_on_where_it_was_stopped(dataset: Path) -> None:
    before = digest(dataset / "person_001")
    (dataset / "person_002.partial").mkdir()
    told: list[str] = []
    folders = generate(
        DatasetSpec(session=SPEC, people=2, limit_s=LIMIT_S),
        dataset,
        progress=lambda name, done, total: told.append(name),
    )
    assert [folder.name for folder in folders] == ["person_001", "person_002"]
    assert set(told) == {"person_002"}
    assert digest(dataset / "person_001") == before
    assert not (dataset / "person_002.partial").exists()


def test_a_folder_of_other_settings_is_left_alone(dataset: Path) -> None:
    with pytest.raises(ConfigError, match="other settings"):
        generate(DatasetSpec(session=SPEC, people=1, limit_s=1.0), dataset)


def test_the_recording_holds_every_stream_as_a_headset_sends_it(dataset: Path) -> None:
    last: dict[str, int] = {}
    seen: dict[str, int] = {}
    decoder, gaps, pictures = PacketDecoder("h264"), GapFilter(), 0
    with Recording(dataset / "person_001") as recording:
        for packet in recording.packets():
            header, payload = packet.header, packet.payload
            assert header.device_time_ns > last.get(header.stream, 0)
            last[header.stream] = header.device_time_ns
            seen[header.stream] = seen.get(header.stream, 0) + 1
            if header.stream == "rgb":
                assert gaps.admit(header.sequence, keyframe=header.keyframe)
                pictures += decoder.decode(payload) is not None
            elif header.stream == "depth":
                depth = read_image(header, payload)
                assert depth.dtype == np.uint16
                assert 0.001 < (depth == 0).mean() < 0.4
            elif header.valid:
                assert np.isfinite(read_array(header, payload)).all()
    assert seen["rgb"] == pictures == len(rows(dataset / "person_001" / "frames.csv"))
    assert seen["depth"] == pytest.approx(5 * LIMIT_S, abs=2)
    assert all(
        seen[name] == pytest.approx(30 * LIMIT_S, rel=0.03) for name in ("head", "gaze", "hands")
    )


def test_labels_agree_with_each_other(dataset: Path) -> None:
    folder = dataset / "person_001"
    frames = rows(folder / "frames.csv")
    states = [tuple(int(row[f"state_{k}"]) for k in range(13)) for row in frames]
    steps = [
        (f"{idx + 1:05d}.jpg", str(step))
        for idx, (before, after) in enumerate(pairwise(states))
        for step in steps_between(before, after, with_errors=True)
    ]
    with (folder / "PSR_labels_with_errors.csv").open(newline="") as lines:
        assert [(row[0], row[1]) for row in csv.reader(lines)] == steps
    class_count = len(state_classes(find_task("cart")))
    assert len(list((folder / "yolo").iterdir())) == len(frames)
    for idx, row in enumerate(frames):
        line = (folder / "yolo" / f"{idx:05d}.txt").read_text().split()
        assert bool(line) == bool(row["box_x"])
        if line:
            x, _y, width, _height = (float(value) for value in line[1:])
            assert x - width / 2 >= 0
            assert x + width / 2 <= 1 + 1e-6
            assert int(line[0]) < class_count
            assert x * 320 == pytest.approx(int(row["box_x"]) + int(row["box_width"]) / 2, abs=1e-3)
    segments = rows(folder / "segments.csv")
    assert all(int(row["first_frame"]) < int(row["last_frame"]) for row in segments)
    assert {row["step_id"] for row in segments} >= {step for _, step in steps}


def hidden_shares(occlusion_rate: float) -> np.ndarray:
    """How much of each installed part hands cover around its completion."""
    spec = SessionSpec(task="gearbox", seed=2, person=0, occlusion_rate=occlusion_rate)
    session = Session(spec)
    shares = []
    for action in session.truth.plan.actions:
        found = []
        for time_s in (action.complete_s - 0.1, action.complete_s + 0.1, action.complete_s + 0.3):
            sample = round(time_s * 60)
            pose = session.looking.world_from_head[sample] @ session.camera.head_from_camera
            session.truth.add_frame(session.scene.draw(sample, pose), session.scene, 0, time_s)
            found.append(session.truth.frames[-1].hidden[action.component])
        shares.append(np.nanmean(found))
    return np.array(shares)


def test_more_completions_are_hidden_at_a_higher_occlusion_rate() -> None:
    none, half, all_ = (hidden_shares(rate) for rate in (0.0, 0.5, 1.0))
    assert none.mean() < half.mean() < all_.mean()
    assert none.mean() < 0.3
    assert all_.mean() > 0.55
    changed = half != none
    np.testing.assert_allclose(half[changed].mean(), all_[changed].mean(), atol=0.15)


def test_depth_and_colour_show_the_same_scene() -> None:
    session = Session(SessionSpec(task="lamp", seed=3, person=1))
    picture = session.draw(600)
    assert picture.shape == (180, 320, 3)
    assert 40 < picture.mean() < 200
    assert cv2.Laplacian(picture, cv2.CV_32F).std() > 3
    again = session.draw(600)
    np.testing.assert_array_equal(picture, again)
