"""The recordings of this server's sessions: opened, judged, given out, deleted.

There is no table of them: a session that has parts in its folder has a recording. Everything here
blocks.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import structlog

from keystep_capture.errors import DataError, NotFoundError, StateError
from keystep_capture.recording import RecordedPacket, Recording, part_paths
from keystep_capture.recording.export import export_mp4
from keystep_capture.recording.pictures import VideoReader, read_frame_at
from keystep_capture.recording.source import ends_with_index
from keystep_server.recorder import FOLDER
from keystep_server.recording_health import StoredHealth, judge, kept_verdict
from keystep_server.recording_list import (
    FoundRecording,
    RecordingFile,
    RecordingFilter,
    RecordingPage,
    find_recordings,
)
from keystep_server.storage import KeyStep, Session, SessionState, Store

EXPORTS, DELETING = "exports", "deleting"
THUMBNAIL_WIDTH = 320
MAX_CLIPS = 200
"""Clips of one session that are kept; others are made again when they are asked for."""
_MAX_REMEMBERED = 1024
_NS = 1_000_000_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedLane:
    """A stream of one epoch in a recording."""

    stream: str
    epoch: int
    encodings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRecording:
    """What a recording's index says.

    Attributes:
        found: The recording.
        lanes: Its streams.
        damage: What is known to be damaged, one line each.
    """

    found: FoundRecording
    lanes: tuple[RecordedLane, ...]
    damage: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A stretch of video; it begins at a key frame, `lead_in_s` before what was asked for."""

    path: Path
    lead_in_s: float


class Recordings:
    """Recordings below a data directory; its methods may be called from any thread."""

    def __init__(self, store: Store, data_dir: Path) -> None:
        """Take the store and the directory; ends what a deletion left when it was interrupted."""
        self._store = store
        self._sessions = data_dir / "sessions"
        self._deleting = data_dir / DELETING
        self._exporting = threading.Lock()
        self._epochs: dict[str, list[int]] = {}
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="recordings")
        """Runs what takes long, one at a time: live sessions need the process's other threads."""
        for folder in self._deleting.iterdir() if self._deleting.is_dir() else ():
            self._finish_deleting(folder)

    def page(self, wanted: RecordingFilter, *, limit: int, cursor: str | None) -> RecordingPage:
        """A page of recordings; see `find_recordings`."""
        return find_recordings(self._store, self._found, wanted, limit=limit, cursor=cursor)

    def find(self, session_id: str) -> FoundRecording:
        """A session's recording.

        Raises:
            NotFoundError: There is no such session, or nothing is recorded of it.
        """
        found = self._found(self._store.session(session_id))
        if found is None:
            raise NotFoundError(f"nothing is recorded of session {session_id}")
        return found

    def open(self, session_id: str) -> OpenedRecording:
        """What a recording's index says; one that is being written is read up to its end.

        Raises:
            NotFoundError: There is none.
            DataError: No part of it can be read.
        """
        found = self.find(session_id)
        with Recording(self._folder(session_id)) as recording:
            return OpenedRecording(
                found=found,
                lanes=tuple(
                    RecordedLane(stream=one.stream, epoch=one.epoch, encodings=one.encodings)
                    for one in recording.lanes
                ),
                damage=tuple(
                    f"{damage.path.name}: at byte {damage.offset}: {damage.reason}"
                    for damage in recording.damage[:100]
                ),
            )

    def file(self, session_id: str, name: str) -> Path:
        """Path of a part.

        Raises:
            NotFoundError: There is none of that name.
        """
        self._store.session(session_id)
        for path in part_paths(self._folder(session_id)):
            if path.name == name:
                return path
        raise NotFoundError(f"the recording of session {session_id} has no part {name[:40]!r}")

    def video(self, session_id: str, epoch: int | None) -> Path:
        """Path of the video as MP4, as it came; made once, then kept beside the recording.

        Args:
            session_id: A closed session.
            epoch: The epoch wanted; None: the first with video.

        Raises:
            NotFoundError: There is none.
            StateError: The session is not closed.
            DataError: The recording cannot be read, or its video changes its encoding.
        """
        self._refuse_open(session_id, "its video is given out")
        with self._exporting:
            epochs = self._video_epochs(session_id)
            if not epochs or (epoch is not None and epoch not in epochs):
                raise NotFoundError(f"session {session_id} has no video" + _in_epoch(epoch, epochs))
            wanted = epochs[0] if epoch is None else epoch
            path = self._exports(session_id) / f"rgb-{wanted}.mp4"
            if not path.exists():
                with Recording(self._folder(session_id)) as recording:
                    self._export(recording, path, wanted)
        return path

    def clip(self, key_step: KeyStep) -> Clip:
        """A key step's stretch of the video as MP4, cut at key frames; made once, then kept.

        Args:
            key_step: Of a closed session.

        Raises:
            NotFoundError: It has no times of the device, or there is no video at them.
            StateError: The session is not closed.
            DataError: The recording cannot be read, or its video changes its encoding.
        """
        session_id, epoch = key_step.session_id, key_step.epoch
        start_ns, end_ns = key_step.start_device_time_ns, key_step.end_device_time_ns
        if epoch is None or start_ns is None or end_ns is None:
            raise NotFoundError(f"key step {key_step.id} has no stretch of a recording")
        self._refuse_open(session_id, "clips of it are given out")
        folder = self._exports(session_id) / "clips"
        path = folder / f"{epoch}-{start_ns}-{end_ns}.mp4"
        with self._exporting:
            if not path.exists():
                folder.mkdir(exist_ok=True)
                with Recording(self._folder(session_id)) as recording:
                    self._refuse_no_video(recording, session_id, epoch)
                    self._export(recording, path, epoch, start_ns, end_ns)
                _keep_newest(folder, MAX_CLIPS)
            times = json.loads(path.with_suffix(".times.json").read_text(encoding="utf-8"))
        return Clip(path=path, lead_in_s=(start_ns - times["device_times_ns"][0]) / _NS)

    def picture_at(
        self, session_id: str, epoch: int, device_time_ns: int
    ) -> tuple[int, npt.NDArray[np.uint8]] | None:
        """The picture on show at a time: its own device time and BGR pixels; None without one.

        Raises:
            NotFoundError: There is no such session, or nothing is recorded of it.
            DataError: The recording cannot be read.
        """
        self.find(session_id)
        with Recording(self._folder(session_id)) as recording:
            found = read_frame_at(recording, device_time_ns, epoch=epoch)
        if found is None:
            return None
        return found[0], np.asarray(found[1].to_ndarray(format="bgr24"), np.uint8)

    def thumbnail(self, session_id: str) -> Path:
        """Path of a small picture of the video's middle, JPEG; made once, then kept.

        Raises:
            NotFoundError: There is none that can be decoded.
            StateError: The session is not closed.
            DataError: The recording cannot be read.
        """
        self._refuse_open(session_id, "its thumbnail is made")
        path = self._exports(session_id) / "thumbnail.jpg"
        with self._exporting:
            if not path.exists():
                _write_jpeg(path, self._middle_picture(session_id))
        return path

    def health(self, session_id: str) -> StoredHealth:
        """The verdict on a recording; made once by reading all of it, then kept.

        Raises:
            NotFoundError: There is none.
            StateError: The session is not closed.
            DataError: No part of it can be read.
        """
        found = self._refuse_open(session_id, "it is judged")
        with self._exporting:
            folder = self._folder(session_id)
            return judge(folder, self._exports(session_id), found.size_bytes)

    def delete(self, session_id: str) -> None:
        """Delete a session with all that was recorded of it and found in it; nothing is left.

        Raises:
            NotFoundError: There is no such session.
            StateError: It is not closed.
        """
        session = self._store.session(session_id)
        if session.state is not SessionState.CLOSED:
            raise StateError(f"session {session_id} is {session.state.value}; close it first")
        with self._exporting:
            folder, gone = self._sessions / session_id, self._deleting / session_id
            self._deleting.mkdir(exist_ok=True)
            _forget_recording(self._sessions, session_id)
            with contextlib.suppress(FileNotFoundError):
                folder.rename(gone)  # what is in here is deleted, even if the server is killed now
            self._store.delete_session(session_id)
            self._epochs.pop(session_id, None)
            self._finish_deleting(gone)
        log.info("recording deleted", session=session_id)

    # -- own -------------------------------------------------------------------------------------

    def _found(self, session: Session) -> FoundRecording | None:
        """What is recorded of a session; None where nothing is."""
        paths = part_paths(self._folder(session.id))
        is_open = session.state is not SessionState.CLOSED
        try:
            files = tuple(
                RecordingFile(name=path.name, size_bytes=path.stat().st_size) for path in paths
            )
            finished = not is_open and all(ends_with_index(path) for path in paths)
        except FileNotFoundError:  # it is being deleted
            return None
        found = FoundRecording(session=session, files=files, finished=finished)
        exports = self._sessions / session.id / EXPORTS
        kept = None if is_open or not files else kept_verdict(exports, found.size_bytes)
        return replace(found, verdict=kept.verdict if kept else None) if files else None

    def _video_epochs(self, session_id: str) -> list[int]:
        """Epochs of a closed session that have video; remembered, since players ask often."""
        epochs = self._epochs.get(session_id)
        if epochs is None:
            with Recording(self._folder(session_id)) as recording:
                epochs = [lane.epoch for lane in recording.lanes if lane.stream == "rgb"]
            if len(self._epochs) >= _MAX_REMEMBERED:
                self._epochs.clear()
            self._epochs[session_id] = epochs
        return epochs

    def _folder(self, session_id: str) -> Path:
        return self._sessions / session_id / FOLDER

    def _exports(self, session_id: str) -> Path:
        path = self._sessions / session_id / EXPORTS
        path.mkdir(exist_ok=True)
        return path

    def _refuse_open(self, session_id: str, what: str) -> FoundRecording:
        found = self.find(session_id)
        if found.is_open:
            raise StateError(f"session {session_id} is not closed; close it before {what}")
        return found

    @staticmethod
    def _refuse_no_video(recording: Recording, session_id: str, epoch: int) -> None:
        if not any(lane.stream == "rgb" and lane.epoch == epoch for lane in recording.lanes):
            raise NotFoundError(f"session {session_id} has no video in epoch {epoch}")

    @staticmethod
    def _export(
        recording: Recording,
        path: Path,
        epoch: int,
        start_ns: int | None = None,
        end_ns: int | None = None,
    ) -> None:
        unfinished = path.with_name(f"unfinished-{path.name}")
        with _cleaned(unfinished, unfinished.with_suffix(".times.json")):
            export_mp4(recording, unfinished, epoch=epoch, start_ns=start_ns, end_ns=end_ns)
            unfinished.with_suffix(".times.json").replace(path.with_suffix(".times.json"))
            unfinished.replace(path)

    def _middle_picture(self, session_id: str) -> npt.NDArray[np.uint8]:
        with Recording(self._folder(session_id)) as recording:
            packet = _middle_key_frame(recording)
        frame = VideoReader().decode(packet.header, packet.payload) if packet else None
        if frame is None:
            raise NotFoundError(f"session {session_id} has no picture that can be decoded")
        return np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)

    def _finish_deleting(self, folder: Path) -> None:
        with contextlib.suppress(NotFoundError):
            self._store.delete_session(folder.name)
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            log.error("a deleted session's files cannot be removed", session=folder.name)


def _forget_recording(sessions: Path, session_id: str) -> None:
    """Delete what extraction jobs of other sessions have made of a session's recording."""
    for folder in ("", "features/", "recordings/"):
        for path in sessions.glob(f"*/extraction/{folder}{session_id}"):
            if path.is_symlink():
                path.unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _cleaned(*paths: Path) -> Iterator[None]:
    """Without leftovers of an earlier try, nor of this one."""
    for path in paths:
        path.unlink(missing_ok=True)
    try:
        yield
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def _keep_newest(folder: Path, count: int) -> None:
    clips = sorted(folder.glob("[0-9]*.mp4"), key=lambda path: path.stat().st_mtime_ns)
    for path in clips[:-count]:
        path.unlink(missing_ok=True)
        path.with_suffix(".times.json").unlink(missing_ok=True)


def _in_epoch(epoch: int | None, epochs: list[int]) -> str:
    return "" if epoch is None or not epochs else f" in epoch {epoch}; it has {sorted(set(epochs))}"


def _middle_key_frame(recording: Recording) -> RecordedPacket | None:
    """The key frame before the middle of the first epoch's video; its first where there is none."""
    lane = next((one for one in recording.lanes if one.stream == "rgb"), None)
    span = recording.device_span_ns
    if lane is None or span is None:
        return None
    first = _first_key_frame(recording, lane.epoch, None)
    if first is None:
        return None
    first_ns = first.header.device_time_ns
    middle_ns = first_ns + (span[1] - first_ns) // 2
    near_ns = recording.keyframe_before("rgb", middle_ns, epoch=lane.epoch)
    return first if near_ns is None else _first_key_frame(recording, lane.epoch, near_ns)


def _first_key_frame(
    recording: Recording, epoch: int, start_ns: int | None
) -> RecordedPacket | None:
    packets = recording.packets(("rgb",), epoch=epoch, start_ns=start_ns, skip_damage=True)
    return next((p for p in packets if p.header.keyframe or p.header.encoding == "jpeg"), None)


def _write_jpeg(path: Path, image: npt.NDArray[np.uint8]) -> None:
    height_px, width_px = image.shape[:2]
    if width_px > THUMBNAIL_WIDTH:
        size = (THUMBNAIL_WIDTH, max(1, round(height_px * THUMBNAIL_WIDTH / width_px)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    unfinished = path.with_name(f"unfinished-{path.name}")
    if not cv2.imwrite(str(unfinished), image, [cv2.IMWRITE_JPEG_QUALITY, 85]):
        raise DataError(f"{path.name} cannot be written; is the disk full?")
    unfinished.replace(path)
