"""`keystep train storm` and `keystep psr clips|run|score` on pictures in a published layout."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

torch = pytest.importorskip("torch", reason="training needs torch: make test-training installs it")

from keystep_capture.errors import DataError, KeystepError  # noqa: E402
from keystep_capture.simulation.labels import procedure_info  # noqa: E402
from keystep_capture.simulation.tasks import find_task  # noqa: E402
from keystep_models.cli import register  # noqa: E402

COMPONENTS = len(find_task("lamp").components)


app = typer.Typer()
register(app)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recordings of 60 pictures; each completed part is a square of its own colour."""
    folder = tmp_path_factory.mktemp("storm") / "data"
    folder.mkdir()
    (folder / "procedure_info.json").write_text(json.dumps(procedure_info(find_task("lamp"))))
    colours = np.random.default_rng(0).integers(0, 256, (COMPONENTS, 3))
    for name, begin in (("a", 12), ("b", 18), ("c", 15)):
        (folder / name / "rgb").mkdir(parents=True)
        rows = ["00000.jpg" + ",0" * COMPONENTS]
        for number in range(60):
            picture = np.full((64, 96, 3), 128, np.uint8)
            done = max(0, (number - begin) // 15 + 1)
            for idx in range(done):
                picture[:, 24 * idx : 24 * idx + 24] = colours[idx]
            if number >= begin and (number - begin) % 15 == 0:
                state = ["1" if idx < done else "0" for idx in range(COMPONENTS)]
                rows.append(f"{number:05d}.jpg,{','.join(state)}")
            cv2.imwrite(str(folder / name / "rgb" / f"{number:05d}.jpg"), picture)
        (folder / name / "PSR_labels_raw.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_from_a_data_set_to_steps_that_are_scored(dataset: Path, tmp_path: Path) -> None:
    run, features = tmp_path / "run", tmp_path / "features"
    common = ("--layout", "industreal", "--features", features, "--threads", 1)
    trained = call(
        *("train", "storm", dataset, "--out", run, *common, "--hold-out", "c"),
        *("--clip-every", 1, "--epochs", "1,1", "--progress", "json"),
    )
    assert trained.exit_code == 0, trained.output
    told = [json.loads(line) for line in trained.stdout.splitlines()]
    assert {event["stage"] for event in told} == {"features", "contrastive", "temporal", "done"}
    found = call(
        *("psr", "clips", dataset, "--bundle", run / "bundle", "--out", tmp_path / "eval"),
        *(*common, "--only", "c"),
    )
    assert found.exit_code == 0, found.output
    assert "--window 65 --threshold 6" in found.output
    procedure = ("--procedure", dataset / "procedure_info.json", "--task", "assy")
    steps = call(
        *("psr", "run", "--method", "temporal", "--clips", tmp_path / "eval" / "clips", *procedure),
        *("--window", 65, "--out", tmp_path / "steps"),
    )
    assert steps.exit_code == 0, steps.output
    score = call(
        *("psr", "score", "--truth", dataset / "c" / "PSR_labels_raw.csv", "--steps"),
        *(tmp_path / "steps", "--out", tmp_path / "score.json"),
    )
    assert score.exit_code == 0, score.output


def test_what_does_not_fit_is_one_line_before_anything_is_computed(
    dataset: Path, tmp_path: Path
) -> None:
    start = ("train", "storm", dataset, "--out", tmp_path / "run", "--layout", "industreal")
    for options, message in (
        (("--preset", "huge"), "no preset is called 'huge'"),
        (("--hold-out", "person_9"), "no recording is called 'person_9'; there are a, b, c"),
        (("--hold-out", "*"), "leave no recording to train on"),
        (("--epochs", "1,2,x"), "--epochs is '1,2,x'"),
        (("--spatial-weights", "x.pt"), "--spatial-weights is for --preset published"),
        (("--spatial-weights", __file__, "--preset", "published"), "no file that torch can read"),
        (("--device", "nonsense"), "torch cannot compute on --device 'nonsense'"),
        (("--device", "meta"), "torch cannot compute on --device 'meta'"),
        (("--seed", "-1"), "seed must be 0 or more"),
        (("--embedding", 1 << 20), "choose a smaller embedding"),
        (("--licence", " "), "--licence is empty"),
        (("--clip-every", 0), "clip_every must be 1 or more"),
        (("--procedure", "industreal", "--task", "assy"), "expected an image and 11 components"),
    ):
        result = call(*start, *options)
        assert result.exit_code != 0
        assert isinstance(result.exception, KeystepError)
        assert message in str(result.exception)
        assert "\n" not in str(result.exception)
    assert not (tmp_path / "run").exists()
    foreign = call("psr", "clips", dataset, "--bundle", dataset, "--out", tmp_path / "eval")
    assert isinstance(foreign.exception, DataError)
    assert "bundle.json: expected a plain file" in str(foreign.exception)
