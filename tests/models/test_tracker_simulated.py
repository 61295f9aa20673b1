"""The tracker beside B3 on six simulated recordings: another object, no settings fitted for it."""

import json
from pathlib import Path
from typing import Any

import pytest

from keystep_models.measures.psr import (
    GroundTruthStep,
    PlainSummary,
    score_plain,
    summarise_plain,
)
from keystep_models.psr.logic import Detection
from keystep_models.psr.methods import METHODS, MethodOptions
from keystep_models.psr.procedure import (
    Procedure,
    ProcedureStep,
    builtin_procedure,
    parse_state,
)
from keystep_models.psr.recogniser import run_recording

GOLDEN = Path(__file__).parents[1] / "golden" / "psr"
SIMULATED = json.loads((GOLDEN / "recordings.json").read_text(encoding="utf-8"))


def procedure_of(recording: dict[str, Any]) -> Procedure:
    """The recording's procedure; of MECCANO's only that every installation is expected."""
    if recording["dataset"] == "industreal":
        return builtin_procedure("industreal-assy")
    count = recording["num_components"]
    return Procedure(
        name="meccano",
        task="assy",
        steps=tuple(
            ProcedureStep(
                id=3 * idx + offset,
                title=f"{kind} {idx}",
                component_idx=idx,
                kind=kind,
                expected=kind == "completed",
            )
            for idx in range(count)
            for offset, kind in enumerate(("completed", "incorrect", "removed"))
        ),
        component_count=count,
        initial_state=parse_state(recording["initial_state"]),
        states=tuple(parse_state(text) if text.isdigit() else None for text in recording["states"]),
    )


def score(dataset: str, method: str) -> PlainSummary:
    scores = []
    for recording in SIMULATED:
        if recording["dataset"] != dataset:
            continue
        recogniser = METHODS[method].make(procedure_of(recording), MethodOptions())
        frames = [[Detection(*pair) for pair in frame] for frame in recording["detections"]]
        done = run_recording(recogniser, frames, [None] * len(frames))
        truth = [GroundTruthStep(*pair) for pair in recording["ground_truth"]]
        scores.append(score_plain(truth, [s for s in done.steps if s.kind != "incorrect"]))
    return summarise_plain(scores)


@pytest.mark.parametrize(
    ("dataset", "method", "figures"),
    [
        ("industreal", "b3", (0.827, 0.709, 47.2)),
        ("industreal", "tracker", (0.845, 0.734, 35.3)),
        ("meccano", "b3", (0.921, 0.626, 90.9)),
        ("meccano", "tracker", (0.932, 0.820, 46.6)),
    ],
)
def test_the_documented_figures_are_reproduced(
    dataset: str, method: str, figures: tuple[float, float, float]
) -> None:
    summary = score(dataset, method)
    assert summary.recording_count == 3
    assert (summary.f1, summary.pos) == pytest.approx(figures[:2], abs=5e-4)
    assert summary.mean_delay_frames == pytest.approx(figures[2], abs=0.05)
