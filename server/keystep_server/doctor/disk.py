"""Whether the data directory can be written to, how much fits and how fast."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from keystep_capture.findings import Finding, Level

BYTES_PER_HEADSET_HOUR = 700e6
"""H.264 640x360 as hl2ss encodes it, and ticks at 10 Hz."""
SMALL_BYTES = 2e9
MODEST_BYTES = 20e9
TRIAL_BYTES = 32 * 1024 * 1024
SLOW_BYTES_PER_S = 20e6
_BLOCK = os.urandom(1 << 20)


def check_data_dir(data_dir: Path) -> list[Finding]:
    """Write a trial file where the server would write, and take it away again.

    A directory that does not exist yet is not made: the nearest one above it is tried.
    """
    folder = _nearest(data_dir)
    if not folder.is_dir():
        return [_finding("write", "problem", f"{folder} is no folder", "choose another --data-dir")]
    try:
        speed = _write_speed(folder)
    except OSError as error:
        detail = f"{folder} cannot be written to: {error.strerror}"
        remedy = "free space there, give this user write permission, or choose another --data-dir"
        return [_finding("write", "problem", detail, remedy)]
    return [_speed(folder, speed), _space(folder)]


def _nearest(path: Path) -> Path:
    path = path.absolute()
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def _write_speed(folder: Path) -> float:
    """Bytes a second, written through to the disk."""
    start_s = time.perf_counter()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".keystep-doctor-") as trial:
        for _ in range(TRIAL_BYTES // len(_BLOCK)):
            trial.write(_BLOCK)
        trial.flush()
        os.fsync(trial.fileno())
    return TRIAL_BYTES / (time.perf_counter() - start_s)


def _speed(folder: Path, bytes_per_s: float) -> Finding:
    detail = f"{folder} takes {bytes_per_s / 1e6:.0f} MB/s, written through"
    if bytes_per_s < SLOW_BYTES_PER_S:
        return _finding("write", "warning", detail, "use a local disk for --data-dir")
    return _finding("write", "ok", detail)


def _space(folder: Path) -> Finding:
    free_bytes = shutil.disk_usage(folder).free
    hours = free_bytes / BYTES_PER_HEADSET_HOUR
    detail = f"{free_bytes / 1e9:.1f} GB free, about {hours:.0f} hours of one headset"
    remedy = "free space, or choose a --data-dir on a larger disk"
    if free_bytes < SMALL_BYTES:
        return _finding("space", "problem", detail, remedy)
    if free_bytes < MODEST_BYTES:
        return _finding("space", "warning", detail, remedy)
    return _finding("space", "ok", detail)


def _finding(name: str, level: Level, detail: str, remedy: str = "") -> Finding:
    return Finding(area="disk", name=name, level=level, detail=detail, remedy=remedy)
