"""What `keystep train storm` and `keystep psr clips` share: reading a data set into sessions."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from keystep_capture.errors import ConfigError

if TYPE_CHECKING:
    from keystep_models.storm.inputs import InputChoice, SessionInputs
    from keystep_models.storm.labelled import LabelledDataset, LabelledRecording


class LayoutChoice(StrEnum):
    """How a data set's recordings lie in their folders."""

    RECORDINGS = "recordings"
    INDUSTREAL = "industreal"
    MECCANO = "meccano"


DatasetArgument: TypeAlias = Annotated[
    Path,
    typer.Argument(help="Folder of labelled recordings, as `keystep simulate generate` makes."),
]
ProcedureOption: TypeAlias = Annotated[
    str | None, typer.Option(help="As for psr run; else DATASET/procedure_info.json.")
]
TaskOption: TypeAlias = Annotated[
    str | None, typer.Option(help="Which task of the procedure; else assy.")
]
LayoutOption: TypeAlias = Annotated[
    LayoutChoice, typer.Option(help="recordings: ours; or published pictures and labels.")
]
FeaturesOption: TypeAlias = Annotated[
    Path | None, typer.Option(help="Feature folder to use and add to; else one beside --out.")
]


def load_dataset(
    folder: Path, procedure: str | None, task: str | None, layout: LayoutChoice
) -> LabelledDataset:
    """Find and check a data set; as `read_dataset`."""
    from keystep_models.storm.labelled import read_dataset

    return read_dataset(folder, procedure=procedure, task=task, layout=layout.value)


def choose_recordings(dataset: LabelledDataset, patterns: list[str]) -> list[LabelledRecording]:
    """Recordings whose names fit one of the patterns; ConfigError where a pattern fits none."""
    names = [recording.name for recording in dataset.recordings]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"no recording is called {pattern!r}; there are {', '.join(names)}")
    return [
        recording
        for recording in dataset.recordings
        if any(fnmatchcase(recording.name, pattern) for pattern in patterns)
    ]


def load_inputs(
    recordings: list[LabelledRecording],
    choice: InputChoice,
    tell: Callable[[dict[str, Any]], None],
) -> list[SessionInputs]:
    """What each recording shows, from the cache or made now."""
    from keystep_models.storm.inputs import read_inputs

    def told(name: str, done: int) -> None:
        tell({"stage": "features", "recording": name, "done": done})

    return [read_inputs(recording, choice, told) for recording in recordings]
