"""Reads a recording, a file or a folder of parts, as packets and notes; each once.

Opening reads the index only; a part without one (its writer was killed) is read up to where it
breaks. Memory: one chunk, and when read by device time those that overlap in time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias

from keystep_capture.errors import DataError
from keystep_capture.recording import schemas
from keystep_capture.recording.doubles import NothingSeen, SeenEntries
from keystep_capture.recording.entries import (
    EntryDecoder,
    RecordedNote,
    RecordedPacket,
    channel_info,
)
from keystep_capture.recording.info import RecordingInfo
from keystep_capture.recording.schemas import INFO_NAME
from keystep_capture.recording.source import Damage, McapSource
from keystep_capture.recording.writer import part_paths
from keystep_capture.streams import STREAMS

MAX_HELD_BYTES: Final = 256 * 1024 * 1024
"""What reading by device time may hold for chunks that overlap in time."""
MAX_PARTS: Final = 4096
_KEYFRAME_SEARCH_CHUNKS = 256
_MAX_LISTED = 1000
"""Damages listed by a reading that passes over them; later ones are passed over unlisted."""

Order: TypeAlias = Literal["arrival", "device_time"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One stream of one epoch in a recording, with the encodings it has."""

    stream: str
    epoch: int
    encodings: tuple[str, ...]


class Recording:
    """A recording that is open for reading; a context manager.

    Attributes:
        path: The file or folder.
        parts: Its files, in order.
        info: What its first part says of the recording.
        damage: What is known to be damaged: found when it was opened, or passed over since.
    """

    def __init__(self, path: Path) -> None:
        """Open a file or a folder of `part-NNN.mcap`.

        Raises:
            DataError: It is no recording of Keystep; one line with the file and the byte.
            OSError: It cannot be read.
        """
        paths = [path]
        if path.is_dir():
            paths = part_paths(path)
            if not paths:
                raise DataError(f"{path}: expected a recording's parts, part-000.mcap and on")
            if len(paths) > MAX_PARTS:
                raise DataError(f"{path}: {len(paths)} parts, at most {MAX_PARTS} can be read")
        self.path = path
        self.parts: list[McapSource] = []
        self.damage: list[Damage] = []
        try:
            self._open_parts(paths)
        except BaseException:
            self.close()
            raise
        self.info = RecordingInfo.from_metadata(self.parts[0].metadata[INFO_NAME])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its files."""
        for part in self.parts:
            part.close()

    @property
    def finished(self) -> bool:
        """Whether every part was closed properly."""
        return all(part.finished for part in self.parts)

    @property
    def size_bytes(self) -> int:
        """Size of all parts."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Its streams by epoch, in the order of the table of streams."""
        found: dict[tuple[int, str], set[str]] = {}
        for part in self.parts:
            for channel in part.channels.values():
                about = channel_info(channel)
                if about is not None and about.role == "packet":
                    found.setdefault((about.epoch, about.stream), set()).add(about.encoding)
        order = list(STREAMS)
        return tuple(
            Lane(stream=stream, epoch=epoch, encodings=tuple(sorted(found[epoch, stream])))
            for epoch, stream in sorted(found, key=lambda key: (key[0], order.index(key[1])))
        )

    @property
    def epochs(self) -> tuple[int, ...]:
        """Its epochs; device times are comparable within one only."""
        return tuple(sorted({lane.epoch for lane in self.lanes}))

    @property
    def device_span_ns(self) -> tuple[int, int] | None:
        """First and last device time of any packet or note, from the index; None where empty."""
        spans = [part.chunk_times(idx) for part in self.parts for idx in range(part.chunk_count)]
        if not spans:
            return None
        return min(start for start, _ in spans), max(end for _, end in spans)

    # -- reading ---------------------------------------------------------------------------------

    def entries(self, *, skip_damage: bool = False) -> Iterator[RecordedPacket | RecordedNote]:
        """All packets and notes in their order of arrival, what stands in two parts once.

        Args:
            skip_damage: Pass over damaged chunks and messages, listing them in `damage`.

        Raises:
            DamagedError: A chunk or message is damaged; one line with the file and the byte.
        """
        seen = self._seen()
        for part_idx in range(len(self.parts)):
            decoder = self._decoder(part_idx, skip_damage)
            for idx in range(self.parts[part_idx].chunk_count):
                yield from filter(seen.is_new, decoder.entries(idx))

    def notes(self, *kinds: str, skip_damage: bool = False) -> Iterator[RecordedNote]:
        """Notes in their order of arrival: of some kinds, or all; each tick and step event once.

        Raises:
            DamagedError: As `entries`.
        """
        seen = self._seen()
        for part_idx, part in enumerate(self.parts):
            decoder = self._decoder(part_idx, skip_damage, streams=(), kinds=kinds)
            for idx in range(part.chunk_count):
                for entry in decoder.entries(idx):
                    assert isinstance(entry, RecordedNote)
                    if seen.is_new(entry):
                        yield entry

    def packets(
        self,
        streams: Iterable[str] | None = None,
        *,
        order: Order = "arrival",
        epoch: int | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
        skip_damage: bool = False,
    ) -> Iterator[RecordedPacket]:
        """Packets; chunks outside of the wanted times are not read.

        Args:
            streams: Those wanted; None: all.
            order: `arrival`: as they came, part by part. `device_time`: by device time, epoch by
                epoch; equal times in their order of arrival.
            epoch: The one wanted; None: all.
            start_ns: First device time wanted; for video see `keyframe_before`.
            end_ns: The device time that is no more wanted.
            skip_damage: Pass over what is damaged, listing it in `damage`.

        Raises:
            DamagedError: As `entries`.
            DataError: By device time, and more than 256 MiB overlap in time.
        """
        wanted = None if streams is None else tuple(streams)
        window = _Window(start_ns, end_ns)
        if order == "arrival":
            return self._by_arrival(wanted, epoch, window, skip_damage)
        epochs = self.epochs if epoch is None else (epoch,)
        return (
            packet
            for one in epochs
            for packet in self._by_device_time(wanted, one, window, skip_damage)
        )

    def keyframe_before(self, stream: str, device_time_ns: int, *, epoch: int) -> int | None:
        """Device time of the last key frame at or before a time: where decoding may begin.

        Reads backwards from that time through the index; None where there is no key frame within
        256 chunks before it.
        """
        chunks = [
            (part.chunk_times(idx)[0], part_idx, idx)
            for part_idx, part in enumerate(self.parts)
            for idx in range(part.chunk_count)
            if part.chunk_times(idx)[0] <= device_time_ns
        ]
        found: int | None = None
        for _, part_idx, idx in heapq.nlargest(_KEYFRAME_SEARCH_CHUNKS, chunks):
            end_ns = self.parts[part_idx].chunk_times(idx)[1]
            if found is not None and end_ns <= found:
                break
            decoder = self._decoder(part_idx, True, streams=(stream,), kinds=None)
            for entry in decoder.entries(idx):
                assert isinstance(entry, RecordedPacket)
                header = entry.header
                if header.epoch == epoch and header.keyframe:
                    time_ns = header.device_time_ns
                    if time_ns <= device_time_ns and (found is None or time_ns > found):
                        found = time_ns
        return found

    def _by_arrival(
        self,
        streams: tuple[str, ...] | None,
        epoch: int | None,
        window: _Window,
        skip_damage: bool,
    ) -> Iterator[RecordedPacket]:
        seen = self._seen()
        for part_idx, part in enumerate(self.parts):
            decoder = self._decoder(part_idx, skip_damage, streams=streams, kinds=None, epoch=epoch)
            for idx in range(part.chunk_count):
                if window.meets(*part.chunk_times(idx)):
                    yield from filter(seen.is_new, _inside(decoder.entries(idx), window))

    def _by_device_time(
        self, streams: tuple[str, ...] | None, epoch: int, window: _Window, skip_damage: bool
    ) -> Iterator[RecordedPacket]:
        decoders = [
            self._decoder(idx, skip_damage, streams=streams, kinds=None, epoch=epoch)
            for idx in range(len(self.parts))
        ]
        chunks = sorted(
            (*part.chunk_times(idx), part_idx, idx)
            for part_idx, part in enumerate(self.parts)
            for idx in range(part.chunk_count)
            if window.meets(*part.chunk_times(idx))
        )
        held: list[tuple[int, int, int, RecordedPacket]] = []
        held_bytes, seen = 0, self._seen()
        for start_ns, _, part_idx, idx in chunks:
            while held and held[0][0] < start_ns:
                packet = heapq.heappop(held)[-1]
                held_bytes -= len(packet.payload) + 1024
                if seen.is_new(packet):
                    yield packet
            for packet in _inside(decoders[part_idx].entries(idx), window):
                time_ns = packet.header.device_time_ns
                heapq.heappush(held, (time_ns, part_idx, packet.arrival, packet))
                held_bytes += len(packet.payload) + 1024
                if held_bytes > MAX_HELD_BYTES:
                    raise DataError(
                        f"{self.parts[part_idx].path}: at byte "
                        f"{self.parts[part_idx].chunk_offset(idx)}: more than "
                        f"{MAX_HELD_BYTES >> 20} MiB overlap in time; read in order of arrival"
                    )
        while held:
            packet = heapq.heappop(held)[-1]
            if seen.is_new(packet):
                yield packet

    def _seen(self) -> SeenEntries:
        return SeenEntries() if len(self.parts) > 1 else NothingSeen()

    def _decoder(self, part_idx: int, skip_damage: bool, **wanted: Any) -> EntryDecoder:
        on_damage = self._list if skip_damage else None
        return EntryDecoder(self.parts[part_idx], part_idx, on_damage=on_damage, **wanted)

    def _list(self, damage: Damage) -> None:
        if damage not in self.damage and len(self.damage) < _MAX_LISTED:
            self.damage.append(damage)

    def _open_parts(self, paths: list[Path]) -> None:
        """Open what can be opened; a part that a crash left empty costs itself only."""
        for path in paths:
            try:
                part = open_part(path)
            except DataError as error:
                if len(paths) == 1:
                    raise
                self.damage.append(Damage(path=path, offset=0, reason=_without(path, error)))
            else:
                self.parts.append(part)
                self.damage.extend(part.damage)
        if not self.parts:
            raise DataError(f"no part can be read: {self.damage[0]}")


def open_part(path: Path) -> McapSource:
    """Open one file of a recording.

    Raises:
        DataError: It is no recording of Keystep, or of another version.
        OSError: It cannot be read.
    """
    part = McapSource(path)
    try:
        values = part.metadata.get(INFO_NAME)
        if values is None:
            raise DataError(
                f"{path}: an MCAP file, but no recording of Keystep: expected metadata "
                f"{INFO_NAME!r} at its beginning"
            )
        version = values.get("format_version", "")
        if version != schemas.FORMAT_VERSION:
            raise DataError(
                f"{path}: format version {version[:16]!r}, this program reads version "
                f"{schemas.FORMAT_VERSION}: use the keystep that wrote it"
            )
        try:
            RecordingInfo.from_metadata(values)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
    except BaseException:
        part.close()
        raise
    return part


def _without(path: Path, error: DataError) -> str:
    return str(error).removeprefix(f"{path}: ").removeprefix("at byte 0: ")


@dataclass(frozen=True, slots=True)
class _Window:
    """Device times from `start_ns` on and before `end_ns`; None: open."""

    start_ns: int | None
    end_ns: int | None

    def meets(self, first_ns: int, last_ns: int) -> bool:
        return (self.start_ns is None or last_ns >= self.start_ns) and (
            self.end_ns is None or first_ns < self.end_ns
        )


def _inside(
    entries: Iterable[RecordedPacket | RecordedNote], window: _Window
) -> Iterator[RecordedPacket]:
    for entry in entries:
        if isinstance(entry, RecordedPacket):
            time_ns = entry.header.device_time_ns
            if window.meets(time_ns, time_ns):
                yield entry
