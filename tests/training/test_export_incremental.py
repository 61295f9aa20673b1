"""Stepping an exported graph equals torch's masked forward over the whole session."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="training needs torch: make test-training installs it")

from keystep_capture.errors import ConfigError, ModelError  # noqa: E402
from keystep_models.cli import register  # noqa: E402
from keystep_models.incremental.encoders import (  # noqa: E402
    Embeddings,
    IncrementalEncoders,
    Ticks,
)
from keystep_models.incremental.snapshot import SlotSnapshot  # noqa: E402
from keystep_models.steps.feature_folder import (  # noqa: E402
    CueFeatures,
    VideoFeatures,
    write_video,
)
from keystep_models.steps.settings import TrainingSettings  # noqa: E402
from keystep_models.training.export_incremental import (  # noqa: E402
    Features,
    export_incremental,
    made_up_features,
    masked_forward,
    stepping_difference,
)
from keystep_models.training.steps_model import StepsModel  # noqa: E402

SIZES = {"appearance": 20, "motion": 7}
TOLERANCE = 1e-4


def make_model(context: int = 6, **changes: Any) -> StepsModel:
    torch.manual_seed(0)
    settings = TrainingSettings(
        cues=tuple(SIZES), causal=True, context=context, spacing="live", **changes
    )
    model = StepsModel(SIZES, settings).eval()
    for name, value in model.named_parameters():  # biases and norms as after training
        if value.ndim == 1:
            torch.nn.init.normal_(value, mean=float("norm" in name and "weight" in name), std=0.3)
    return model


def tick(features: Features, slot: int, frame: int) -> Ticks:
    return batch([(features, slot, frame)])


def batch(rows: list[tuple[Features, int, int]]) -> Ticks:
    return Ticks(
        slots=np.array([slot for _, slot, _ in rows]),
        frames=np.array([frame for _, _, frame in rows]),
        raw={cue: np.stack([f[cue][0][at] for f, _, at in rows]) for cue in SIZES},
        valid={cue: np.array([f[cue][1][at] for f, _, at in rows]) for cue in SIZES},
    )


def check(found: Embeddings, row: int, expected: dict[str, NDArray[np.float32]], at: int) -> None:
    for cue, rows in found.adapted.items():
        np.testing.assert_allclose(rows[row], expected[cue][at], atol=TOLERANCE)


@pytest.mark.parametrize("position", ["frame", "none", "age"])
def test_stepping_equals_the_masked_forward_past_the_context_and_through_gaps(
    tmp_path: Path, position: Any
) -> None:
    model = make_model(position=position)
    assert export_incremental(model, tmp_path) < TOLERANCE
    features = made_up_features(SIZES, 200, seed=3)
    assert stepping_difference(model, tmp_path / "manifest.json", features) < TOLERANCE


def test_a_long_context_is_exact_too(tmp_path: Path) -> None:
    model = make_model(1024, position="age")
    assert export_incremental(model, tmp_path) < TOLERANCE  # 1224 ticks


def test_ticks_without_any_cue_need_not_be_stepped(tmp_path: Path) -> None:
    model = make_model()
    export_incremental(model, tmp_path)
    encoders = IncrementalEncoders.load(tmp_path / "manifest.json", slot_count=1)
    features = made_up_features(SIZES, 60)
    for _, valid in features.values():
        valid[10:14] = valid[30:45] = False
    expected, slot = masked_forward(model, features), encoders.open()
    for frame in [*range(10), *range(14, 30), *range(45, 60)]:
        check(encoders.step(tick(features, slot, frame)), 0, expected, frame)


def test_sessions_join_and_leave_in_any_order(tmp_path: Path) -> None:
    model = make_model()
    export_incremental(model, tmp_path)
    encoders = IncrementalEncoders.load(tmp_path / "manifest.json", slot_count=3)
    sessions = {n: made_up_features(SIZES, 40, seed=n) for n in range(7)}
    expected = {n: masked_forward(model, features) for n, features in sessions.items()}
    rng, running, waiting, steps = np.random.default_rng(0), {}, list(sessions), 0
    at = dict.fromkeys(sessions, 0)
    while waiting or running:
        if waiting and encoders.open_count < 3 and rng.random() < 0.3:
            running[waiting.pop()] = encoders.open()
        chosen = [n for n in rng.permutation(list(running)).tolist() if rng.random() < 0.7]
        if not chosen:
            continue
        found = encoders.step(batch([(sessions[n], running[n], at[n]) for n in chosen]))
        steps += len(chosen)
        for row, n in enumerate(chosen):
            check(found, row, expected[n], at[n])
            at[n] += 1
            if at[n] == 40:
                encoders.close(running.pop(n))
    assert steps == 7 * 40


@pytest.mark.parametrize("taken_at", [0, 3, 30])
def test_a_session_goes_on_from_a_snapshot(tmp_path: Path, taken_at: int) -> None:
    model = make_model(position="age")
    export_incremental(model, tmp_path)
    features = made_up_features(SIZES, 60)
    expected = masked_forward(model, features)
    first = IncrementalEncoders.load(tmp_path / "manifest.json", slot_count=1)
    slot = first.open()
    for frame in range(taken_at):
        first.step(tick(features, slot, frame))
    stored = first.snapshot(slot).to_bytes()
    second = IncrementalEncoders.load(tmp_path / "manifest.json", slot_count=4)
    other = second.open()
    slot = second.restore(SlotSnapshot.from_bytes(stored))
    assert slot != other
    for frame in range(taken_at, 60):
        check(second.step(tick(features, slot, frame)), 0, expected, frame)


def test_the_commands_train_and_export(tmp_path: Path) -> None:
    folder = tmp_path / "features"
    for seed in (0, 1):
        found = made_up_features(SIZES, 40, seed)
        cues = {cue: CueFeatures(features=raw, valid=valid) for cue, (raw, valid) in found.items()}
        times_ns = np.arange(40, dtype=np.int64) * 10**8
        write_video(
            folder, VideoFeatures(name=f"v{seed}", rate_hz=10.0, times_ns=times_ns, cues=cues)
        )
    app, run = typer.Typer(), tmp_path / "run"
    register(app)
    training = f"train steps --features {folder} --out {run} --preset live --tempo 1.5 --epochs 2"
    for words in (training, f"train export --model {run} --out {tmp_path / 'live'} --rate 10"):
        result = CliRunner().invoke(app, [*words.split()])
        assert result.exit_code == 0, result.exception
    model = StepsModel.load(run / "model.pt")
    assert (model.settings.context, model.settings.position) == (1024, "age")
    encoders = IncrementalEncoders.load(tmp_path / "live" / "manifest.json", slot_count=1)
    assert (encoders.spec.context, encoders.rate_hz) == (1024, 10.0)


def test_a_graph_that_differs_from_torch_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keystep_models.training.export_incremental.MAX_DIFFERENCE", 1e-12)
    with pytest.raises(ModelError, match="differs from torch"):
        export_incremental(make_model(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"causal": False, "context": 0},
        {"context": 0},
        {"encoder": "lstm", "context": 0},
        {"position": "after_mlp"},
    ],
)
def test_encoders_that_cannot_run_tick_by_tick_are_refused(tmp_path: Path, changes: Any) -> None:
    settings = TrainingSettings(**{"cues": tuple(SIZES), "causal": True, "context": 6, **changes})
    with pytest.raises(ConfigError, match=r"causal transformers|after_mlp"):
        export_incremental(StepsModel(SIZES, settings), tmp_path)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    documents = []
    for name in ("a", "b"):
        export_incremental(make_model(), tmp_path / name)
        documents.append(json.loads((tmp_path / name / "manifest.json").read_text()))
    assert documents[0] == documents[1]
