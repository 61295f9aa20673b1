"""`keystep evaluate guidance`: its scores, its played tempo, the command on a small folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from keystep_models.cli import register
from keystep_models.guidance.emissions import PartRows
from keystep_models.guidance.step_timing import ExpertSegment
from keystep_models.measures.guidance_report import (
    Session,
    inversions,
    labels_of,
    thinned,
    true_segments,
    with_tempo,
)
from keystep_models.measures.guidance_scores import DoneStep, done_steps, score_session
from keystep_models.steps.feature_folder import CueFeatures, VideoFeatures, write_json, write_video

app = typer.Typer()
register(app)

MEANS = np.random.default_rng(7).normal(size=(9, 16)) * 4


def labels_in(order: list[int], step_ticks: int, gap_ticks: int) -> list[int]:
    labels = [0] * gap_ticks
    for label in order:
        labels += [label] * step_ticks + [0] * gap_ticks
    return labels


def session(name: str, order: list[int], seed: int, step_ticks: int = 40) -> Session:
    """Steps have a look of their own, and so have gaps, by how many steps are done."""
    labels = np.array(labels_in(order, step_ticks, 30))
    begun = np.concatenate([[0], np.cumsum(np.diff(labels) > 0)])
    looks = np.where(labels > 0, labels - 1, 4 + begun)
    noise = np.random.default_rng(seed).normal(size=(len(labels), 16))
    rows = (MEANS[looks] + noise).astype(np.float32)
    part = PartRows(rows=rows, valid=np.ones(len(rows), np.bool_))
    times = np.arange(len(labels)) / 10
    return Session(name=name, parts={"appearance": part}, labels=labels, times_s=times)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    people = (
        session("person_000", [1, 2, 3, 4], 0),
        session("person_001", [1, 3, 2, 4], 1, 70),
        session("person_002", [1, 2, 4], 2, 25),
    )
    for person in people:
        part = person.parts["appearance"]
        write_video(
            tmp_path,
            VideoFeatures(
                name=person.name,
                rate_hz=10.0,
                times_ns=np.round(person.times_s * 1e9).astype(np.int64),
                cues={"appearance": CueFeatures(features=part.rows, valid=part.valid)},
                labels=person.labels,
            ),
        )
    write_json(tmp_path / "keysteps.json", ["frame", "axle", "wheel", "seat"])
    return tmp_path


def run(folder: Path, *options: str) -> dict[str, list[dict[str, dict[str, float]]]]:
    target = folder.parent / f"{folder.name}.json"
    command = ["evaluate", "guidance", "--features", str(folder), "--expert", "person_000"]
    result = CliRunner().invoke(app, [*command, "--json", str(target), *options])
    assert result.exit_code == 0, result.output
    loaded: dict[str, list[dict[str, dict[str, float]]]] = json.loads(target.read_text())
    return loaded


def mean_f1(rows: list[dict[str, dict[str, float]]]) -> float:
    return float(np.mean([score["f1"] for run in rows for score in run.values()]))


def test_the_filter_beats_the_clock_where_looks_tell_the_steps(folder: Path) -> None:
    rows = run(folder, "--pictures", str(folder.parent / "pictures"))
    assert mean_f1(rows["key-step filter"]) > 0.9
    assert mean_f1(rows["clock and order"]) < 0.8
    assert {p.name for p in (folder.parent / "pictures").iterdir()} == {
        "person_001.png",
        "person_002.png",
    }


def test_tempo_gives_a_run_for_each_seed(folder: Path) -> None:
    rows = run(folder, "--tempo", "--seeds", "2", "--only", "person_001")
    first, second = rows["key-step filter"]
    assert list(first) == list(second) == ["person_001"]
    assert mean_f1(rows["key-step filter"]) > 0.8


def test_extracted_steps_are_scored_by_the_labels_they_cover(folder: Path) -> None:
    rows = run(folder, "--extracted", "--clusters", "9")
    assert mean_f1(rows["key-step filter"]) > 0.5


def test_an_unknown_expert_is_one_line(folder: Path) -> None:
    command = ["evaluate", "guidance", "--features", str(folder), "--expert", "nobody"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code != 0
    assert "Traceback" not in result.output


def test_a_report_is_right_from_the_middle_of_its_step_to_the_tolerance() -> None:
    truth = [DoneStep(label=1, start_s=10, end_s=20), DoneStep(label=2, start_s=30, end_s=40)]
    score = score_session([(1, 14.9), (1, 15.0), (1, 19.0), (2, 50.1)], truth, tolerance_s=10)
    assert (score.right, score.reported, score.done) == (1, 4, 2)
    assert score.delays_s == (-5.0,)
    assert (score.precision, score.recall) == (0.25, 0.5)
    assert score.f1 == pytest.approx(1 / 3)


def test_no_report_and_no_step_score_nothing() -> None:
    score = score_session([], [])
    assert (score.precision, score.recall, score.f1) == (0.0, 0.0, 0.0)


def test_done_steps_are_the_stretches_of_a_label() -> None:
    found = done_steps(np.array([0, 1, 1, 2, 0, 2]), np.arange(6) / 10)
    assert [(s.label, s.start_s, s.end_s) for s in found] == [
        (1, 0.1, 0.2),
        (2, 0.3, 0.3),
        (2, 0.5, 0.5),
    ]


def test_tempo_keeps_what_is_done_and_changes_how_long() -> None:
    before = session("a", [1, 2, 3, 4], 0)
    after = with_tempo(before, 1, 10.0)
    assert with_tempo(before, 1, 10.0).labels.tolist() == after.labels.tolist()
    assert with_tempo(before, 2, 10.0).labels.tolist() != after.labels.tolist()
    lengths = [segment.end_tick - segment.start_tick + 1 for segment in true_segments(after)]
    assert [s.step_id for s in true_segments(after)] == [1, 2, 3, 4]
    assert all(40 / 1.6 - 1 <= length <= 40 / 0.6 + 1 for length in lengths)


def test_orders_are_compared_by_pairs_and_extracted_steps_by_overlap() -> None:
    swapped = session("a", [1, 3, 2, 4], 0)
    assert inversions(swapped, [1, 2, 3, 4]) == 1
    found = [
        ExpertSegment(step_id=7, start_tick=32, end_tick=60),
        ExpertSegment(step_id=8, start_tick=72, end_tick=95),
    ]
    assert labels_of(found, swapped) == {7: 1}
    assert len(thinned(swapped, 2).labels) == len(swapped.labels) // 2
