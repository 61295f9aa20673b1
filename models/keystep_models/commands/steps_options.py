"""Options that `keystep extract` and `keystep train steps` share, and how they become settings."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from keystep_capture.errors import ConfigError, StateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from keystep_models.steps.settings import TrainingSettings


class ProgressChoice(StrEnum):
    """How progress is told."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"
    NONE = "none"


PresetOption: TypeAlias = Annotated[
    str, typer.Option(help="small: minutes on a CPU; published: the paper's.")
]
CuesOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="To train on, the anchor first: appearance,motion,depth,gaze,gaze_stack,head,hands."
    ),
]
BootstrapOption: TypeAlias = Annotated[
    str | None, typer.Option(help="Cues whose raw features widen the window; else the anchor's.")
]
EncoderOption: TypeAlias = Annotated[str | None, typer.Option(help="transformer, lstm or tcn.")]
PositionOption: TypeAlias = Annotated[
    str | None, typer.Option(help="Position encoding: frame, age, none or after_mlp.")
]
CausalOption: TypeAlias = Annotated[
    bool, typer.Option("--causal", help="A frame sees no later one.")
]
ContextOption: TypeAlias = Annotated[
    int | None,
    typer.Option(help="For --causal transformers: how many frames one sees, its own too."),
]
SpacingOption: TypeAlias = Annotated[
    str | None, typer.Option(help="Samples: chunks (spread over a video) or live (tick by tick).")
]
TempoOption: TypeAlias = Annotated[
    float | None, typer.Option(help="Live spacing: play samples up to so much faster or slower.")
]
WindowOption: TypeAlias = Annotated[
    str | None, typer.Option(help="sigma, sampled, union_negatives or union.")
]
SigmaOption: TypeAlias = Annotated[
    float | None, typer.Option(help="Half-width of the window in time, s.")
]
ExtentOption: TypeAlias = Annotated[
    float | None, typer.Option(help="Fraction of a video that a sample spans (beta).")
]
ChunksOption: TypeAlias = Annotated[int | None, typer.Option(help="Frames of a sample (N).")]
BatchOption: TypeAlias = Annotated[int | None, typer.Option(help="Videos of a step.")]
EpochsOption: TypeAlias = Annotated[int | None, typer.Option(help="Epochs.")]
RateOption: TypeAlias = Annotated[float | None, typer.Option(help="Learning rate of Adam.")]
DropsOption: TypeAlias = Annotated[
    str | None, typer.Option(help="Epochs at which the learning rate drops, e.g. 200,280; or none.")
]
FactorOption: TypeAlias = Annotated[
    float | None, typer.Option(help="By which the learning rate drops.")
]
PairsOption: TypeAlias = Annotated[
    str | None, typer.Option(help="Lambdas of pairs of cues, e.g. appearance:motion=0.5,...")
]
SoftDtwOption: TypeAlias = Annotated[
    float | None,
    typer.Option("--soft-dtw", help="Weight of soft-DTW alignment between videos; 0: without."),
]
SeedOption: TypeAlias = Annotated[int, typer.Option(help="Of weights and of every draw.")]
ThreadsOption: TypeAlias = Annotated[
    int,
    typer.Option(
        min=1, max=256, help="Threads to compute with; results repeat for the same number."
    ),
]
ProgressOption: TypeAlias = Annotated[
    ProgressChoice, typer.Option("--progress", help="auto, text, json (a line each) or none.")
]


def training_settings(preset: str, seed: int, causal: bool, **changes: Any) -> TrainingSettings:
    """The preset's settings with what the options change (None changes nothing)."""
    from keystep_models.steps.settings import parse_pair_weights, with_changes
    from keystep_models.steps.settings import preset as find_preset

    for name in ("cues", "bootstrap"):
        changes[name] = None if changes[name] is None else split_cues(changes[name])
    drops, pairs = changes.pop("drop_epochs"), changes.pop("pair_weights")
    settings = find_preset(preset)
    if changes["epochs"] is not None and drops is None:  # the preset's drops in proportion
        share = changes["epochs"] / settings.epochs
        drops_at: Any = tuple(max(1, round(share * epoch)) for epoch in settings.drop_epochs)
    else:
        drops_at = None if drops is None else _split_numbers(drops)
    return with_changes(
        settings,
        seed=seed,
        causal=causal or None,
        drop_epochs=drops_at,
        pair_weights=None if pairs is None else parse_pair_weights(pairs),
        **changes,
    )


def split_cues(text: str) -> tuple[str, ...]:
    """Names from "a,b"; "hands" stands for both hands."""
    names: list[str] = []
    for name in (part.strip() for part in text.split(",")):
        names += ["left_hand", "right_hand"] if name == "hands" else [name]
    return tuple(filter(None, names))


def _split_numbers(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--drop-epochs is {text!r}, expected e.g. 200,280, or none") from None


def parse_named_paths(items: list[str], option: str) -> dict[str, Path]:
    """NAME=PATH options as a mapping."""
    found = {}
    for item in items:
        name, _, path = item.partition("=")
        if not name or not path:
            raise ConfigError(f"{option} is {item!r}, expected NAME=PATH")
        found[name] = Path(path)
    return found


def check_drawing() -> None:
    """StateError where matplotlib is missing: before hours of work, not after."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise StateError(
            "this draws with matplotlib: install Keystep's [train] extra: "
            "pip install 'keystep[train]'"
        ) from None


@contextmanager
def training_extra(threads: int = 0) -> Iterator[None]:
    """Says what to install where the block imports torch and there is none; sets its threads.

    Threads that wait do not spin, which is what torch's do by default: a job beside a live server,
    or on a busy machine, would burn the others' time and take several times as long itself.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        import torch
    except ModuleNotFoundError:
        raise StateError(
            "this needs torch: install Keystep's [train] extra: pip install 'keystep[train]'"
        ) from None
    if threads:
        torch.set_num_threads(threads)
    yield


def progress_teller(choice: ProgressChoice) -> Callable[[dict[str, Any]], None]:
    """Tells of progress as the option says: JSON on stdout, a changing line on stderr."""
    if choice is ProgressChoice.JSON:
        return _tell_json
    if choice is ProgressChoice.NONE:
        return lambda _: None
    live = choice is ProgressChoice.AUTO and sys.stderr.isatty()
    return _TextTeller(live=live)


def _tell_json(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


class _TextTeller:
    """A line per stage; on a terminal the line changes as it goes on."""

    def __init__(self, *, live: bool) -> None:
        self._live = live
        self._stage: tuple[object, ...] = ()

    def __call__(self, event: dict[str, Any]) -> None:
        stage = (event["stage"], event.get("recording"))
        if not self._live and stage == self._stage:
            return
        if self._live and self._stage not in ((), stage):
            sys.stderr.write("\n")
        self._stage = stage
        words = [str(event["stage"]).replace("_", " ")]
        if "recording" in event:
            words.append(str(event["recording"]))
        if "done" in event and self._live:
            words.append(f"{event['done']}" + (f" of {event['of']}" if "of" in event else ""))
        if "loss" in event and self._live:
            words.append(f"loss {event['loss']:.3f}")
        start, end = ("\r\x1b[K", "") if self._live and event["stage"] != "done" else ("", "\n")
        sys.stderr.write(start + " ".join(words) + end)
        sys.stderr.flush()
