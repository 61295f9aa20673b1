"""Which files belong to which recording: detections, clips, steps and ground truth in folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from keystep_capture.errors import ConfigError, DataError
from keystep_models.psr.procedure import ComponentState, Procedure
from keystep_models.psr.procedure_files import load_procedure
from keystep_models.psr.truth import (
    Layout,
    RecordingTruth,
    read_expected,
    read_labels,
    read_raw_labels,
    read_state_labels,
)

_DETECTION_ENDS: Final = (
    *("_pred.csv.gz", "_pred.csv", "_pred.json.gz", "_pred.json"),
    *(".csv.gz", ".csv", ".json.gz", ".json"),
)
_CLIP_ENDS: Final = tuple(
    f"{stem}{end}" for stem in ("_clips", "") for end in (".csv.gz", ".csv", ".json.gz", ".json")
)
_STEP_ENDS: Final = ("_steps.json", ".json", "_steps.csv", ".csv")
_STATE_ENDS: Final = ("_gt.csv.gz", "_gt.csv")
_LABEL_FILES: Final[Mapping[Layout, str]] = {
    "labels": "PSR_labels.csv",
    "with-errors": "PSR_labels_with_errors.csv",
    "raw": "PSR_labels_raw.csv",
    "raw-with-errors": "PSR_labels_raw.csv",
}
_EXPECTED: Final = "expected.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcedureChoice:
    """The procedure a user chose, for recordings of one task or of several.

    Without a task, a recording's own is taken: from its ground truth, or from a name like
    "03_assy_0_1".
    """

    source: str
    task: str | None = None
    states: tuple[ComponentState | None, ...] = ()
    initial_state: ComponentState | None = None

    def of_recording(self, name: str, task: str | None = None) -> Procedure:
        """The procedure that a recording follows; `task` is what its ground truth says."""
        return load_procedure(
            self.source,
            self.task,
            fallback_task=task or _task_in_name(name),
            states=self.states,
            initial_state=self.initial_state,
        )


def _task_in_name(name: str) -> str | None:
    parts = name.split("_")
    return next((task for task in ("assy", "main") if task in parts), None)


def find_detections(path: Path) -> dict[str, Path]:
    """Detection files by recording: one file, or all of a folder.

    In a folder these are the `_pred` files, or, without any, all CSV and JSON but ground truth.

    Raises:
        ConfigError: nothing is there.
    """
    if path.is_file():
        return {_without(path.name, _DETECTION_ENDS): path}
    _require_folder(path)
    for ends in (_DETECTION_ENDS[:4], _DETECTION_ENDS[4:]):
        found = _by_name(path, ends, ignore=(*_STATE_ENDS, _EXPECTED))
        if found:
            return found
    raise ConfigError(f"{path}: expected files ending in {', '.join(_DETECTION_ENDS)}, found none")


def find_clips(path: Path) -> dict[str, Path]:
    """Clip prediction files by recording: one file, or all of a folder."""
    if path.is_file():
        return {_without(path.name, _CLIP_ENDS): path}
    _require_folder(path)
    return _by_name(path, _CLIP_ENDS, ignore=(_EXPECTED,))


def find_steps(path: Path) -> dict[str, Path]:
    """Step files by recording: one file, or all .json and .csv of a folder."""
    if path.is_file():
        return {_without(path.name, _STEP_ENDS): path}
    _require_folder(path)
    found = _by_name(path, _STEP_ENDS, ignore=(_EXPECTED, "score.json"))
    if not found:
        raise ConfigError(f"{path}: expected step files (.json or .csv), found none")
    return found


def read_truths(
    path: Path, choice: ProcedureChoice | None, layout: Layout | None = None
) -> dict[str, RecordingTruth]:
    """Read the ground truth of one recording (file) or of several (folder, expected.json).

    Args:
        path: A file in one of the published layouts; or a folder with expected.json, with
            `_gt.csv[.gz]` files, or with a folder per recording that holds PSR_labels files.
        choice: Whose ids and states to expect. State labels need one and take IndustReal's when
            it is not given.
        layout: Found by the files' names when not given.

    Raises:
        ConfigError: nothing is there.
        DataError: a file is not as documented; the message names file, line and value.
    """
    if not path.exists():
        raise ConfigError(f"{path}: expected ground truth, found no such file or folder")
    layout = layout or _find_layout(path)
    if layout == "expected":
        file = path / _EXPECTED if path.is_dir() else path
        return _with_errors_beside(read_expected(file), file.parent, choice)
    if layout == "states":
        is_file = path.is_file()
        found = {_without(path.name, _STATE_ENDS): path} if is_file else _by_name(path, _STATE_ENDS)
        return {name: _read_states(file, name, choice) for name, file in found.items()}
    return {
        name: _read_label_file(file, name, choice, layout)
        for name, file in _label_files(path, layout).items()
    }


def _find_layout(path: Path) -> Layout:
    if path.is_dir():
        if (path / _EXPECTED).exists():
            return "expected"
        return "states" if _by_name(path, _STATE_ENDS) else "labels"
    if path.name.removesuffix(".gz").endswith(".json"):
        return "expected"
    if path.name.endswith(_STATE_ENDS):
        return "states"
    if "raw" in path.stem:
        return "raw"
    return "with-errors" if "with_errors" in path.stem else "labels"


def _label_files(path: Path, layout: Layout) -> dict[str, Path]:
    if path.is_file():
        is_published = path.name in _LABEL_FILES.values()
        return {path.parent.name if is_published else path.stem: path}
    file_name = _LABEL_FILES[layout]
    if (path / file_name).exists():
        return {path.name: path / file_name}
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
    missing = [folder.name for folder in folders if not (folder / file_name).exists()]
    if not folders or missing:
        raise ConfigError(
            f"{path}: expected expected.json, _gt.csv files or a folder per recording with"
            f" {file_name}; " + (f"it is missing in {', '.join(missing)}" if missing else "none")
        )
    return {folder.name: folder / file_name for folder in folders}


def _read_states(path: Path, name: str, choice: ProcedureChoice | None) -> RecordingTruth:
    choice = choice or ProcedureChoice(source="industreal")
    return read_state_labels(path, name, choice.of_recording(name))


def _read_label_file(
    path: Path, name: str, choice: ProcedureChoice | None, layout: Layout
) -> RecordingTruth:
    procedure = None if choice is None else choice.of_recording(name)
    if layout in ("raw", "raw-with-errors"):
        with_errors = layout == "raw-with-errors"
        return read_raw_labels(path, name, procedure, with_errors=with_errors)
    return read_labels(path, name, procedure)


def _with_errors_beside(
    truths: dict[str, RecordingTruth], folder: Path, choice: ProcedureChoice | None
) -> dict[str, RecordingTruth]:
    """Tell which recordings have errors where their state labels lie beside expected.json."""
    choice = choice or ProcedureChoice(source="industreal")
    return {name: _tell_errors(truth, folder, choice) for name, truth in truths.items()}


def _tell_errors(truth: RecordingTruth, folder: Path, choice: ProcedureChoice) -> RecordingTruth:
    files = [folder / (truth.name + end) for end in _STATE_ENDS]
    file = next((file for file in files if file.exists()), None)
    if file is None:
        return truth
    procedure = choice.of_recording(truth.name, truth.task)
    states = read_state_labels(file, truth.name, procedure, truth.frame_count)
    return replace(truth, has_errors=states.has_errors)


def _by_name(folder: Path, ends: tuple[str, ...], ignore: tuple[str, ...] = ()) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if (
            file.is_file()
            and file.name.endswith(ends)
            and not file.name.endswith(ignore or ("\0",))
        ):
            name = _without(file.name, ends)
            if name in found:
                raise DataError(f"{folder}: {found[name].name} and {file.name} are one recording")
            found[name] = file
    return found


def _without(name: str, ends: tuple[str, ...]) -> str:
    end = next((end for end in ends if name.endswith(end)), "")
    return name.removesuffix(end)


def _require_folder(path: Path) -> None:
    if not path.is_dir():
        raise ConfigError(f"{path}: expected a file or a folder, found neither")
