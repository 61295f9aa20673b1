"""Annotated stretches of videos as a label for each frame; labels beside features.

The rule is EgoProceL's, which the paper follows: with F frames a second, a stretch from a to b
seconds holds the frames floor(a F) to floor(b F), the last included; of two that overlap the later
row counts; frames in none are background, 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError
from keystep_models.steps.feature_folder import (
    VideoFeatures,
    read_folder,
    write_json,
    write_labels,
)

_TOLERANCE = 1e-6  # frames; times are rounded to nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """One annotated key step of a video: its number (from 1) and seconds from the start."""

    keystep: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotations:
    """Of several videos of one task.

    Attributes:
        videos: Stretches by the video's name.
        names: Of the key steps, from 1 on.
    """

    videos: Mapping[str, Sequence[Stretch]]
    names: Sequence[str]

    @classmethod
    def of(cls, videos: Mapping[str, Sequence[Stretch]], names: Mapping[int, str]) -> Annotations:
        """Names by number; numbers without one are called "key step N"."""
        used = [each.keystep for stretches in videos.values() for each in stretches]
        count = max([*names, *used], default=0)
        return cls(
            videos=videos, names=[names.get(n, f"key step {n}") for n in range(1, count + 1)]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What a conversion made.

    Attributes:
        folders: Feature folders, one for each task.
        video_count: Videos with labels in all of them.
        notes: What was passed over.
    """

    folders: tuple[Path, ...]
    video_count: int
    notes: tuple[str, ...] = field(default=())


def label_frames(
    times_s: NDArray[np.float64], rate_hz: float, stretches: Iterable[Stretch]
) -> NDArray[np.int64]:
    """The key step of each frame.

    Args:
        times_s: Of the frames, since the first, float (T,).
        rate_hz: Frames a second.
        stretches: Later ones count where they overlap.

    Returns:
        int64 (T,), 0 background.
    """
    labels = np.zeros(len(times_s), np.int64)
    place = times_s * rate_hz
    for each in stretches:
        begun = place > each.start_s * rate_hz - 1.0 + _TOLERANCE
        labels[begun & (place <= each.end_s * rate_hz + _TOLERANCE)] = each.keystep
    return labels


def label_folder(folder: Path, annotations: Annotations) -> Converted:
    """Put labels beside the features of a feature folder's videos.

    Raises:
        DataError: There are no features yet, or a video has no annotation.
    """
    videos = read_folder(folder)
    unknown = [video.name for video in videos if video.name not in annotations.videos]
    if unknown:
        known = ", ".join(sorted(annotations.videos)[:3])
        raise DataError(
            f"{folder}: {len(unknown)} of {len(videos)} videos have no annotation, the first: "
            f"{unknown[0]}; annotated are {known}, ...: name videos as their annotations"
        )
    for video in videos:
        write_labels(folder, video.name, labels_of(video, annotations))
    write_json(folder / "keysteps.json", list(annotations.names))
    without = sorted(set(annotations.videos) - {video.name for video in videos})
    notes = [f"{len(without)} annotated videos have no features: {name}, ..." for name in without]
    return Converted(folders=(folder,), video_count=len(videos), notes=tuple(notes[:1]))


def labels_of(video: VideoFeatures, annotations: Annotations) -> NDArray[np.int64]:
    """A video's labels."""
    return label_frames(video.times_s, video.rate_hz, annotations.videos[video.name])


def checked_stretch(where: str, keystep: int, start_s: float, end_s: float) -> Stretch:
    """A stretch, if it is one.

    Raises:
        DataError: The number is below 1, a time is not finite or before the start, or the end
            lies before the beginning.
    """
    if not (1 <= keystep <= 1000 and 0 <= start_s <= end_s < float("inf")):
        raise DataError(
            f"{where}: expected a key step from 1 on and 0 <= start <= end in seconds; got "
            f"{keystep}, {start_s}, {end_s}"
        )
    return Stretch(keystep=keystep, start_s=start_s, end_s=end_s)
