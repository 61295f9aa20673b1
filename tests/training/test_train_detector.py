"""The small detector's training: data, resuming, calibration, and the exported graph."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: make test-training installs it")

from keystep_capture.errors import ConfigError, DataError, StateError  # noqa: E402
from keystep_capture.simulation.generate import DatasetSpec, generate  # noqa: E402
from keystep_capture.simulation.session import SessionSpec  # noqa: E402
from keystep_models.detector.classes import adopt_classes  # noqa: E402
from keystep_models.detector.detector import Detector  # noqa: E402
from keystep_models.psr.detections import read_detections  # noqa: E402
from keystep_models.psr.procedure_files import load_procedure, read_states  # noqa: E402
from keystep_models.training.detector_job import run, share_out  # noqa: E402
from keystep_models.training.detector_model import (  # noqa: E402
    CROP,
    class_chances,
    crop,
    one_hot,
)
from keystep_models.training.train_detector import (  # noqa: E402
    DetectorSettings,
    class_targets,
    known_states,
    train_detector,
)

pytestmark = pytest.mark.timeout(600)  # pictures are rendered first; a busy machine takes its time

QUICK = DetectorSettings(every=6, jitters=1, epochs=4, batch_size=16, min_frames=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Three people's first 13.5 seconds: nothing, then one part, then two."""
    folder = tmp_path_factory.mktemp("data") / "gearbox"
    spec = SessionSpec(task="gearbox", seed=13, person=0)
    generate(DatasetSpec(session=spec, people=3, limit_s=13.5), folder)
    return folder


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    people = share_out(dataset, "0", "1", "2")
    report = run(people, QUICK, out, name="cart-test", licence="CC0-1.0", threads=1)
    return out, report


def test_a_run_ends_in_a_detector_and_a_report(finished, dataset):
    out, report = finished
    detector = Detector.load(out / "model")
    assert detector.spec.class_names[0] == "background"
    assert detector.spec.class_names[-1] == "error_state"
    assert read_states(out / "model" / "states.json") == detector.spec.states
    curves = json.loads((out / "curves.json").read_text())
    assert len(curves) == QUICK.epochs
    assert curves[-1]["name_loss"] < curves[0]["name_loss"]
    assert curves[-1]["place_loss"] < curves[0]["place_loss"]
    assert report["export_difference"] < 0.02
    assert report["all"]["frames"] > 20
    assert (out / "report.png").stat().st_size > 10_000
    found = read_detections(out / "detections" / "person_002.csv")
    frames = (dataset / "person_002" / "frames.csv").read_text().splitlines()
    assert len(found) == len(frames) - 1


def test_its_graph_takes_batches_and_answers_each_row_alike(finished):
    out, _ = finished
    model = Detector.load(out / "model").model
    pictures = np.random.default_rng(0).integers(0, 256, (3, 3, 192, 320), np.uint8)
    together = model.run(pictures)
    alone = np.concatenate([model.run(np.ascontiguousarray(p[None])) for p in pictures])
    np.testing.assert_allclose(together, alone, atol=1e-3)
    assert (together[:, 4:].sum(axis=1) <= 1 + 1e-5).all()


def test_its_classes_are_a_procedures(finished, dataset):
    out, _ = finished
    procedure = load_procedure(str(dataset / "procedure_info.json"), "assy")
    adopted = adopt_classes(Detector.load(out / "model").spec, procedure)
    assert adopted.states[0] is None
    assert (1,) + (0,) * 13 in adopted.states


def test_a_stopped_run_goes_on_to_the_same_weights(finished, dataset, tmp_path):
    out, _ = finished
    shutil.copytree(out / "features", tmp_path / "features")
    people = share_out(dataset, "0", "1", "2")
    for stop in (1, 3):
        with pytest.raises(StateError, match=f"stopped after {stop} of 4"):
            train_detector(people.train, people.calibrate, QUICK, tmp_path, stop_after=stop)
    detector, _ = train_detector(people.train, people.calibrate, QUICK, tmp_path)
    whole, _ = train_detector(people.train, people.calibrate, QUICK, out)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(detector.state_dict()[name], value, rtol=0, atol=0)
    other = replace(QUICK, epochs=5)
    with pytest.raises(StateError, match="other settings or people"):
        train_detector(people.train, people.calibrate, other, tmp_path)


def test_who_does_what_is_checked(dataset, tmp_path):
    with pytest.raises(ConfigError, match="person_002, nobody"):  # three are too few to share out
        share_out(dataset, None, None, None)
    for choice, message in [
        (("0", "1", None), "all of --people"),
        (("0", "0", "1"), "others to calibrate"),
        (("0", "1", "7"), "no person_007"),
        (("zero", "1", "2"), "'zero'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            share_out(dataset, *choice)
    with pytest.raises(DataError, match="simulate generate"):
        share_out(tmp_path, None, None, None)


def test_half_copied_people_are_named_before_training(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "cart")
    people = share_out(tmp_path / "cart", "0", "1", "2")
    (tmp_path / "cart" / "person_001" / "frames.csv").unlink()
    with pytest.raises(DataError, match=r"person_001: expected frames\.csv"):
        share_out(tmp_path / "cart", "0", "1", "2")
    labels = tmp_path / "cart" / "person_002" / "frames.csv"
    labels.write_text(labels.read_text().replace(",0,", ",2,", 1))
    with pytest.raises(DataError, match="person_002"):
        run(people, QUICK, tmp_path / "out", name="x", licence="x", threads=1)
    labels.write_text("frame\n0\n")
    with pytest.raises(DataError, match="person_002"):
        run(people, QUICK, tmp_path / "out", name="x", licence="x", threads=1)


def test_a_crop_is_right_at_the_pixel():
    columns = torch.arange(320.0).expand(1, 3, 192, 320).contiguous()
    rows = torch.arange(192.0)[:, None].expand(1, 3, 192, 320).contiguous()
    box = torch.tensor([[40.0, 30.0, 120.0, 70.0]])  # its square, unwidened: 40-120, 10-90
    expected = (torch.arange(CROP) + 0.5) * 0.5 - 0.5
    torch.testing.assert_close(crop(columns, box, 1.0)[0, 0, 5], 40 + expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(crop(rows, box, 1.0)[0, 0, :, 5], 10 + expected, atol=1e-3, rtol=0)


def test_class_chances_are_products_of_components_with_the_rest_in_the_error_state():
    torch.manual_seed(1)
    logits = torch.randn(5, 3, 3) * 2
    states = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]])
    one, zero = torch.ones(()), torch.zeros(())
    found = class_chances(logits, one_hot(states), one, zero)
    chances = torch.softmax(logits, 2)
    for row in range(5):
        every = {
            values: float(np.prod([chances[row, k, v % 3] for k, v in enumerate(values)]))
            for values in itertools.product((0, 1, -1), repeat=3)
        }
        known = [every.pop(tuple(state.tolist())) for state in states]
        expected = [*known, sum(every.values())]
        np.testing.assert_allclose(found[row].numpy(), expected, atol=1e-5)


def test_known_states_are_those_without_errors_that_are_seen_often():
    seen = np.array([[1, 0], [1, 0], [1, 1], [1, -1], [1, -1], [0, 0], [0, 0]], np.int8)
    assert known_states(seen, 2).tolist() == [[1, 0]]
    known = known_states(seen, 1)
    assert known.tolist() == [[1, 0], [1, 1]]
    assert class_targets(seen, known).tolist() == [0, 0, 1, 2, 2, 2, 2]
    with pytest.raises(DataError, match="without an error"):
        known_states(seen[3:5], 1)
