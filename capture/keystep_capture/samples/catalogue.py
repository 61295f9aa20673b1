"""Which samples ship with Keystep and which files each has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from keystep_capture.errors import ConfigError

_DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One bundled recording; a path is None where the sample lacks that kind of data.

    Origin, licence and what is derived: `samples/data/README.md`.
    """

    name: str
    title: str
    frame_rate_hz: float
    video_path: Path | None = None
    detections_path: Path | None = None
    sensors_path: Path | None = None
    camera_path: Path | None = None
    truth_path: Path | None = None
    labels_path: Path | None = None
    procedure: str | None = None


SAMPLES: dict[str, Sample] = {
    sample.name: sample
    for sample in (
        Sample(
            name="industreal-03",
            title="IndustReal 03_assy_0_1: real detections, head pose and gaze of a toy assembly",
            frame_rate_hz=10.0,
            detections_path=_DATA / "industreal_03_detections.csv.gz",
            sensors_path=_DATA / "industreal_03_sensors.csv.gz",
            camera_path=_DATA / "industreal_03_camera.json",
            truth_path=_DATA / "industreal_03_truth.json",
            procedure="assy",
        ),
        Sample(
            name="pour-coffee",
            title="Pouring coffee: 9.6 s of real video, two steps",
            frame_rate_hz=30000 / 1001,
            video_path=_DATA / "pour_coffee.mp4",
        ),
        *(
            Sample(
                name=f"simulated-{who}",
                title=f"Simulated: {what} assembles a toy cart, with gaze and head pose",
                frame_rate_hz=10.0,
                video_path=_DATA / f"simulated_{who}.mp4",
                sensors_path=_DATA / f"simulated_{who}_sensors.csv.gz",
                camera_path=_DATA / f"simulated_{who}_camera.json",
                labels_path=_DATA / f"simulated_{who}_labels.csv",
            )
            for who, what in (("expert", "an expert"), ("novice", "a novice who errs"))
        ),
    )
}


def find_sample(name: str) -> Sample:
    """Return the sample of this name.

    Raises:
        ConfigError: No such sample; the message names the known ones.
    """
    if name not in SAMPLES:
        known = ", ".join(sorted(SAMPLES))
        raise ConfigError(f"no sample is called {name!r}; known samples: {known}")
    return SAMPLES[name]
