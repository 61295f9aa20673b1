"""Reads published head poses and gaze pixels of a HoloLens 2 recording."""

from __future__ import annotations

import csv
import gzip
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError

_POSE_COLUMNS = [f"pose_{index:02d}" for index in range(16)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorRow:
    """Sensors of one frame.

    Attributes:
        gaze_px: Pixel (u, v) where the eye ray meets 0.6 m; None where no gaze was found. It may
            lie outside the picture.
        hands_visible: Whether a hand was seen.
        world_from_head_luf: Shape (4, 4), float64, columns left, up, forward, position (metres),
            as published; y is up in the world.
    """

    frame_idx: int
    gaze_px: tuple[int, int] | None
    hands_visible: bool
    world_from_head_luf: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class GazeCamera:
    """The nominal pinhole camera that gaze pixels are meant in, principal point in the centre."""

    width: int
    height: int
    horizontal_field_of_view_deg: float

    @property
    def focal_length_px(self) -> float:
        """Focal length in pixels, the same in x and y."""
        return self.width / 2 / math.tan(math.radians(self.horizontal_field_of_view_deg) / 2)


def load_sensor_rows(path: Path) -> dict[int, SensorRow]:
    """Read a sensors CSV (gzip or plain) into rows by frame number.

    Raises:
        DataError: The file is missing or not as documented.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            rows = [_row(fields) for fields in csv.DictReader(file)]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path.name} is not a sensors file: {error!r}") from error
    return {row.frame_idx: row for row in rows}


def _row(fields: dict[str, str]) -> SensorRow:
    gaze = (int(fields["gaze_x"]), int(fields["gaze_y"]))
    pose = np.array([float(fields[column]) for column in _POSE_COLUMNS]).reshape(4, 4)
    return SensorRow(
        frame_idx=int(fields["frame_idx"]),
        gaze_px=None if gaze == (0, 0) else gaze,
        hands_visible=fields["has_hands"] == "True",
        world_from_head_luf=pose,
    )


def load_gaze_camera(path: Path) -> GazeCamera:
    """Read the camera that belongs to a sensors file.

    Raises:
        DataError: The file is missing or not as documented.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))["gaze_camera"]
        return GazeCamera(
            width=int(table["width"]),
            height=int(table["height"]),
            horizontal_field_of_view_deg=float(table["horizontal_field_of_view_deg"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path.name} is not a camera file: {error!r}") from error
