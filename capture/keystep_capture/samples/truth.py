"""Reads what is known of a sample: its true steps and what published logic finds."""

from __future__ import annotations

import json
from dataclasses import dataclass

from keystep_capture.errors import ConfigError, DataError
from keystep_capture.samples.catalogue import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthStep:
    """A step's completion in the state ground truth: in frames `not_before` < t <= `frame`."""

    frame: int
    id: int
    description: str
    not_before: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedStep:
    """A step that published logic reports, at this frame."""

    frame: int
    id: int
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleTruth:
    """Ground truth of a sample and the steps of IndustReal's B3 logic on its detections."""

    procedure: str
    frame_count: int
    ground_truth: tuple[TruthStep, ...]
    expected_b3: tuple[ExpectedStep, ...]


def load_truth(sample: Sample) -> SampleTruth:
    """Load the truth of a sample.

    Raises:
        ConfigError: The sample has no truth.
        DataError: Its file is not as documented.
    """
    if sample.truth_path is None:
        raise ConfigError(f"sample {sample.name!r} has no ground truth")
    try:
        table = json.loads(sample.truth_path.read_text(encoding="utf-8"))
        return SampleTruth(
            procedure=table["procedure"],
            frame_count=table["n_frames"],
            ground_truth=tuple(TruthStep(**step) for step in table["ground_truth"]),
            expected_b3=tuple(
                ExpectedStep(frame=step["frame"], id=step["id"], confidence=step["conf"])
                for step in table["expected"]["b3"]
            ),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{sample.truth_path.name} is not a truth file: {error!r}") from error
