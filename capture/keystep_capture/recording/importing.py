"""Brings other formats into recordings: one small interface, found by entry point.

An importer (entry-point group `keystep.importers`) says what a source holds and lacks, and gives
its packets in order of time; this module writes them, tells the progress and goes on where an
earlier import was interrupted. What a source lacks stays absent, and the recording says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from keystep_capture import wire
from keystep_capture.errors import ConfigError, DataError, WireError
from keystep_capture.recording.entries import RecordedNote
from keystep_capture.recording.foxglove import Payload
from keystep_capture.recording.info import RecordingInfo
from keystep_capture.recording.notes import LabelNote, SessionNote
from keystep_capture.recording.reader import Recording
from keystep_capture.recording.writer import RecordingWriter, part_paths

GROUP = "keystep.importers"
_DONE = "imported"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportPlan:
    """What an importer would do.

    Attributes:
        source: The source in words that change when it changes (name, size).
        streams: Per stream where it comes from and what is derived.
        absent: What the source lacks or what cannot be taken from it, a line each.
        packet_count: Packets and labels; None: known only when all is read.
    """

    source: str
    streams: Mapping[str, str]
    absent: tuple[str, ...] = ()
    packet_count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedPacket:
    """A packet before it has a session and a number; `fields` are the header's other ones."""

    stream: str
    device_time_ns: int
    payload: Payload
    encoding: str
    fields: Mapping[str, Any] = field(default_factory=dict)


Imported: TypeAlias = ImportedPacket | LabelNote


class Importer(Protocol):
    """Reads one kind of source; stateless, made without arguments."""

    title: str

    def plan(self, path: Path) -> ImportPlan:
        """Look at a source without reading it whole.

        Raises:
            DataError: It is no source of this kind; one line.
        """

    def read(self, path: Path) -> Iterator[Imported]:
        """Give packets and labels in order of time; the same ones each time.

        Raises:
            DataError: A file is damaged; one line with the file.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportResult:
    """What was written: packets and labels, and those that were there before."""

    plan: ImportPlan
    written_count: int
    resumed_count: int


def importers() -> dict[str, Importer]:
    """Every importer by its name, as installed packages offer them."""
    return {entry.name: entry.load()() for entry in sorted(entry_points(group=GROUP))}


def find_importer(kind: str) -> Importer:
    """The importer of this name.

    Raises:
        ConfigError: There is none; the message names the known ones.
    """
    known = importers()
    if kind not in known:
        raise ConfigError(f"no importer {kind!r}; known: {', '.join(sorted(known)) or 'none'}")
    return known[kind]


def run_import(
    importer: Importer,
    path: Path,
    out: Path,
    *,
    on_progress: Callable[[int, int | None], None] = lambda done, of: None,
) -> ImportResult:
    """Import a source into a recording's folder, or finish what was interrupted.

    Args:
        importer: Reads the source.
        path: The source.
        out: The recording's folder; new, or that of an interrupted import of the same source.
        on_progress: Told of packets done and in all.

    Raises:
        ConfigError: The folder holds something else, or the whole import already.
        DataError: The source is damaged; what was read before is kept.
    """
    plan = importer.plan(path)
    done = _already_there(out, plan)
    info = RecordingInfo(
        session=_name(path),
        source=plan.source,
        absent="; ".join(plan.absent)[:4000],
        clock="none",
    )
    writer = RecordingWriter(out, info)
    numbers: dict[str, int] = {}
    written, time_ns = 0, 0
    try:
        for item in _numbered(importer.read(path), done, numbers):
            time_ns = item.device_time_ns
            if isinstance(item, LabelNote):
                writer.write_note(item, device_time_ns=time_ns, receive_time_ns=0)
            else:
                header = _header(item, info.session, numbers[item.stream])
                try:
                    writer.write_packet(header, item.payload, receive_time_ns=0)
                except WireError as error:
                    raise DataError(
                        f"{path}: {item.stream} packet {header.sequence}: {error}"
                    ) from None
            written += 1
            on_progress(done + written, plan.packet_count)
        writer.write_note(SessionNote(event=_DONE), device_time_ns=time_ns, receive_time_ns=0)
    finally:
        writer.close()
    return ImportResult(plan=plan, written_count=written, resumed_count=done)


def _already_there(out: Path, plan: ImportPlan) -> int:
    """How many packets and labels an interrupted import of the same source has written."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: expected a folder for the recording, found a file")
    if not part_paths(out):
        return 0
    count = 0
    with Recording(out) as recording:
        if recording.info.source != plan.source:
            raise ConfigError(
                f"{out} holds a recording of {recording.info.source!r}, expected an empty folder "
                f"or an interrupted import of {plan.source!r}"
            )
        for entry in recording.entries(skip_damage=True):
            if isinstance(entry, RecordedNote) and isinstance(entry.note, SessionNote):
                raise ConfigError(f"{out} holds the whole import already")
            count += 1
    return count


def _numbered(items: Iterator[Imported], done: int, numbers: dict[str, int]) -> Iterator[Imported]:
    """Count packets per stream, and give out those that are not there yet."""
    for item in islice(items, done):
        if isinstance(item, ImportedPacket):
            numbers[item.stream] = numbers.get(item.stream, -1) + 1
    for item in items:
        if isinstance(item, ImportedPacket):
            numbers[item.stream] = numbers.get(item.stream, -1) + 1
        yield item


def _header(item: ImportedPacket, session: str, number: int) -> wire.PacketHeader:
    if item.device_time_ns < 0:
        raise DataError(f"{item.stream} packet {number} is at {item.device_time_ns} ns, before 0")
    return wire.PacketHeader(
        protocol=wire.PROTOCOL,
        session=session,
        epoch=1,
        stream=item.stream,
        sequence=number,
        device_time_ns=item.device_time_ns,
        send_time_ns=0,
        encoding=item.encoding,
        **item.fields,
    )


def _name(path: Path) -> str:
    """A session's name from a path."""
    name = path.resolve().stem or "import"
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name)[:64]


def describe_source(path: Path, kind: str) -> str:
    """Kind, name and size of a source, to tell whether it is the same."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    size = sum(file.stat().st_size for file in files)
    return f"{kind}: {path.resolve().name}, {len(files)} files, {size} bytes"
