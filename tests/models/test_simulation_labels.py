from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from keystep_capture.simulation.generate import DatasetSpec, generate
from keystep_capture.simulation.labels import procedure_info, write_labels
from keystep_capture.simulation.people import make_person
from keystep_capture.simulation.plan import make_plan
from keystep_capture.simulation.session import SessionSpec
from keystep_capture.simulation.tasks import find_task
from keystep_capture.simulation.truth import FrameTruth, SessionTruth
from keystep_models.psr.procedure_files import load_procedure
from keystep_models.psr.recording_files import read_truths


def labelled(folder: Path, seed: int) -> SessionTruth:
    """Labels of a whole session with mistakes, without its pictures."""
    task, person = find_task("gearbox"), make_person(seed, 2)
    plan = make_plan(task, person, seed, mistake_scale=8.0)
    truth = SessionTruth(task=task, plan=plan, occluded=(), width=320, height=180, frame_rate_hz=10)
    for idx in range(int(plan.duration_s * 10)):
        truth.frames.append(
            FrameTruth(
                device_time_ns=idx * 100_000_000,
                time_s=idx / 10,
                state=truth.state_at(idx / 10),
                hidden=np.full(len(task.components), np.nan),
                assembly_hidden=float("nan"),
                box=None,
            )
        )
    folder.mkdir()
    write_labels(folder, truth)
    return truth


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_the_label_files_say_the_same_as_the_plan(tmp_path: Path, seed: int) -> None:
    truth = labelled(tmp_path / "person_002", seed)
    steps = {
        layout: [
            (s.frame_idx, s.step_id)
            for s in read_truths(tmp_path, None, layout)["person_002"].steps
        ]
        for layout in ("labels", "with-errors", "raw", "raw-with-errors")
    }
    assert steps["labels"] == steps["raw"]
    assert steps["with-errors"] == steps["raw-with-errors"]
    kinds = {0: "install", 1: "misinstall", 2: "remove"}
    told = [(kinds[step % 3], step // 3) for _, step in steps["with-errors"]]
    planned = [(a.kind, a.component) for a in truth.plan.actions]
    for step in told:
        assert step in planned
    wrong = sum(a.kind == "misinstall" for a in truth.plan.actions)
    assert wrong == sum(kind == "misinstall" for kind, _ in told)
    assert [s for s in planned if s[0] == "install"] == [s for s in told if s[0] == "install"]


def test_the_procedure_of_a_task_can_be_loaded(tmp_path: Path) -> None:
    import json

    path = tmp_path / "procedure_info.json"
    path.write_text(json.dumps(procedure_info(find_task("lamp"))))
    procedure = load_procedure(str(path), "assy")
    assert procedure.component_count == 8
    assert [step.id for step in procedure.steps if step.expected] == list(range(0, 24, 3))


def test_perfect_steps_score_perfectly(tmp_path: Path) -> None:
    import typer

    from keystep_models.cli import register

    spec = SessionSpec(task="lamp", seed=2, person=0, occlusion_rate=0.0)
    generate(DatasetSpec(session=spec, people=1, limit_s=25.0), tmp_path / "set")
    app = typer.Typer()
    register(app)
    folder = tmp_path / "set" / "person_000"
    found = CliRunner().invoke(
        app,
        ["psr", "score", "--truth", str(folder), "--steps", str(folder / "PSR_labels.csv"),
         "--procedure", str(tmp_path / "set" / "procedure_info.json"), "--task", "assy",
         "--out", str(tmp_path / "score.json"), "--recording", "person_000"],
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert '"f1": 1.0' in (tmp_path / "score.json").read_text().lower()
