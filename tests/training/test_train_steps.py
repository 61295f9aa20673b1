"""The training loop: it learns, repeats exactly, goes on where it was stopped, leaves out gaps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: make test-training installs it")

from keystep_capture.errors import DataError, ModelError, StateError  # noqa: E402
from keystep_models.measures.ksl_protocol import localize_videos  # noqa: E402
from keystep_models.steps.feature_folder import CueFeatures, VideoFeatures  # noqa: E402
from keystep_models.steps.settings import TrainingSettings  # noqa: E402
from keystep_models.training.steps_model import StepsModel, adapt_video, gather  # noqa: E402
from keystep_models.training.train_steps import run_name, train_steps  # noqa: E402

SIZES = {"appearance": 12, "motion": 6}


def video(seed: int, *, count: int = 120, missing: tuple[str, ...] = ()) -> VideoFeatures:
    """Simulated features of four phases, noisy, in a drawn order."""
    rng = np.random.default_rng(seed)
    phases = rng.permutation(4)[np.arange(count) * 4 // count]
    looks = np.random.default_rng(99)
    cues = {}
    for cue, size in SIZES.items():
        centres = looks.normal(size=(4, size))
        features = (centres[phases] + 1.2 * rng.normal(size=(count, size))).astype("f4")
        cues[cue] = CueFeatures(features=features, valid=np.ones(count, bool))
    return VideoFeatures(
        name=f"v{seed}",
        rate_hz=1.0,
        times_ns=np.arange(count, dtype=np.int64) * 10**9,
        cues={cue: found for cue, found in cues.items() if cue not in missing},
        labels=phases + 1,
    )


def with_gap(whole: VideoFeatures, cue: str, places: slice) -> VideoFeatures:
    """The same video, a cue missing (not a number) in some frames."""
    own = whole.cues[cue]
    features, valid = own.features.copy(), own.valid.copy()
    features[places], valid[places] = np.nan, False
    cues = {**whole.cues, cue: CueFeatures(features=features, valid=valid)}
    return VideoFeatures(
        name=whole.name, rate_hz=1.0, times_ns=whole.times_ns, cues=cues, labels=whole.labels
    )


def settings(**changes: Any) -> TrainingSettings:
    return TrainingSettings(**{"chunk_count": 32, "epochs": 4, "batch_size": 2, **changes})


def weights(model: StepsModel) -> list[Any]:
    return [value.clone() for value in model.state_dict().values()]


def same(first: list[Any], second: list[Any]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_training_lowers_the_loss_and_the_features_localise_better(tmp_path: Path) -> None:
    videos = [video(seed) for seed in range(3)]
    losses: list[float] = []
    chosen = settings(chunk_count=96, epochs=25, batch_size=3, sigma_seconds=10.0)
    model = train_steps(
        videos, chosen, tmp_path, on_progress=lambda done, of, loss: losses.append(loss)
    )
    assert len(losses) == 25
    assert losses[-1] < 0.8 * losses[0]
    adapted = [adapt_video(model, v, stride=1)[1]["appearance"][0] for v in videos]
    raw = [np.asarray(v.cues["appearance"].features) for v in videos]
    labels = [v.labels for v in videos if v.labels is not None]
    measure: Any = {"num_keysteps": 4, "num_clusters": 4, "together": False}
    found, before = (localize_videos(each, labels, **measure).f1 for each in (adapted, raw))
    assert found > before


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    videos = [video(0), video(1)]
    runs = [
        weights(train_steps(videos, settings(seed=seed), tmp_path / name))
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    videos, chosen = [video(0), video(1)], settings(epochs=5, drop_epochs=(3,))
    whole = train_steps(videos, chosen, tmp_path / "whole")
    with pytest.raises(StateError, match="stopped after 2 of 5"):
        train_steps(videos, chosen, tmp_path / "parts", stop_after=2)
    told: list[int] = []
    parts = train_steps(
        videos, chosen, tmp_path / "parts", on_progress=lambda done, of, loss: told.append(done)
    )
    assert told == [3, 4, 5]
    assert same(weights(whole), weights(parts))
    again = StepsModel.load(tmp_path / "parts" / "model.pt")
    assert same(weights(whole), weights(again))


def test_a_folder_with_another_run_is_left_alone(tmp_path: Path) -> None:
    train_steps([video(0)], settings(epochs=1), tmp_path)
    with pytest.raises(StateError, match="other settings or videos"):
        train_steps([video(0)], settings(epochs=2), tmp_path)


def test_videos_of_the_same_name_and_length_are_another_run(tmp_path: Path) -> None:
    first, other = video(0), replace(video(1), name="v0")
    assert run_name([first], settings()) == run_name([video(0)], settings())
    assert run_name([first], settings()) != run_name([other], settings())
    recorded = [replace(first, recording={"key": key}) for key in ("a", "b")]
    assert run_name(recorded[:1], settings()) != run_name(recorded[1:], settings())
    train_steps([first], settings(epochs=1), tmp_path)
    with pytest.raises(StateError, match="other settings or videos"):
        train_steps([other], settings(epochs=1), tmp_path)


def test_training_that_runs_away_is_an_error_not_a_result(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"choose a learning rate below 1e\+06"):
        train_steps([video(0)], settings(epochs=60, learning_rate=1e6), tmp_path)
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("encoder", ["transformer", "lstm", "tcn"])
def test_missing_cues_do_not_reach_the_encoders(tmp_path: Path, encoder: Any) -> None:
    whole = video(0)
    gap = with_gap(whole, "motion", slice(40, 80))
    chosen = settings(encoder=encoder, epochs=2)
    model = train_steps([gap, video(1, missing=("motion",))], chosen, tmp_path)
    assert all(torch.isfinite(value).all() for value in weights(model))
    _, adapted = adapt_video(model, gap, stride=1)
    features, there = adapted["motion"]
    assert there.tolist() == gap.cues["motion"].valid.tolist()
    kept = np.flatnonzero(there)
    short = gather([whole], [kept], SIZES)
    with torch.inference_mode():
        expected = model.adapt("motion", short.raw["motion"], short.timestamps, None)[0].numpy()
    np.testing.assert_allclose(features[there], expected, atol=1e-5)


def test_a_video_without_a_cue_has_no_adapted_features_of_it(tmp_path: Path) -> None:
    model = train_steps([video(0)], settings(epochs=1), tmp_path)
    _, adapted = adapt_video(model, video(1, missing=("motion",)))
    assert set(adapted) == {"appearance"}


def test_videos_shorter_than_a_window_and_constant_features_still_train(tmp_path: Path) -> None:
    short = video(0, count=3)
    still = CueFeatures(features=np.ones((3, 12), "f4"), valid=np.ones(3, bool))
    constant = VideoFeatures(
        name="still",
        rate_hz=1.0,
        times_ns=short.times_ns,
        cues={"appearance": still, "motion": short.cues["motion"]},
    )
    model = train_steps([short, constant], settings(epochs=2), tmp_path)
    assert all(torch.isfinite(value).all() for value in weights(model))


def test_a_cue_that_no_video_has_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no video has cue 'gaze'; there are appearance, motion"):
        train_steps([video(0)], settings(cues=("appearance", "gaze")), tmp_path)
    empty = with_gap(video(0), "motion", slice(None))
    with pytest.raises(DataError, match="missing in every frame"):
        train_steps([empty], settings(), tmp_path)


@pytest.mark.parametrize("content", [b"", b"no model", b"PK\x03\x04"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="no file that torch can read"):
        StepsModel.load(path)


@pytest.mark.parametrize("position", ["frame", "none", "after_mlp"])
@pytest.mark.parametrize("window", ["sigma", "sampled", "union_negatives", "union"])
def test_every_variant_trains(tmp_path: Path, position: Any, window: Any) -> None:
    chosen = settings(epochs=1, position=position, window=window, extent=0.5, causal=True)
    model = train_steps([video(0)], chosen, tmp_path)
    assert all(torch.isfinite(value).all() for value in weights(model))
