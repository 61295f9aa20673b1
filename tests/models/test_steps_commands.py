"""`keystep evaluate`, and the commands that need torch where it is not installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from keystep_capture.errors import ConfigError, DataError
from keystep_capture.samples.catalogue import find_sample
from keystep_models.cli import register
from keystep_models.commands.steps_options import split_cues, training_settings
from keystep_models.steps.feature_folder import CueFeatures, VideoFeatures, is_name, write_video
from keystep_models.steps.recording_source import folder_name

app = typer.Typer()
register(app)


def keystep(*args: object) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three simulated videos of three phases that lie apart."""
    folder = tmp_path_factory.mktemp("features")
    for seed in range(3):
        rng = np.random.default_rng(seed)
        labels = np.arange(120) // 40
        rows = (5.0 * np.eye(3, 8)[labels] + rng.normal(size=(120, 8))).astype("f4")
        write_video(
            folder,
            VideoFeatures(
                name=f"v{seed}",
                rate_hz=5.0,
                times_ns=np.arange(120, dtype=np.int64) * 200_000_000,
                cues={"appearance": CueFeatures(features=rows, valid=np.ones(120, bool))},
                labels=labels + 1,
            ),
        )
    return folder


def rows_of(path: Path) -> dict[str, Any]:
    return {row["name"]: row["values"] for row in json.loads(path.read_text())["rows"]}


def test_ksl_shows_baselines_raw_features_and_the_papers_figures(
    features: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ksl.json"
    printed = keystep(
        "evaluate", "ksl", "--features", features, "-k", 7, "--dataset", "meccano", "--json", out
    )
    assert "STEPs (published)" in printed
    assert "36.4" in printed
    rows = rows_of(out)
    assert rows["random"]["f1"] < rows["uniform"]["f1"]
    keystep("evaluate", "ksl", "--features", features, "-k", 3, "--json", out)
    assert rows_of(out)["raw features"]["f1"] > 0.99


@pytest.mark.parametrize("more", [("--overall",), ("--no-background",), ("--per-video",)])
def test_ksl_in_other_manners(features: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    out = tmp_path / "ksl.json"
    keystep("evaluate", "ksl", "--features", features, "-k", 3, "--json", out, *more)
    assert rows_of(out)["raw features"]["f1"] > 0.99


def test_phase_tau_and_summary_measure_raw_features(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    keystep("evaluate", "phase", "--features", features, "--seeds", 1, "--json", out)
    assert rows_of(out)["raw features"]["labels_1.0"] > 0.95
    keystep("evaluate", "tau", "--features", features, "--json", out)
    assert rows_of(out)["raw features"]["tau"] > 0.5
    keystep("evaluate", "summary", "--features", features, "--json", out)
    assert 0 < rows_of(out)["raw features"]["representation"] <= 1


def test_what_cannot_be_measured_is_said(features: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the cues gaze"):
        keystep("evaluate", "ksl", "--features", features, "--cues", "gaze")
    with pytest.raises(ConfigError, match="no figures of 'youtube'"):
        keystep("evaluate", "ksl", "--features", features, "--dataset", "youtube")
    with pytest.raises(DataError, match=r"video\.json"):
        keystep("evaluate", "ksl", "--features", tmp_path)


@pytest.mark.parametrize("measure", ["ksl", "phase", "tau", "summary"])
def test_features_of_different_sizes_are_not_measured_together(
    features: Path, tmp_path: Path, measure: str
) -> None:
    shutil.copytree(features, tmp_path / "features")
    rows = np.ones((120, 3), "f4")
    np.save(tmp_path / "features" / "v1" / "appearance.npy", rows)
    path = tmp_path / "features" / "v1" / "video.json"
    path.write_text(path.read_text().replace('"size": 8', '"size": 3'))
    with pytest.raises(DataError, match=r"features have 3 \(v1\) and 8 \(v2\) values"):
        keystep("evaluate", measure, "--features", tmp_path / "features")


def test_a_folder_that_was_copied_in_part_is_not_measured_as_whole(
    features: Path, tmp_path: Path
) -> None:
    shutil.copytree(features, tmp_path / "features")
    (tmp_path / "features" / "v2" / "video.json").unlink()
    with pytest.raises(DataError, match=r"v2: has no video\.json"):
        keystep("evaluate", "ksl", "--features", tmp_path / "features")


def test_options_change_the_preset_and_drops_keep_their_place() -> None:
    unchanged: dict[str, Any] = dict.fromkeys(
        ["cues", "bootstrap", "encoder", "epochs", "drop_epochs", "pair_weights"]
    )
    settings = training_settings(
        "small", 5, False, **{**unchanged, "epochs": 50, "cues": "motion,hands"}
    )
    assert settings.cues == ("motion", "left_hand", "right_hand")
    assert (settings.seed, settings.epochs, settings.drop_epochs) == (5, 50, (40,))
    with pytest.raises(ConfigError, match="--drop-epochs"):
        training_settings("small", 0, False, **{**unchanged, "drop_epochs": "x"})
    assert split_cues("a, b") == ("a", "b")


@pytest.mark.parametrize(
    "options",
    [
        ("--cues", "smell"),
        ("--clusters", "many"),
        ("--cue-file", "heat"),
        ("--cue-model", "heat"),
        ("--cue-model", "depth=manifest.json"),
        ("--soft-dtw", "-1"),
        ("--inference-cues", "gaze"),
        ("--preset", "huge"),
        ("--clustering", "dbscan"),
        ("--tick-rate", "inf"),
        ("--tick-rate", "1e9"),
        ("--seed", "-1"),
        ("--pairs", "appearance:motion=nan"),
        ("--min-duration", "nan"),
        ("--cue-file", "../heat=heat.npy"),
        ("--cue-file", "heat=heat.npy"),  # which --cues does not name
    ],
)
def test_extract_refuses_choices_that_do_not_exist(options: tuple[str, str]) -> None:
    with pytest.raises(ConfigError):
        keystep("extract", find_sample("pour-coffee").video_path, "--check", *options)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("pour_coffee", "pour_coffee"),
        ("My Video (2)", "My-Video-2-"),
        ("K\u00fcche", "Kuche"),
        ("\u53f0\u6240", "recording"),
        ("..", "recording"),
        ("training", "training-recording"),
        ("x" * 300, "x" * 80),
    ],
)
def test_a_videos_name_becomes_one_that_its_results_folder_can_have(file: str, name: str) -> None:
    assert folder_name(file) == name
    assert is_name(name)


@pytest.mark.parametrize(
    "command",
    [
        ["extract", str(find_sample("pour-coffee").video_path)],
        ["train", "steps", "--out", "run", "--features"],
    ],
)
def test_without_torch_one_line_says_what_to_install(
    tmp_path: Path, features: Path, command: list[str]
) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('torch')")
    arguments = [*command, str(features)] if command[-1] == "--features" else command
    hidden = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
    run = f"sys.argv[1:] = {arguments!r}; from keystep_capture.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", hidden + run], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "keystep[train]" in done.stderr
    assert not (tmp_path / "run").exists()
