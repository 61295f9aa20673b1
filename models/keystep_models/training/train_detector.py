"""Trains the small detector's two heads on features of a frozen trunk.

A run is a folder:

    settings.json     every choice, the people, the states
    features/         the trunk's features of each person
    checkpoint.pt     heads, optimiser, epoch; replaced after every epoch; a stopped run goes on
    curves.json       per epoch: losses, and accuracy on the people held out for calibration
    model/            the detector: detector.onnx, manifest.json, states.json

The same data, settings and number of threads give the same weights, stopped in between or not:
epoch e draws from generators seeded with (seed, e).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from keystep_capture.errors import ConfigError, DataError, ModelError, StateError
from keystep_models.steps.feature_folder import atomic_path, write_json
from keystep_models.training.detector_data import Looks, PersonFeatures, person_features
from keystep_models.training.detector_model import (
    GRID,
    HEIGHT,
    WIDTH,
    FindHead,
    NameHead,
    Trunk,
    WholeDetector,
    class_logits,
)

Tell = Callable[[Mapping[str, Any]], None]
"""Told of progress: `stage`, `done`, `of`, perhaps `recording` and `loss`."""

_BOX_SCALE = 16.0  # pixels of the input for which a box's error counts 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorSettings:
    """How to train.

    Attributes:
        every: Every how many frames of a video one is looked at.
        jitters: Crops of each of them, all but the first moved, turned and brightened.
        epochs: Times that every frame is seen.
        batch_size: Frames of a step.
        learning_rate: Of Adam, falling to 0 along a half cosine.
        min_frames: A state is a class where so many frames of the training people show it.
        seed: Of weights and of every draw.
    """

    every: int = 4
    jitters: int = 4
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3
    min_frames: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every choice."""
        counts = (self.every, self.jitters, self.epochs, self.batch_size, self.min_frames)
        if min(counts) < 1 or not 0 < self.learning_rate < 1:
            raise ConfigError(
                "expected every, jitters, epochs, batch_size and min_frames of 1 or more and a "
                f"learning_rate between 0 and 1, got {self}"
            )


@dataclass(slots=True, kw_only=True)
class _Run:
    """A run as it stands."""

    find: FindHead
    name: NameHead
    optimiser: torch.optim.Optimizer
    identity: str
    epoch: int = 0
    curves: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Data:
    """People's features one after the other; `crop_of` is a frame's place among crops, or -1."""

    whole: NDArray[np.float16]
    boxes: NDArray[np.float32]
    crops: NDArray[np.float16]
    states: NDArray[np.int8]
    crop_of: NDArray[np.int64]


def train_detector(
    people: Sequence[Path],
    calibration: Sequence[Path],
    settings: DetectorSettings,
    folder: Path,
    *,
    tell: Tell = lambda _: None,
    stop_after: int | None = None,
) -> tuple[WholeDetector, list[dict[str, float]]]:
    """Train a detector, or go on where a run in this folder was stopped.

    Args:
        people: Folders of a simulated data set to train on.
        calibration: Others, on which confidences are calibrated.
        settings: How to train.
        folder: The run's folder.
        tell: Told of progress.
        stop_after: Leave a checkpoint and stop once so many epochs are done.

    Returns:
        The detector, calibrated, and the curves.

    Raises:
        ConfigError: No people, or some both to train and to calibrate on.
        DataError: Recordings or labels cannot be read, or do not go together.
        StateError: The folder holds a run of other settings or people; or `stop_after` was
            reached.
        OSError: The disk does not take it; the last checkpoint stays.
    """
    if not people or not calibration or set(people) & set(calibration):
        raise ConfigError("expected people to train on and others to calibrate on")
    folder.mkdir(parents=True, exist_ok=True)
    identity = _identity(people, calibration, settings)
    _check_identity(folder, identity)
    trunk = Trunk()
    looks = Looks(trunk, torch.get_num_threads())
    trained, held = (
        _join([_features(p, settings, folder, looks, tell) for p in group])
        for group in (people, calibration)
    )
    if not len(held.states):
        raise DataError("no frame of the people to calibrate on shows an assembly; choose others")
    states = known_states(trained.states, settings.min_frames)
    document = {
        "identity": identity,
        "settings": asdict(settings),
        "people": [person.name for person in people],
        "calibration": [person.name for person in calibration],
        "states": states.tolist(),
        "frames": len(trained.whole),
        "torch": torch.__version__,
    }
    write_json(folder / "settings.json", document)
    run = _begin(folder, identity, states.shape[1], settings)
    choices = WholeDetector(trunk, run.find, run.name, torch.from_numpy(states))
    while run.epoch < settings.epochs:
        if stop_after is not None and run.epoch >= stop_after:
            raise StateError(f"stopped after {run.epoch} of {settings.epochs} epochs")
        losses = _epoch(run, trained, settings)
        run.curves.append({"epoch": run.epoch, **losses, **_measure(run, held)})
        run.epoch += 1
        _write_checkpoint(run, folder)
        tell(
            {
                "stage": "training",
                "done": run.epoch,
                "of": settings.epochs,
                "loss": losses["name_loss"],
            }
        )
    run.find.eval()
    run.name.eval()
    _calibrate(choices, run.name, held)
    return choices.eval(), run.curves


def known_states(states: NDArray[np.int8], min_frames: int) -> NDArray[np.int8]:
    """States without an error that frames show often enough, fewest components first, (S, K)."""
    found, counts = np.unique(states, axis=0, return_counts=True)
    found = found[(counts >= min_frames) & (found >= 0).all(axis=1) & found.any(axis=1)]
    if not len(found):
        raise DataError("no frame of the training people shows an assembly without an error")
    order = np.lexsort((*(-found.T[::-1]), found.sum(axis=1)))
    return np.ascontiguousarray(found[order])


def class_targets(states: NDArray[np.int8], known: NDArray[np.int8]) -> NDArray[np.int64]:
    """For each frame's state (F, K) which of the known ones (S, K) it is; S where it is none."""
    same = (states[:, None, :] == known[None]).all(axis=2)
    return np.where(same.any(axis=1), same.argmax(axis=1), len(known))


def _features(
    person: Path, settings: DetectorSettings, folder: Path, looks: Looks, tell: Tell
) -> PersonFeatures:
    def on_progress(done: int, of: int) -> None:
        tell({"stage": "features", "recording": person.name, "done": done, "of": of})

    return person_features(
        person,
        folder / "features",
        looks,
        every=settings.every,
        jitters=settings.jitters,
        on_progress=on_progress,
    )


def _join(found: Sequence[PersonFeatures]) -> _Data:
    if len({person.states.shape[1] for person in found}) > 1:
        raise DataError("the people's labels have different numbers of components")
    boxes = np.concatenate([person.boxes for person in found])
    there = np.isfinite(boxes).all(axis=1)
    return _Data(
        whole=np.concatenate([person.whole for person in found]),
        boxes=boxes,
        crops=np.concatenate([person.crops for person in found]),
        states=np.concatenate([person.states for person in found]),
        crop_of=np.where(there, np.cumsum(there) - 1, -1),
    )


def _identity(
    people: Sequence[Path], calibration: Sequence[Path], settings: DetectorSettings
) -> str:
    labels = [
        (p.name, hashlib.sha256((p / "frames.csv").read_bytes()).hexdigest())
        for p in (*people, *calibration)
    ]
    described = repr((len(people), labels, settings))
    return hashlib.sha256(described.encode()).hexdigest()


def _check_identity(folder: Path, identity: str) -> None:
    """Refuse another run's folder before hours of features, not after."""
    path = folder / "checkpoint.pt"
    if path.exists() and _read_checkpoint(path).get("identity") != identity:
        raise StateError(
            f"{folder}: holds a run with other settings or people; choose another folder"
        )


def _begin(folder: Path, identity: str, components: int, settings: DetectorSettings) -> _Run:
    torch.manual_seed(settings.seed)
    find, name = FindHead(), NameHead(components)
    parameters = [*find.parameters(), *name.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=1e-3)
    run = _Run(find=find, name=name, optimiser=optimiser, identity=identity)
    path = folder / "checkpoint.pt"
    if path.exists():
        document = _read_checkpoint(path)
        run.find.load_state_dict(document["find"])
        run.name.load_state_dict(document["name"])
        run.optimiser.load_state_dict(document["optimiser"])
        run.epoch, run.curves = document["epoch"], document["curves"]
    return run


def _epoch(run: _Run, data: _Data, settings: DetectorSettings) -> dict[str, float]:
    rng = np.random.default_rng([settings.seed, run.epoch])
    torch.manual_seed(int(rng.integers(1 << 31)))
    rate = 0.5 * settings.learning_rate * (1 + math.cos(math.pi * run.epoch / settings.epochs))
    for group in run.optimiser.param_groups:
        group["lr"] = rate
    run.find.train()
    run.name.train()
    order = rng.permutation(len(data.whole))
    sums = np.zeros(3)
    steps = range(0, len(order), settings.batch_size)
    for start in steps:
        frames = np.sort(order[start : start + settings.batch_size])
        sums += _step(run, data, frames, rng)
    names = ("place_loss", "box_loss", "name_loss")
    return dict(zip(names, (sums / len(steps)).tolist(), strict=True)) | {"learning_rate": rate}


def _step(
    run: _Run, data: _Data, frames: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float64]:
    places, boxes = run.find(_tensor(data.whole[frames]))
    target = torch.from_numpy(data.boxes[frames])
    there = torch.isfinite(target).all(dim=1)
    place_loss = functional.cross_entropy(places, _cells(target, there))
    box_loss = place_loss.new_zeros(())
    name_loss = place_loss.new_zeros(())
    if bool(there.any()):
        box_loss = functional.smooth_l1_loss(boxes[there] / _BOX_SCALE, target[there] / _BOX_SCALE)
        crops = data.crop_of[frames][there.numpy()]
        drawn = data.crops[crops, rng.integers(data.crops.shape[1], size=len(crops))]
        values = torch.from_numpy(data.states[crops].astype(np.int64)) % 3
        logits = run.name(_tensor(drawn))
        name_loss = functional.cross_entropy(logits.flatten(0, 1), values.flatten())
    run.optimiser.zero_grad()
    (place_loss + box_loss + name_loss).backward()
    run.optimiser.step()
    return np.array([float(loss.detach()) for loss in (place_loss, box_loss, name_loss)])


def _cells(boxes: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """The cell in which each box's centre lies; the last for "nowhere"."""
    rows, columns = GRID
    centre = 0.5 * (boxes[:, :2] + boxes[:, 2:])
    column = (centre[:, 0] / WIDTH * columns).nan_to_num().long().clamp(0, columns - 1)
    row = (centre[:, 1] / HEIGHT * rows).nan_to_num().long().clamp(0, rows - 1)
    return torch.where(there, row * columns + column, rows * columns)


def _measure(run: _Run, data: _Data) -> dict[str, float]:
    """How the heads do on people held out: presence, the box, components, whole states."""
    run.find.eval()
    run.name.eval()
    with torch.inference_mode():
        places, boxes = run.find(_tensor(data.whole))
        target = torch.from_numpy(data.boxes)
        there = torch.isfinite(target).all(dim=1)
        said = places.softmax(1)[:, -1] < 0.5
        error = (boxes[there] - target[there]).abs().mean()
        values = torch.from_numpy(data.states.astype(np.int64)) % 3
        right = _logits(run.name, data).argmax(2) == values
    return {
        "there": float((said == there).float().mean()),
        "box_error_px": float(error),
        "components": float(right.float().mean()),
        "states": float(right.all(dim=1).float().mean()),
    }


def _logits(name: NameHead, data: _Data) -> torch.Tensor:
    with torch.inference_mode():
        parts = [name(_tensor(part)) for part in np.array_split(data.crops[:, 0], 8) if len(part)]
    return torch.cat(parts)


def _calibrate(whole: WholeDetector, name: NameHead, data: _Data) -> None:
    """Set sharpness and bias to what makes the held-out people's states likeliest."""
    logits = _logits(name, data).clone()
    known = whole.choices.t().reshape(-1, name.component_count, 3).argmax(2)
    known_values = torch.where(known == 2, -1, known).numpy().astype(np.int8)
    target = torch.from_numpy(class_targets(data.states, known_values))
    log_sharpness = torch.zeros((), requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimiser = torch.optim.LBFGS([log_sharpness, bias], max_iter=100, tolerance_grad=1e-6)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        made = class_logits(logits, whole.choices, log_sharpness.exp(), bias)
        loss = functional.cross_entropy(made, target)
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        whole.sharpness.copy_(log_sharpness.detach().exp())
        whole.bias.copy_(bias.detach())


def _tensor(features: NDArray[np.float16]) -> torch.Tensor:
    return torch.from_numpy(features.astype(np.float32))


def _write_checkpoint(run: _Run, folder: Path) -> None:
    write_json(folder / "curves.json", run.curves)
    with atomic_path(folder / "checkpoint.pt") as path:
        torch.save(
            {
                "find": run.find.state_dict(),
                "name": run.name.state_dict(),
                "optimiser": run.optimiser.state_dict(),
                "epoch": run.epoch,
                "curves": run.curves,
                "identity": run.identity,
            },
            path,
        )


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        document = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch.load raises what its unpickler met
        raise ModelError(
            f"{path}: no checkpoint that torch can read: {error}; remove it to train anew"
        ) from error
    if not isinstance(document, dict) or not {"find", "name", "epoch"} <= document.keys():
        raise ModelError(f"{path}: expected a detector's checkpoint; remove it to train anew")
    return document
