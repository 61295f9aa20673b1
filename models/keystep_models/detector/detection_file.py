"""Detections of a recording on their way to a file: written as they come, gone on with later.

The file is IndustReal's layout (`keystep_models.psr.detections`). Until it is whole it lies in
`NAME.partial`, with `NAME.partial.json` beside it, which says what it is made of. Every picture
that was looked at has a row, one without detections a row that ends after its number, so that a
later call knows how far an earlier one came.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from keystep_capture.errors import ConfigError, ModelError
from keystep_models.detector.classes import ClassMap
from keystep_models.detector.detector import Detector
from keystep_models.detector.recorded_pictures import Pictures, at_rate
from keystep_models.psr.detections import COLUMNS
from keystep_models.psr.logic import Detection
from keystep_models.steps.feature_folder import write_json

_FLUSH_ROWS: Final = 100

Progress = Callable[[int], None]
"""Called with pictures done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Pictures of a recording: all, those that cannot be decoded, those with detections."""

    pictures: int
    lost: int
    with_detections: int


def write_detections(
    pictures: Pictures,
    detector: Detector,
    out: Path,
    *,
    rate_hz: float | None = 10.0,
    class_map: ClassMap | None = None,
    on_progress: Progress | None = None,
) -> Counts:
    """Look at a recording's pictures and write what is in them.

    Args:
        pictures: The recording.
        detector: The detector.
        out: The file, .csv; there when it is whole.
        rate_hz: Pictures a second at most, numbered anew; None: every one, as it is numbered.
        class_map: To a procedure's classes; the detector's own where not given.
        on_progress: Told now and then.

    Raises:
        ConfigError: The file's name, or a rate that is none.
        DataError: The recording cannot be read.
        ModelError: The model failed.
        OSError: The disk does not take it; what was done is used by the next call.
    """
    if out.suffix != ".csv":
        raise ConfigError(f"--out {out}: expected a file ending in .csv")
    if rate_hz is not None and not 0 < rate_hz <= 1000:
        raise ConfigError(f"expected a rate above 0 and up to 1000 Hz, got {rate_hz}")
    made_of = {
        "recording": dict(pictures.identity),
        "detector": [detector.spec.name, detector.model.sha256, _manifest_hash(detector)],
        "rate_hz": rate_hz,
        "classes": None if class_map is None else list(class_map.procedure_ids),
    }
    count = lost = seen = 0
    with _Rows(out, pictures.name, made_of) as rows:
        for number, _, picture in at_rate(pictures.read(), rate_hz):
            count += 1
            if picture is None:
                lost += 1
            elif number > rows.last:
                found = detector.detect(picture)
                rows.write(number, found if class_map is None else class_map.apply(found))
            if on_progress is not None and count % _FLUSH_ROWS == 0:
                on_progress(count)
        seen = rows.finish()
    return Counts(pictures=count, lost=lost, with_detections=seen)


def _manifest_hash(detector: Detector) -> str:
    """Thresholds and classes are the manifest's, not the file's: they count as well."""
    told = json.dumps(detector.model.manifest.preprocessing, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


class _Rows:
    """The file while it is written."""

    def __init__(self, out: Path, clip: str, made_of: Mapping[str, Any]) -> None:
        self._out, self._clip = out, clip.replace(",", "_")
        self._partial = out.with_name(f"{out.name}.partial")
        self._marker = out.with_name(f"{out.name}.partial.json")
        self._made_of = json.loads(json.dumps(made_of))
        self._seen = 0
        self.last = -1
        """The last picture that has its rows."""

    def __enter__(self) -> Self:
        self._out.parent.mkdir(parents=True, exist_ok=True)
        kept = self._kept()
        if not kept:
            write_json(self._marker, self._made_of)
            kept = (",".join(COLUMNS) + "\n").encode()
            self._partial.write_bytes(kept)
        with self._partial.open("r+b") as file:
            file.truncate(len(kept))
        self._file = self._partial.open("a", encoding="utf-8", newline="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, number: int, detections: Sequence[Detection]) -> None:
        """A picture's rows; flushed now and then."""
        rows = dict.fromkeys(_row(each) for each in detections) or {"": None}
        self._file.write("".join(f"{self._clip},{number},{row}\n" for row in rows))
        self._seen += bool(detections)
        self.last = number
        if number % _FLUSH_ROWS == 0:
            self._file.flush()

    def finish(self) -> int:
        """Put the file in its place; pictures in it with detections."""
        self._file.close()
        self._partial.replace(self._out)
        self._marker.unlink()
        return self._seen

    def _kept(self) -> bytes:
        """What an earlier call wrote of the very same, but its last picture: it may be cut off."""
        if not (self._marker.exists() and self._partial.exists()):
            return b""
        try:
            same = json.loads(self._marker.read_bytes()) == self._made_of
        except ValueError:
            same = False
        lines = self._partial.read_bytes().split(b"\n")[:-1] if same else []
        if len(lines) < 2:
            return b""
        try:
            numbers = [int(line.split(b",")[1]) for line in lines[1:]]
        except (ValueError, IndexError):
            return b""
        done = [
            line for line, number in zip(lines[1:], numbers, strict=True) if number < numbers[-1]
        ]
        if not done:
            return b""
        self.last = int(done[-1].split(b",")[1])
        self._seen = len({line.split(b",")[1] for line in done if line.split(b",")[2]})
        return b"\n".join([lines[0], *done]) + b"\n"


def _row(found: Detection) -> str:
    if found.box is None:
        raise ModelError("expected a detection with a box, got one without")
    box = ",".join(f"{value:.2f}" for value in found.box)
    return f"{found.class_id},{found.confidence:.6f},{box}"
