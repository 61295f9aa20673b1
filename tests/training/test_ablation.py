"""Ablations: the tables, what is trained once, resuming, and how results are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="training needs torch: make test-training installs it")

from keystep_capture.errors import ConfigError, DataError, StateError  # noqa: E402
from keystep_models.cli import register  # noqa: E402
from keystep_models.measures.ablation_tables import TABLE_KEYS, find_tables  # noqa: E402
from keystep_models.steps.feature_folder import (  # noqa: E402
    CueFeatures,
    VideoFeatures,
    write_video,
)
from keystep_models.steps.settings import TrainingSettings  # noqa: E402
from keystep_models.training.ablation_runs import (  # noqa: E402
    Job,
    RunStore,
    drawn_recordings,
    run_jobs,
    variant_settings,
)
from keystep_models.training.train_steps import train_steps  # noqa: E402

SIZES = {"appearance": 10, "motion": 5, "gaze": 4, "head": 4, "left_hand": 3, "right_hand": 3}
TINY = ("--steps", 4, "--chunks", 16, "--seeds", 2, "--jobs", 1, "--progress", "json")

app = typer.Typer()
register(app)


def keystep(*args: object) -> list[dict[str, Any]]:
    result = CliRunner().invoke(app, ["evaluate", "ablation", *(str(arg) for arg in args)])
    if result.exception is not None:
        raise result.exception
    return [json.loads(line) for line in result.output.splitlines()]


def write_features(folder: Path, *, people: int = 4, labelled: bool = True) -> Path:
    """Simulated people: four phases that look different, with background between them."""
    looks = np.random.default_rng(9)
    centres = {cue: looks.normal(size=(5, size)) for cue, size in SIZES.items()}
    for person in range(people):
        rng = np.random.default_rng(person)
        labels = np.repeat([0, 1, 0, 2, 0, 3, 0, 4], 12)
        cues = {
            cue: CueFeatures(
                features=(centres[cue][labels] + rng.normal(size=(96, size))).astype("f4"),
                valid=np.ones(96, bool),
            )
            for cue, size in SIZES.items()
        }
        write_video(
            folder,
            VideoFeatures(
                name=f"p{person}",
                rate_hz=5.0,
                times_ns=np.arange(96, dtype=np.int64) * 200_000_000,
                cues=cues,
                labels=labels if labelled else None,
            ),
        )
    return folder


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_features(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, features: Path) -> Path:
    """Results of table 10."""
    folder = tmp_path_factory.mktemp("ablation")
    keystep("table10", "--features", features, "--out", folder, "--data", "made up", *TINY)
    return folder


def test_a_table_is_told_with_differences_baselines_and_the_papers_figures(out: Path) -> None:
    document = json.loads((out / "table10.json").read_text())
    rows = {row["name"]: row for row in document["rows"]}
    assert list(rows) == ["sigma only", "sampled only", "union for negatives", "union for both"]
    assert rows["union for both"]["difference"] is None
    pairs = zip(rows["sigma only"]["seeds"], rows["union for both"]["seeds"], strict=True)
    assert rows["sigma only"]["difference"]["mean"] == pytest.approx(
        np.mean([a - b for a, b in pairs]), abs=0.01
    )
    baselines = {row["name"]: row["f1"]["mean"] for row in document["baselines"]}
    assert baselines["linear probe, with labels"] > 70 > 2 * baselines["random"]
    text = (out / "table10.md").read_text()
    assert "made up" in text
    assert "32.1 / 14.9" in text
    assert (out / "table10.png").read_bytes().startswith(b"\x89PNG")


def test_another_table_trains_only_what_is_new(features: Path, out: Path) -> None:
    before = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("runs/*/model.pt")}
    assert len(before) == 4 * 2
    keystep("5", "--features", features, "--out", out, *TINY)
    after = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("runs/*/model.pt")}
    assert len(after) == len(before) + 2 * 2  # one cue, with either window
    assert before.items() <= after.items()
    keystep("7", "--features", features, "--out", out, *TINY)
    again = {path.parent.name for path in out.glob("runs/*/model.pt")}
    assert again == set(after)


def test_the_same_command_gives_the_same_document_whatever_the_processes(
    features: Path, out: Path, tmp_path: Path
) -> None:
    more = ("--jobs", 2, "--data", "made up")
    keystep("10", "--features", features, "--out", tmp_path, *TINY, *more)
    assert (tmp_path / "table10.json").read_bytes() == (out / "table10.json").read_bytes()


def test_a_stopped_run_goes_on_from_its_checkpoint(features: Path, tmp_path: Path) -> None:
    store = RunStore(features, tmp_path)
    names = ("p0", "p1", "p2", "p3")
    job = Job(
        settings=TrainingSettings(chunk_count=16, epochs=14, seed=5),
        recordings=names,
        wanted=((("appearance",), 4),),
    )
    videos = [store._videos[name] for name in names]
    with pytest.raises(StateError, match="stopped after 12"):
        train_steps(videos, job.settings, store.run_folder(job), stop_after=12)
    found = store.scores(job)
    assert len(json.loads((store.run_folder(job) / "curves.json").read_text())) == 14
    fresh = RunStore(features, tmp_path / "fresh")
    assert fresh.scores(job) == found
    assert not list(tmp_path.glob("*/checkpoint.pt"))


def test_fewer_recordings_are_measured_on_their_own_and_on_the_others(
    features: Path, tmp_path: Path
) -> None:
    events = keystep("figure5", "--features", features, "--out", tmp_path, *TINY)
    assert events[-1]["stage"] == "table"
    document = json.loads((tmp_path / "figure5.json").read_text())
    rows = {row["name"]: row for row in document["rows"]}
    assert set(rows["1 recording"]["more"]) == {"own", "own raw", "own uniform", "others"}
    assert rows["all 4 recordings"]["more"] == {}
    assert "those trained on" in (tmp_path / "figure5.md").read_text()


def test_drawn_recordings_are_nested_and_differ_between_seeds() -> None:
    names = [f"p{k}" for k in range(8)]
    for seed in range(3):
        assert set(drawn_recordings(names, 2, seed)) < set(drawn_recordings(names, 4, seed))
    assert len({drawn_recordings(names, 1, seed) for seed in range(6)}) > 1
    assert drawn_recordings(names, 0, 0) == tuple(names)


@pytest.mark.parametrize("recordings", [1, 4, 9, 20])
def test_training_has_as_many_steps_whatever_the_recordings(recordings: int) -> None:
    (table,) = find_tables("figure5", base_chunks=128, recording_count=20)
    base = TrainingSettings()
    chosen = variant_settings(
        base, table.variants[0], steps=300, recording_count=recordings, seed=0
    )
    assert chosen.epochs * max(1, -(-recordings // 4)) == 300


def test_every_row_of_every_table_has_valid_settings_and_a_reference() -> None:
    tables = find_tables("all", base_chunks=128, recording_count=20)
    assert [table.key for table in tables] == list(TABLE_KEYS)
    for table in tables:
        assert table.reference in {variant.name for variant in table.variants}
        for variant in table.variants:
            settings = variant_settings(
                TrainingSettings(), variant, steps=300, recording_count=20, seed=0
            )
            assert set(variant.inference) <= set(settings.cues)


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        (("table9",), ConfigError, "no ablation is called 'table9'; there are figure5, table10"),
        (("10", "--chunks", 2), ConfigError, "--chunks must be 16 or more"),
        (("10", "--sigma", 0), ConfigError, "--sigma must be above 0"),
    ],
)
def test_wrong_usage_is_told(
    features: Path, tmp_path: Path, args: tuple[object, ...], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        keystep(*args, "--features", features, "--out", tmp_path)


def test_features_without_labels_or_a_cue_are_told_before_training(tmp_path: Path) -> None:
    unlabelled = write_features(tmp_path / "unlabelled", people=2, labelled=False)
    with pytest.raises(DataError, match=r"expected labels\.npy"):
        keystep("10", "--features", unlabelled, "--out", tmp_path / "out", *TINY)
    lacking = write_features(tmp_path / "lacking", people=2)
    for video in lacking.glob("p*/video.json"):
        document = json.loads(video.read_text())
        del document["cues"]["gaze"]
        video.write_text(json.dumps(document))
    with pytest.raises(DataError, match="no video has cue 'gaze'"):
        keystep("4", "--features", lacking, "--out", tmp_path / "out", *TINY)
    assert not (tmp_path / "out" / "runs").exists()


def test_a_run_that_fails_ends_all_and_keeps_what_was_finished(
    features: Path, tmp_path: Path
) -> None:
    good = Job(
        settings=TrainingSettings(chunk_count=16, epochs=1),
        recordings=("p0",),
        wanted=((("appearance",), 3),),
    )
    bad = Job(
        settings=TrainingSettings(chunk_count=16, epochs=1, cues=("depth",)),
        recordings=("p0",),
        wanted=((("depth",), 3),),
    )
    with pytest.raises(DataError, match="no video has cue 'depth'"):
        run_jobs(features, tmp_path, [good, bad])
    assert len(list(tmp_path.glob("*/scores.json"))) == 1
    (broken,) = tmp_path.glob("*/scores.json")
    broken.write_text("{")
    with pytest.raises(DataError, match="delete it"):
        run_jobs(features, tmp_path, [good])
