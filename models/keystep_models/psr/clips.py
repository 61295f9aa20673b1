"""What the spatio-temporal branch says of a frame, and the files it is read from.

A clip ends at every frame from the first full window on. Two layouts are read:

- CSV (.csv, .csv.gz): a header `framenr,component_0,...,component_{C-1}`, one row per frame in
  order and without gaps; sigmoid values in [0, 1]. A row that ends after the frame: no prediction.
- JSON (.json, .json.gz): per frame a list [[0 or 1 per component], [sigmoid per component]], both
  empty where there is no prediction.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keystep_capture.errors import DataError
from keystep_models.psr.text_files import finite_number, open_text, read_json, shown, whole_number

_PREDICTED: Final = 0.5  # a component is predicted at this sigmoid value or above


@dataclass(frozen=True, slots=True)
class ClipPrediction:
    """Which components changed within the clip that ends at a frame.

    `confidences` holds the sigmoid per component, length C, in [0, 1]; `predicted` which of them
    count as changed.
    """

    confidences: tuple[float, ...]
    predicted: tuple[bool, ...]

    @classmethod
    def of(cls, confidences: Sequence[float]) -> ClipPrediction:
        """The prediction of a clip's sigmoid values: a component counts from 0.5 on."""
        return cls(tuple(confidences), tuple(value >= _PREDICTED for value in confidences))

    def check(self, component_count: int, what: str = "clip prediction") -> None:
        """Raise DataError, naming `what`, unless there is one usable value per component."""
        if not len(self.confidences) == len(self.predicted) == component_count:
            raise DataError(
                f"{what}: expected {component_count} components, got {len(self.confidences)}"
                f" confidences and {len(self.predicted)} predictions"
            )
        for idx, confidence in enumerate(self.confidences):
            if not 0.0 <= confidence <= 1.0:
                raise DataError(
                    f"{what}: expected confidences from 0 to 1, got {confidence} for component"
                    f" {idx}"
                )


def read_clips(
    path: str | Path, component_count: int, frame_count: int | None = None
) -> list[ClipPrediction | None]:
    """Read a recording's clip predictions, frame by frame; None where there is none.

    Args:
        path: A .csv, .csv.gz, .json or .json.gz file as documented above.
        component_count: Components C of the procedure.
        frame_count: Frames in the recording; up to the last row's frame when not given.

    Raises:
        DataError: the file cannot be read, is not as documented, or goes past `frame_count`.
    """
    path = Path(path)
    is_json = path.name.removesuffix(".gz").endswith(".json")
    rows = list(_json_rows(path, component_count) if is_json else _csv_rows(path, component_count))
    last_idx = rows[-1][0] if rows else -1
    if frame_count is None:
        frame_count = last_idx + 1
    if last_idx >= frame_count:
        raise DataError(f"{path}: expected frames below {frame_count}, got frame {last_idx}")
    frames: list[ClipPrediction | None] = [None] * frame_count
    for frame_idx, clip in rows:
        frames[frame_idx] = clip
    return frames


def _csv_rows(path: Path, component_count: int) -> Iterator[tuple[int, ClipPrediction | None]]:
    header = ["framenr", *(f"component_{idx}" for idx in range(component_count))]
    last_idx: int | None = None
    with open_text(path, "clip predictions") as lines:
        reader = csv.reader(lines)
        came = next(reader, [])
        if came != header:
            raise DataError(
                f"{path}, line 1: expected the columns {','.join(header)}, got {shown(came)}"
            )
        for number, row in enumerate(reader, start=2):
            where = f"{path}, line {number}"
            while row and not row[-1].strip():
                row.pop()
            if len(row) not in (1, len(header)):
                raise DataError(
                    f"{where}: expected {len(header)} values, or the frame alone, got {len(row)}:"
                    f" {shown(row)}"
                )
            frame_idx = whole_number(row[0], f"{where}, framenr")
            if last_idx is not None and frame_idx != last_idx + 1:
                raise DataError(
                    f"{where}: expected frame {last_idx + 1}, got frame {frame_idx}; frames come"
                    " in order, each once, a frame without prediction as its number alone"
                )
            last_idx = frame_idx
            yield frame_idx, _csv_clip(row[1:], component_count, where) if row[1:] else None


def _csv_clip(values: Sequence[str], component_count: int, where: str) -> ClipPrediction:
    clip = ClipPrediction.of(
        [
            finite_number(value, f"{where}, component_{idx}", low=0.0, high=1.0)
            for idx, value in enumerate(values)
        ]
    )
    clip.check(component_count, where)
    return clip


def _json_rows(path: Path, component_count: int) -> Iterator[tuple[int, ClipPrediction | None]]:
    frames = read_json(path, "clip predictions")
    if not isinstance(frames, list):
        raise DataError(f"{path}: expected a list with one entry per frame")
    for frame_idx, frame in enumerate(frames):
        where = f"{path}, frame {frame_idx}"
        try:
            predicted, confidences = frame
            clip = ClipPrediction(
                tuple(float(value) for value in confidences),
                tuple((False, True)[value] for value in predicted),
            )
        except (TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"{where}: expected [[0 or 1 per component], [sigmoid per component]], got"
                f" {shown(frame)}"
            ) from error
        if clip.confidences or clip.predicted:
            clip.check(component_count, where)
            yield frame_idx, clip
        else:
            yield frame_idx, None
