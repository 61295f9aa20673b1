"""Make a bundled sample, small enough to ship, of a generated session.

    python -m keystep_capture.simulation.export_sample DATASET/person_000 --name simulated_expert --out FOLDER

Writes NAME.mp4 (the recording's pictures, encoded again to be smaller), NAME_sensors.csv.gz (gaze,
head and whether a hand was seen, per frame, as IndustReal's are laid out), NAME_camera.json and
NAME_labels.csv (PSR_labels_with_errors.csv). Hands' joints and depth are left out.
"""  # noqa: E501

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import shutil
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from keystep_capture.payloads import read_array
from keystep_capture.recording import Recording
from keystep_capture.samples.sensors import GazeCamera
from keystep_capture.video import PacketDecoder

_LUF_FROM_RUB = np.diag([-1.0, 1.0, -1.0, 1.0])  # left, up, forward of right, up, back
_CAMERA = GazeCamera(width=1280, height=720, horizontal_field_of_view_deg=64.69)
_FRAME_RATE_HZ = 10
_GAZE_AGE_NS = 60_000_000


@dataclass(slots=True)
class _Latest:
    """The newest of each small stream."""

    head: NDArray[np.floating[Any]] | None = None
    gaze: tuple[int, NDArray[np.floating[Any]]] | None = None
    hands: int = 0
    rows: list[list[object]] = field(default_factory=list)

    def add_row(self, frame_idx: int, device_time_ns: int) -> None:
        """Write down what stood when a picture was taken."""
        if self.head is None:
            return
        pixel = (0, 0)
        if self.gaze is not None and device_time_ns - self.gaze[0] < _GAZE_AGE_NS:
            pixel = _pixel(self.head[:3, :3].T @ self.gaze[1][1])
        pose = np.round(self.head @ _LUF_FROM_RUB, 6).reshape(-1).tolist()
        self.rows.append([frame_idx, *pixel, bool(self.hands), *pose])


def export(folder: Path, name: str, out: Path) -> None:
    """Write a sample's files.

    Args:
        folder: A generated session of profile `learn`.
        name: Of the files.
        out: Their folder.
    """
    latest, decoder, frame_idx = _Latest(), PacketDecoder("h264"), 0
    with (
        Recording(folder) as recording,
        av.open(str(out / f"{name}.mp4"), "w", options={"movflags": "+faststart"}) as video,
    ):
        stream: Any = None
        for packet in recording.packets(order="device_time"):
            header = packet.header
            if header.stream == "rgb":
                frame = decoder.decode(packet.payload)
                assert frame is not None
                stream = stream or _add_stream(video, frame)
                frame.pts, frame.time_base = frame_idx, Fraction(1, _FRAME_RATE_HZ)
                frame.pict_type = av.video.frame.PictureType.NONE
                video.mux(stream.encode(frame))
                latest.add_row(frame_idx, header.device_time_ns)
                frame_idx += 1
            elif header.stream == "head":
                latest.head = read_array(header, packet.payload)
            elif header.stream == "gaze" and header.valid:
                latest.gaze = header.device_time_ns, read_array(header, packet.payload)
            elif header.stream == "hands":
                latest.hands = header.valid
        video.mux(stream.encode(None))
    _write_sensors(out / f"{name}_sensors.csv.gz", latest.rows)
    _write_camera(out / f"{name}_camera.json", folder)
    shutil.copyfile(folder / "PSR_labels_with_errors.csv", out / f"{name}_labels.csv")


def _pixel(direction: NDArray[np.floating[Any]]) -> tuple[int, int]:
    """Where a ray in the head's axes meets the nominal picture; (0, 0) if it looks back."""
    x, y, z = direction
    if z > -0.1:
        return (0, 0)
    focal = _CAMERA.focal_length_px
    return round(640 - focal * x / z), round(360 + focal * y / z)


def _add_stream(video: Any, frame: av.VideoFrame) -> Any:
    options = {"preset": "slow", "crf": "31", "x264-params": "threads=1"}
    stream = video.add_stream("libx264", rate=_FRAME_RATE_HZ, options=options)
    stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
    stream.codec_context.max_b_frames = 0
    stream.codec_context.gop_size = 2 * _FRAME_RATE_HZ
    return stream


def _write_sensors(path: Path, rows: list[list[object]]) -> None:
    text = io.StringIO()
    columns = ["frame_idx", "gaze_x", "gaze_y", "has_hands", *(f"pose_{k:02d}" for k in range(16))]
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def _write_camera(path: Path, folder: Path) -> None:
    session = json.loads((folder / "session.json").read_text(encoding="utf-8"))
    about = {
        "recording": f"simulated: {session['task']}, seed {session['seed']}, {folder.name}",
        "gaze_camera": {
            "width": _CAMERA.width,
            "height": _CAMERA.height,
            "horizontal_field_of_view_deg": _CAMERA.horizontal_field_of_view_deg,
            "origin": "nominal, as for IndustReal; the rays are simulated",
        },
        "gaze_distance_m": 0.6,
        "frame_rate_hz": float(_FRAME_RATE_HZ),
    }
    path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Read the arguments, write the files."""
    parser = argparse.ArgumentParser(description="Make a bundled sample of a generated session.")
    parser.add_argument("session", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    export(options.session, options.name, options.out)


if __name__ == "__main__":
    main()
