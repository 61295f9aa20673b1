"""What was around the expert's gaze: made of the session's recording when it is published.

Sessions that are not guided by it do not make it while they run, and an extraction needs torch;
this needs neither. A tick takes as long as one picture of the appearance model, and what was made
is kept beside the recording for the next time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from keystep_capture.errors import DataError
from keystep_capture.folder_lock import locked_folder
from keystep_capture.recording import Recording
from keystep_models.bundles.from_recording import RecordedCue
from keystep_models.cues.gaze_crop import CUE
from keystep_models.guidance.emissions import PartRows
from keystep_models.steps.cue_extraction import (
    CueChoice,
    device_moments,
    extract_features,
    takes_crops,
)
from keystep_models.steps.recording_source import open_recording
from keystep_server.features import GAZE

FOLDER = "gaze"
"""In a session's folder."""


def recorded_gaze_cue(
    session: Path, ticks: npt.NDArray[np.void], manifest: Path, rate_hz: float
) -> RecordedCue | str:
    """The cue of a closed session.

    Args:
        session: Its folder.
        ticks: Those stored while it ran, (T,) of `TICK_ROW`.
        manifest: Of the appearance model.
        rate_hz: Ticks a second.

    Returns:
        A row for each of `ticks`; or why there is none.

    Raises:
        StateError: It is being made already.
        ModelError: The model cannot be used.
        OSError: The disk does not take it.
    """
    if not ((ticks["cues"] & GAZE) != 0).any():
        return "the session has no gaze"
    if not takes_crops(manifest):
        return "the server's appearance model does not take what is cut out of pictures"
    try:
        if not _has_cameras(session / "recording"):
            return "the session's pictures have no camera poses and intrinsics"
        with locked_folder(session / FOLDER):
            choice = CueChoice(
                cues=(CUE,), rate_hz=rate_hz, appearance_manifest=manifest, threads=1
            )
            video = extract_features(
                open_recording(session / "recording"), choice, session / FOLDER
            )
    except DataError as error:
        return f"the session's recording cannot be read: {str(error)[:200]}"
    if (cue := video.cues.get(CUE)) is None:
        return "gaze never meets the session's pictures"
    places = {
        moment: place
        for place, moment in enumerate(device_moments(video, range(video.frame_count)))
        if cue.valid[place]
    }
    rows = np.zeros((len(ticks), cue.size), np.float32)
    valid = np.zeros(len(ticks), np.bool_)
    for number, tick in enumerate(ticks):
        place = places.get((int(tick["epoch"]), int(tick["device_time_ns"])))
        if place is not None:
            rows[number], valid[number] = cue.features[place], True
    return RecordedCue(rows=PartRows(rows=rows, valid=valid), source=cue.source)


def _has_cameras(recording: Path) -> bool:
    """Whether the first of the pictures tells where it was taken from."""
    with Recording(recording) as opened:
        for packet in opened.packets(("rgb",), skip_damage=True):
            return packet.header.intrinsics is not None and packet.header.pose is not None
    return False
