"""STORM's training: it learns, repeats exactly, goes on where it was killed, ends in a bundle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: make test-training installs it")

from keystep_capture.errors import ConfigError, DataError, ModelError, StateError  # noqa: E402
from keystep_models.psr.clips import ClipPrediction, read_clips  # noqa: E402
from keystep_models.psr.procedure import Procedure, ProcedureStep  # noqa: E402
from keystep_models.psr.procedure_document import of_steps, to_procedure  # noqa: E402
from keystep_models.psr.temporal import TemporalLogic  # noqa: E402
from keystep_models.storm.bundle import StormBundle, read_storm_bundle  # noqa: E402
from keystep_models.storm.clip_predictions import predict_clips, write_clips  # noqa: E402
from keystep_models.storm.clip_sampling import SessionTicks, clip_ticks  # noqa: E402
from keystep_models.storm.inputs import SessionInputs  # noqa: E402
from keystep_models.storm.settings import StageSettings, StormSettings  # noqa: E402
from keystep_models.training.storm_job import train_and_export  # noqa: E402
from keystep_models.training.storm_run import StormData, load_storm_model  # noqa: E402
from keystep_models.training.storm_stage import embed_session  # noqa: E402
from keystep_models.training.train_storm import train_storm  # noqa: E402

COMPONENTS = 4


def stage(epochs: int, steps: int = 4, batch: int = 16, rate: float = 1e-3) -> StageSettings:
    return StageSettings(
        epochs=epochs, steps=steps, batch=batch, learning_rate=rate, weight_decay=1e-4
    )


TINY = StormSettings(
    embedding=16, hidden=0, width=16, depth=1, heads=2, head_width=8, feed_forward=16,
    clip_frames=9, clip_every=4, classes=4, per_class=4, background=4,
    contrastive=stage(2), temporal_stage=stage(2), fine_tuning="all", fine_tune=stage(2, batch=4),
)  # fmt: skip


def session(seed: int, *, count: int = 300, hidden: tuple[int, int] = (0, 0)) -> SessionInputs:
    """Simulated features: a direction for each component, and noise; completions in order."""
    rng = np.random.default_rng(seed)
    looks = np.random.default_rng(99).normal(size=(COMPONENTS, 1280))
    ticks = np.sort(rng.choice(np.arange(20, count - 30, 12), COMPONENTS, replace=False))
    states = (np.arange(count)[:, None] >= ticks[None]).astype(np.int8)
    rows = states @ looks + 0.5 * rng.normal(size=(count, 1280))
    valid = np.ones(count, np.bool_)
    valid[slice(*hidden)] = False
    rows[~valid] = np.nan
    about = SessionTicks(
        name=f"s{seed}", states=states, valid=valid, frames=np.arange(count), frame_count=count
    )
    source = {"model": "made up", "sha256": "0" * 64}
    return SessionInputs(ticks=about, inputs=rows.astype(np.float32), source=source)


def procedure() -> Procedure:
    steps = [
        ProcedureStep(
            id=3 * idx, title=f"part {idx}", component_idx=idx, kind="completed", expected=True
        )
        for idx in range(COMPONENTS)
    ]
    document = of_steps(steps, name="made-up", task="assy", initial_state=(0,) * COMPONENTS)
    return to_procedure(document)


def sessions() -> list[SessionInputs]:
    return [session(seed, hidden=(60, 70)) for seed in range(3)]


def files(folder: Path) -> dict[str, bytes]:
    """What a run's result is, without what only went with it."""
    names = ["model.pt", "curves.json", *(f"bundle/{name}" for name in ("bundle.json",))]
    return {name: (folder / name).read_bytes() for name in names}


def run(folder: Path, settings: StormSettings = TINY) -> StormBundle:
    return train_and_export(sessions(), [session(9)], procedure(), settings, folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def test_a_run_stopped_after_any_epoch_ends_in_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(2):
        folder = tmp_path / f"parts{number}"
        stops = np.sort(rng.choice(np.arange(1, 6), 3, replace=False)).tolist()
        for stop in stops:
            with pytest.raises(StateError, match=f"stopped after {stop} epochs"):
                train_storm(
                    StormData(sessions=sessions(), held_out=[session(9)]),
                    TINY,
                    folder,
                    stop_after=stop,
                )
        run(folder)
        assert files(folder) == files(whole)


KILLED = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(int(sys.argv[3]))
from test_train_storm import run
run(pathlib.Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_in_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    command = [
        *(sys.executable, "-c", KILLED, str(Path(__file__).parent), str(folder)),
        str(torch.get_num_threads()),
    ]
    rng = np.random.default_rng(int(time.time()))
    for _ in range(4):
        process = subprocess.Popen(command, start_new_session=True)
        deadline = time.monotonic() + 120
        while not (folder / "settings.json").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.6)))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, timeout=240)
    assert files(folder) == files(whole)


def test_the_bundle_says_what_torch_says_from_the_first_tick_on_and_through_gaps(
    whole: Path,
) -> None:
    bundle = read_storm_bundle(whole / "bundle")
    model, document = load_storm_model(whole / "model.pt")
    assert document["classes"] == list(bundle.document.states)
    one = session(5, hidden=(100, 130))
    found = predict_clips(bundle, one)
    embedded = embed_session(model.spatial, one, "cpu")
    ends = np.flatnonzero(one.ticks.valid)
    ticks = clip_ticks(ends, TINY)
    valid = (ticks >= 0) & one.ticks.valid[np.maximum(ticks, 0)]
    with torch.inference_mode():
        clips = torch.from_numpy(embedded[np.maximum(ticks, 0)])
        expected = torch.sigmoid(model.temporal(clips, torch.from_numpy(valid))).numpy()
    assert np.isnan(found[100:130]).all()
    np.testing.assert_allclose(found[ends], expected, atol=1e-4)


def test_clips_are_written_as_psr_run_reads_them(whole: Path, tmp_path: Path) -> None:
    bundle, one = read_storm_bundle(whole / "bundle"), session(5, hidden=(40, 50))
    spread = replace(one.ticks, frames=2 * np.arange(300), frame_count=600)
    one = SessionInputs(ticks=spread, inputs=one.inputs, source=one.source)
    values = predict_clips(bundle, one)
    write_clips(tmp_path / "s5_clips.csv", one, values)
    clips = read_clips(tmp_path / "s5_clips.csv", COMPONENTS, 600)
    assert [clip is None for clip in clips[:8]] == [False, True] * 4
    assert clips[2 * 45] is None
    got = clips[2 * 60]
    assert got is not None
    np.testing.assert_allclose(got.confidences, values[60], atol=1e-6)


@pytest.mark.parametrize("kind", ["transformer", "gru", "mlp"])
def test_it_learns_which_components_change(tmp_path: Path, kind: Any) -> None:
    settings = replace(
        TINY, temporal=kind, fine_tuning="none", embedding=32, width=32, feed_forward=64,
        contrastive=stage(3, 20), temporal_stage=stage(12, 20, 64, 4e-3),
    )  # fmt: skip
    learnt = [session(seed) for seed in range(8)]
    bundle = train_and_export(learnt, [session(50)], procedure(), settings, tmp_path)
    last = json.loads((tmp_path / "curves.json").read_text())[-1]
    assert last["held_out_f1"] > 0.8
    one = session(60)
    logic = TemporalLogic(bundle.procedure, window_frames=bundle.document.accumulation.window_ticks)
    steps = [
        step
        for tick, row in enumerate(predict_clips(bundle, one))
        for step in logic.step(tick, ClipPrediction.of(row.tolist()))
    ]
    true = dict(zip([0, 3, 6, 9], one.ticks.completions.tolist(), strict=True))
    right = [step for step in steps if 0 <= step.frame_idx - true[step.step_id] < 40]
    assert len(right) >= 3
    for name in ("curves.png", "confusion.png", "embedding.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("changes", [{"key_frames": False}, {"key_clips": False}])
def test_the_baselines_without_key_frames_or_clips_train(
    tmp_path: Path, changes: dict[str, bool]
) -> None:
    bundle = run(tmp_path, replace(TINY, **changes))
    assert bundle.document.training["settings"] | changes == bundle.document.training["settings"]


@pytest.mark.parametrize("fine_tuning", ["temporal", "all"])
def test_fine_tuning_leaves_a_frozen_encoder_as_it_was(tmp_path: Path, fine_tuning: Any) -> None:
    data = StormData(sessions=sessions())
    settings = replace(TINY, fine_tuning=fine_tuning)
    with pytest.raises(StateError):
        train_storm(data, settings, tmp_path, stop_after=4)
    before = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["weights"]
    after = train_storm(data, settings, tmp_path).model.state_dict()
    spatial = [name for name in before if name.startswith("spatial.")]
    same = all(torch.equal(before[name], after[name]) for name in spatial)
    assert same == (fine_tuning == "temporal")
    assert not torch.equal(before["temporal.out.weight"], after["temporal.out.weight"])


def test_a_folder_with_another_run_is_left_alone(whole: Path) -> None:
    before = files(whole)
    with pytest.raises(StateError, match="other settings or sessions"):
        run(whole, replace(TINY, seed=1))
    with pytest.raises(StateError, match="other settings or sessions"):
        train_storm(StormData(sessions=sessions()[:2]), TINY, whole)
    assert files(whole) == before


def test_a_finished_run_called_again_is_the_same_bundle(whole: Path) -> None:
    assert run(whole).id == read_storm_bundle(whole / "bundle").id


def test_sessions_that_teach_nothing_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one session"):
        train_storm(StormData(sessions=[]), TINY, tmp_path)
    still = session(0)
    still.ticks.states[:] = 0
    with pytest.raises(DataError, match="expected two states or more"):
        train_storm(StormData(sessions=[still]), TINY, tmp_path)
    unseen = [session(seed, hidden=(0, 300)) for seed in range(3)]
    with pytest.raises(DataError, match="can be seen"):
        train_storm(StormData(sessions=unseen), TINY, tmp_path)
    assert not list(tmp_path.iterdir())


def test_inputs_of_another_model_are_refused(whole: Path) -> None:
    one = session(0)
    other = SessionInputs(ticks=one.ticks, inputs=one.inputs, source={"model": "b"})
    with pytest.raises(DataError, match="inputs were made by"):
        predict_clips(read_storm_bundle(whole / "bundle"), other)


@pytest.mark.parametrize("name", ["temporal/temporal.onnx", "procedure.json", "bundle.json"])
def test_a_damaged_bundle_is_refused(whole: Path, tmp_path: Path, name: str) -> None:
    import shutil

    folder = tmp_path / "bundle"
    shutil.copytree(whole / "bundle", folder)
    path = folder / name
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(DataError):
        read_storm_bundle(folder)
    path.unlink()
    with pytest.raises(DataError, match="there is none"):
        read_storm_bundle(folder)


@pytest.mark.parametrize("content", [b"", b"no model", b"PK\x03\x04"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ModelError, match="no file that torch can read"):
        load_storm_model(tmp_path / "model.pt")
