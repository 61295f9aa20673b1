"""A folder of numbered pictures, as IndustReal and MECCANO publish them, as a recording's source.

Found and timed as `keystep import` does it; nothing is copied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from keystep_capture.errors import DataError, VideoError
from keystep_capture.importers.frame_folder import (
    INDUSTREAL,
    MECCANO,
    find_pictures,
    frame_time_ns,
    jpeg_size,
)
from keystep_capture.video import PacketDecoder
from keystep_models.steps.recording_source import Moment

_NS: Final = 1_000_000_000
_HEADER_BYTES: Final = 1 << 16  # of a JPEG, which its frame header lies in
_DATA_SETS: Final = {"industreal": INDUSTREAL, "meccano": MECCANO}


class PictureFolder:
    """One published recording's folder; picture n is put at n / rate.

    Attributes:
        image_size: Width and height of every picture.
        frame_times_ns: Device time of each frame from number 0 on, int64 (F,); MECCANO's pictures
            count from 1, its frame 0 is not there.
        frame_epochs: All 0, int64 (F,).
    """

    def __init__(self, path: Path, data_set: Literal["industreal", "meccano"]) -> None:
        """Read every picture's header.

        Raises:
            DataError: There is no picture, one is none or missing, or their sizes differ.
        """
        self._path = path
        self._rate_hz = _DATA_SETS[data_set].rate_hz
        self._pictures = find_pictures(path)
        if not self._pictures:
            raise DataError(f"{path}: expected JPEG pictures; is the folder copied whole?")
        numbers = list(self._pictures)
        lost = numbers[-1] + 1 - min(numbers[0], 1) - len(numbers)
        if lost:
            raise DataError(
                f"{path}: {lost} pictures up to number {numbers[-1]} are missing; copy it whole"
            )
        self.image_size, self._digest = self._sizes()
        count = numbers[-1] + 1
        times = [frame_time_ns(number, self._rate_hz) for number in range(count)]
        self.frame_times_ns = np.array(times, np.int64)
        self.frame_epochs: NDArray[np.int64] = np.zeros(count, np.int64)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self._path.resolve().name

    @property
    def identity(self) -> Mapping[str, Any]:
        """Numbers and bytes of the pictures."""
        return {"kind": "pictures", "name": self.name, "sha256_of_sizes": self._digest}

    @property
    def warnings(self) -> tuple[str, ...]:
        """None: what is amiss is an error."""
        return ()

    def moments(self, rate_hz: float) -> Iterator[Moment]:
        """The first picture at or after each period's end."""
        period_ns = round(_NS / rate_hz)
        due_ns: int | None = None
        decoder = PacketDecoder("jpeg")
        for number, path in self._pictures.items():
            time_ns = frame_time_ns(number, self._rate_hz)
            if due_ns is not None and time_ns < due_ns:
                continue
            due_ns = (time_ns if due_ns is None else due_ns) + period_ns
            picture = _decoded(decoder, path)
            yield Moment(epoch=0, device_time_ns=time_ns, picture=picture, samples={})

    def pictures(
        self, wanted: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[tuple[int, int], VideoFrame]]:
        """Pictures at exactly these times."""
        missing = set(wanted)
        decoder = PacketDecoder("jpeg")
        for number, path in self._pictures.items():
            place = (0, frame_time_ns(number, self._rate_hz))
            if place in missing:
                yield place, _decoded(decoder, path)

    def _sizes(self) -> tuple[tuple[int, int], str]:
        digest = hashlib.sha256()
        first: tuple[int, int] | None = None
        for number, path in self._pictures.items():
            with path.open("rb") as file:
                size = jpeg_size(path, file.read(_HEADER_BYTES))
            first = first or size
            if size != first:
                raise DataError(
                    f"{self._path}: expected pictures of one size, got {first[0]} x {first[1]},"
                    f" and {size[0]} x {size[1]} in {path.name}"
                )
            digest.update(f"{number} {path.stat().st_size}\n".encode())
        assert first is not None
        return first, digest.hexdigest()


def _decoded(decoder: PacketDecoder, path: Path) -> VideoFrame:
    try:
        return decoder.decode(path.read_bytes())
    except VideoError as error:
        raise DataError(f"{path}: cannot be decoded: {error}") from error
