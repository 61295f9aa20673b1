"""Labelled data sets: published layouts and ours; what is amiss is told at once, in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from keystep_capture.errors import ConfigError, DataError, KeystepError
from keystep_capture.simulation.generate import DatasetSpec, generate
from keystep_capture.simulation.labels import procedure_info
from keystep_capture.simulation.session import SessionSpec
from keystep_capture.simulation.tasks import find_task
from keystep_models.storm.inputs import InputChoice, read_inputs
from keystep_models.storm.labelled import Layout, read_dataset

COMPONENTS = len(find_task("lamp").components)


def state(*there: int) -> str:
    return ",".join("1" if idx in there else "0" for idx in range(COMPONENTS))


def published(folder: Path, names: tuple[str, ...] = ("a", "b"), frames: int = 30) -> Path:
    """Pictures 0 to 29 in `rgb`, labels, and a procedure, as IndustReal lays them out."""
    folder.mkdir()
    info = procedure_info(find_task("lamp"))
    (folder / "procedure_info.json").write_text(json.dumps(info))
    for name in names:
        (folder / name / "rgb").mkdir(parents=True)
        for number in range(frames):
            picture = np.full((24, 32, 3), 8 * number, np.uint8)
            cv2.imwrite(str(folder / name / "rgb" / f"{number:05d}.jpg"), picture)
        rows = [f"00000.jpg,{state()}", f"00010.jpg,{state(0)}", f"00020.jpg,{state(0, 2)}"]
        (folder / name / "PSR_labels_raw.csv").write_text("\n".join(rows) + "\n")
    return folder


def read(folder: Path, layout: Layout = "industreal") -> object:
    return read_dataset(folder, layout=layout)


def test_states_of_published_pictures_hold_from_their_label_on(tmp_path: Path) -> None:
    found = read_dataset(published(tmp_path / "d"), layout="industreal")
    assert [recording.name for recording in found.recordings] == ["a", "b"]
    states = found.recordings[0].states
    assert states.shape == (30, COMPONENTS)
    assert states[9].sum() == 0
    assert states[10].tolist()[:3] == [1, 0, 0]
    assert states[29].tolist()[:3] == [1, 0, 1]
    assert found.recordings[0].image_size == (32, 24)


def test_meccano_counts_pictures_from_1_at_12_a_second(tmp_path: Path) -> None:
    folder = published(tmp_path / "d")
    for name in ("a", "b"):
        (folder / name / "rgb" / "00000.jpg").unlink()
    (recording, _) = read_dataset(folder, layout="meccano").recordings
    assert len(recording.device_times_ns) == 30
    assert recording.device_times_ns[12] == 10**9
    moments = list(recording.source.moments(10.0))
    times = [moment.device_time_ns for moment in moments]
    assert set(times) <= set(recording.device_times_ns.tolist())
    assert len(moments) == pytest.approx(29 / 12 * 10, abs=1.5)


def test_ticks_of_published_pictures_have_their_frame_and_state(tmp_path: Path) -> None:
    (recording, _) = read_dataset(published(tmp_path / "d"), layout="industreal").recordings
    choice = InputChoice(rate_hz=10.0, features=tmp_path / "f", pictures=tmp_path / "p", threads=1)
    found = read_inputs(recording, choice)
    assert found.inputs.shape == (30, 224, 224, 3)
    assert found.ticks.frames.tolist() == list(range(30))
    assert found.ticks.completions.tolist() == [10, 20]
    level = np.asarray(found.inputs).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(level, 8 * np.arange(30), atol=4)
    stamp = (tmp_path / "p" / "a.npy").stat().st_mtime_ns
    again = read_inputs(recording, choice)
    assert (tmp_path / "p" / "a.npy").stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(found.inputs, again.inputs)


def lose_labels(folder: Path) -> None:
    (folder / "b" / "PSR_labels_raw.csv").unlink()


def lose_picture(folder: Path) -> None:
    (folder / "b" / "rgb" / "00012.jpg").unlink()


def lose_all_pictures(folder: Path) -> None:
    shutil.rmtree(folder / "b" / "rgb")


def lose_procedure(folder: Path) -> None:
    (folder / "procedure_info.json").unlink()


def label_beyond(folder: Path) -> None:
    with (folder / "b" / "PSR_labels_raw.csv").open("a") as file:
        file.write(f"00030.jpg,{state(0, 1, 2)}\n")


def other_size(folder: Path) -> None:
    cv2.imwrite(str(folder / "b" / "rgb" / "00029.jpg"), np.zeros((48, 64, 3), np.uint8))


def all_of_other_size(folder: Path) -> None:
    for path in (folder / "b" / "rgb").iterdir():
        cv2.imwrite(str(path), np.zeros((48, 64, 3), np.uint8))


def cut_picture(folder: Path) -> None:
    (folder / "b" / "rgb" / "00003.jpg").write_bytes(b"")


def too_few_components(folder: Path) -> None:
    (folder / "b" / "PSR_labels_raw.csv").write_text("00000.jpg,0,0,0\n")


def foreign_classes(folder: Path) -> None:
    (folder / "classes.json").write_text(json.dumps(["000", "100", "error"]))


def no_labels(folder: Path) -> None:
    (folder / "b" / "PSR_labels_raw.csv").write_text("")


def half_generated(folder: Path) -> None:
    (folder / "c.partial").mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lose_labels, "b: expected PSR_labels_raw.csv; is the folder copied whole"),
        (lose_picture, "b: 1 pictures up to number 29 are missing"),
        (lose_all_pictures, "b: expected JPEG pictures"),
        (lose_procedure, "expected procedure_info.json"),
        (label_beyond, "a label of frame 30, the video has 30 frames"),
        (other_size, "b: expected pictures of one size, got 32 x 24, and 64 x 48 in 00029.jpg"),
        (all_of_other_size, "got 32 x 24 in a and 64 x 48 in b"),
        (cut_picture, "00003.jpg: at byte 0: expected a JPEG picture"),
        (too_few_components, f"expected an image and {COMPONENTS} components, got 4 values"),
        (foreign_classes, "classes.json, class 0: a state of 3 components"),
        (no_labels, "expected a state per labelled frame, found none"),
        (half_generated, "c.partial: is not finished"),
    ],
)
def test_what_is_amiss_is_one_line(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    folder = published(tmp_path / "d")
    spoil(folder)
    with pytest.raises(KeystepError) as caught:
        read(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pictures_without_a_layout_say_which_option_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="need --layout industreal or meccano"):
        read(published(tmp_path / "d"), "recordings")
    with pytest.raises(ConfigError, match="expected a folder of labelled recordings"):
        read(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "lamp"
    session = SessionSpec(task="lamp", seed=3, person=0, profile="learn")
    generate(DatasetSpec(session=session, people=2, limit_s=3.0), folder)
    return folder


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_simulated_sessions_are_read_as_they_were_written(simulated: Path) -> None:
    found = read_dataset(simulated)
    assert len(found.recordings) == 2
    assert found.procedure.component_count == COMPONENTS
    assert found.procedure.states
    for recording in found.recordings:
        assert recording.image_size == (320, 180)
        assert recording.states.shape == (len(recording.device_times_ns), COMPONENTS)


def test_a_recording_cut_short_is_refused(simulated: Path, tmp_path: Path) -> None:
    folder = copied(simulated, tmp_path / "d")
    part = next(folder.glob("*/part-000.mcap"))
    part.write_bytes(part.read_bytes()[:-2000])
    with pytest.raises(KeystepError, match=r"copy it whole|damaged|breaks off"):
        read_dataset(folder)


def test_a_list_of_other_frames_is_refused(simulated: Path, tmp_path: Path) -> None:
    folder = copied(simulated, tmp_path / "d")
    listed = next(folder.glob("*/frames.csv"))
    listed.write_bytes(listed.read_bytes() + 5 * listed.read_bytes().splitlines(True)[-1])
    with pytest.raises(DataError, match="is the folder copied whole"):
        read_dataset(folder)
