from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path

import av
import numpy as np
import pytest

from keystep_capture import samples
from keystep_capture.errors import ConfigError, DataError


def test_an_unknown_sample_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="industreal-03, pour-coffee"):
        samples.find_sample("juggling")


def test_every_file_is_listed_with_its_checksum() -> None:
    folder = Path(samples.__file__).parent / "data"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(\S+)` .*`([0-9a-f]{64})` \|$", readme, re.MULTILINE))
    files = {path.name: path for path in folder.iterdir() if path.name != "README.md"}
    assert listed.keys() == files.keys()
    for name, path in files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == listed[name]


def test_the_detections_have_one_list_per_frame_of_the_recording() -> None:
    sample = samples.find_sample("industreal-03")
    assert sample.detections_path is not None
    rows = samples.load_detection_rows(sample.detections_path)
    truth = samples.load_truth(sample)
    assert len(rows) == truth.frame_count == 2754
    assert sum(map(len, rows)) == 318
    assert rows[0] == [
        samples.DetectionRow(1, 0.807010293006897, 785.5703, 626.6279, 225.04565, 120.27185)
    ]


def test_the_truth_holds_nine_steps_and_what_b3_finds() -> None:
    truth = samples.load_truth(samples.find_sample("industreal-03"))
    assert truth.procedure == "assy"
    assert [step.id for step in truth.ground_truth] == [9, 15, 18, 3, 6, 30, 21, 24, 27]
    assert truth.expected_b3[0] == samples.ExpectedStep(frame=727, id=9, confidence=1.0)
    with pytest.raises(ConfigError, match="no ground truth"):
        samples.load_truth(samples.find_sample("pour-coffee"))


def test_a_row_that_ends_after_the_class_is_no_detection(tmp_path: Path) -> None:
    path = tmp_path / "detections.csv.gz"
    header = "clip,framenr,bb_class,bb_conf,bb_x,bb_y,bb_w,bb_h\n"
    path.write_bytes(gzip.compress(f"{header}a,0,3\na,2,4,0.5,1,2,3,4\na,3,0,,,,,\n".encode()))
    rows = samples.load_detection_rows(path, frame_count=5)
    assert rows == [[], [], [samples.DetectionRow(4, 0.5, 1, 2, 3, 4)], [], []]


@pytest.mark.parametrize("row", ["a,0", "a,x,1,0.5,1,2,3,4", "a,0,1,0.5,1,2", "a,-1,1,0.5,1,2,3,4"])
def test_a_malformed_detection_row_is_an_error(tmp_path: Path, row: str) -> None:
    path = tmp_path / "detections.csv"
    path.write_text(f"clip,framenr,bb_class,bb_conf,bb_x,bb_y,bb_w,bb_h\n{row}\n")
    with pytest.raises(DataError, match=r"detections\.csv"):
        samples.load_detection_rows(path)


def test_published_head_axes_are_left_up_forward() -> None:
    sample = samples.find_sample("industreal-03")
    assert sample.sensors_path is not None
    rows = samples.load_sensor_rows(sample.sensors_path)
    assert sorted(rows) == list(range(550, 1251))
    rotations = np.stack([row.world_from_head_luf[:3, :3] for row in rows.values()])
    np.testing.assert_allclose(
        rotations.transpose(0, 2, 1) @ rotations, np.broadcast_to(np.eye(3), (701, 3, 3)), atol=1e-9
    )
    left, up, forward = rotations.mean(axis=0).T
    assert up[1] > 0.6
    assert forward[1] < -0.6  # a wearer who looks down at a table
    np.testing.assert_allclose(np.cross(up, forward), left, atol=0.05)
    assert sum(row.gaze_px is None for row in rows.values()) == 152


def test_the_video_plays() -> None:
    path = samples.find_sample("pour-coffee").video_path
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert (frame.width, frame.height) == (1280, 720)
