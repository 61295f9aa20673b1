"""Pictures of a STORM run: curves, which states are taken for which, and how embeddings lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keystep_models.steps.feature_folder import atomic_path
from keystep_models.storm.clip_sampling import BACKGROUND, frame_classes
from keystep_models.storm.inputs import SessionInputs
from keystep_models.storm.settings import StormSettings
from keystep_models.training.storm_run import STAGES, StormRun
from keystep_models.training.storm_stage import stored_embeddings

_MAX_POINTS: Final = 3000
_TITLES: Final = {
    "contrastive": "contrastive: spatial encoder",
    "temporal": "temporal model on stored embeddings",
    "fine_tune": "fine-tuning",
}


def draw_run(
    run: StormRun,
    sessions: Sequence[SessionInputs],
    held_out: Sequence[SessionInputs],
    settings: StormSettings,
    folder: Path,
) -> None:
    """Write curves.png, confusion.png and embedding.png into a run's folder.

    Classes are those of key frames. A frame is taken for the class whose mean embedding, over the
    sessions trained on, lies nearest; held-out sessions are shown where there are any.

    Raises:
        OSError: The disk does not take it.
    """
    draw_curves(run.curves, folder / "curves.png")
    shown = held_out or sessions
    what = "held-out sessions" if held_out else "the sessions trained on"
    embedded = stored_embeddings(run.model.spatial, [*sessions, *held_out], folder / "embeddings")
    learnt, learnt_classes = _key_frames(sessions, run.classes, settings, embedded)
    seen, seen_classes = _key_frames(shown, run.classes, settings, embedded)
    names = ["background", *run.classes]
    nearest = _nearest(learnt, learnt_classes, seen)
    draw_confusion(seen_classes, nearest, names, folder / "confusion.png", what)
    draw_embedding(seen, seen_classes, folder / "embedding.png", what)


def draw_curves(curves: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss of every epoch, stage by stage, that of held-out clips beside it."""
    stages = [name for name in STAGES if any(row["stage"] == name for row in curves)]
    figure = _figure(4.2 * max(1, len(stages)), 3.4)
    for axes, name in zip(
        np.atleast_1d(figure.subplots(1, max(1, len(stages)))), stages, strict=False
    ):
        rows = [row for row in curves if row["stage"] == name]
        axes.plot(
            [row["epoch"] + 1 for row in rows], [row["loss"] for row in rows], label="trained"
        )
        measured = [row for row in rows if "held_out_loss" in row]
        if measured:
            places = [row["epoch"] + 1 for row in measured]
            axes.plot(places, [row["held_out_loss"] for row in measured], "o-", label="held out")
            axes.legend(fontsize=7, frameon=False)
        axes.set_title(_TITLES[name], fontsize=9, loc="left")
        axes.set_xlabel("epoch", fontsize=8)
        axes.set_ylabel("loss", fontsize=8)
    _write(figure, path)


def draw_confusion(
    true: NDArray[np.int64],
    found: NDArray[np.int64],
    names: Sequence[str],
    path: Path,
    what: str,
) -> None:
    """Share of each class's key frames that is taken for each class, int64 (M,) both."""
    count = len(names)
    table = np.zeros((count, count))
    np.add.at(table, (true, found), 1.0)
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1.0)
    right = float((true == found).mean()) if len(true) else 0.0
    figure = _figure(2.2 + 0.24 * count, 2.0 + 0.24 * count)
    axes = figure.subplots()
    image = axes.imshow(share, vmin=0.0, vmax=1.0, cmap="Blues")
    axes.set_xticks(range(count), names, rotation=90, fontsize=6)
    axes.set_yticks(range(count), names, fontsize=6)
    axes.set_xlabel("taken for (nearest mean)", fontsize=8)
    axes.set_ylabel("true", fontsize=8)
    title = f"key frames of {what}: {100 * right:.0f} % right of {len(true)}"
    axes.set_title(title, fontsize=8, loc="left")
    figure.colorbar(image, shrink=0.6)
    _write(figure, path)


def draw_embedding(
    rows: NDArray[np.float32], classes: NDArray[np.int64], path: Path, what: str
) -> None:
    """Key frames' embeddings (M, D) on their two main axes, coloured by class (M,)."""
    if len(rows) > _MAX_POINTS:
        kept = np.random.default_rng(0).permutation(len(rows))[:_MAX_POINTS]
        rows, classes = rows[kept], classes[kept]
    centred = rows - rows.mean(axis=0, keepdims=True) if len(rows) else rows
    axes_of = np.linalg.svd(centred, full_matrices=False)[2][:2] if len(rows) > 1 else None
    figure = _figure(6.0, 5.0)
    axes = figure.subplots()
    if axes_of is not None and len(axes_of) == 2:
        flat = centred @ axes_of.T
        back = classes == BACKGROUND
        axes.scatter(flat[back, 0], flat[back, 1], s=5, c="lightgrey", label="background")
        axes.scatter(flat[~back, 0], flat[~back, 1], s=7, c=classes[~back], cmap="nipy_spectral")
        axes.legend(fontsize=7, frameon=False)
    axes.set_title(f"embeddings of key frames of {what}, colour: state", fontsize=8, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    _write(figure, path)


def _key_frames(
    sessions: Sequence[SessionInputs],
    classes: Sequence[str],
    settings: StormSettings,
    embedded: dict[str, NDArray[np.float32]],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rows, found = [], []
    for session in sessions:
        of = frame_classes(session.ticks, classes, settings)
        rows.append(embedded[session.ticks.name][of >= 0])
        found.append(of[of >= 0])
    return np.concatenate(rows), np.concatenate(found)


def _nearest(
    learnt: NDArray[np.float32], classes: NDArray[np.int64], rows: NDArray[np.float32]
) -> NDArray[np.int64]:
    present = np.unique(classes)
    means = np.stack([learnt[classes == one].mean(axis=0) for one in present])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-6)
    return np.asarray(present[(rows @ means.T).argmax(axis=1)], np.int64)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _write(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
