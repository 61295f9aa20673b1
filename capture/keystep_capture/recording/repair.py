"""Closes a broken recording: what is readable is copied into a new file, the original stays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mcap.records import Channel

from keystep_capture.errors import ConfigError, DataError
from keystep_capture.recording.container import McapFile
from keystep_capture.recording.reader import open_part
from keystep_capture.recording.schemas import INFO_NAME, has_schema, schema_of
from keystep_capture.recording.source import Damage, DamagedError, McapSource
from keystep_capture.recording.writer import part_paths


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What came of one file.

    Attributes:
        source: The file that was read; it is as it was.
        target: The new file, closed with its index.
        message_count: Messages copied.
        damage: What was found damaged and therefore left out.
    """

    source: Path
    target: Path
    message_count: int
    damage: tuple[Damage, ...]


def repair(path: Path, target: Path) -> list[Repair]:
    """Copy what is readable of a file or of a folder's parts.

    Args:
        path: A file, or a folder of parts.
        target: The new file, or the new folder; must not exist yet.

    Returns:
        One result a part, in order.

    Raises:
        ConfigError: The target exists already.
        DataError: Nothing can be read: a file is empty or no recording.
        OSError: The disk.
    """
    if target.exists():
        raise ConfigError(f"{target} exists already; expected the name of a new file or folder")
    if not path.is_dir():
        return [_repair_part(path, target)]
    parts = part_paths(path)
    if not parts:
        raise DataError(f"{path}: expected a recording's parts, part-000.mcap and on")
    target.mkdir(parents=True)
    done = []
    for part in parts:
        try:
            done.append(_repair_part(part, target / part.name))
        except DataError as error:  # nothing in it: the others are still worth copying
            reason = Damage(path=part, offset=0, reason=str(error))
            lost = Repair(source=part, target=part, message_count=0, damage=(reason,))
            done.append(lost)
    return done


def _repair_part(path: Path, target: Path) -> Repair:
    with open_part(path) as source:
        file = McapFile(target, library="keystep repair")
        try:
            file.add_metadata(INFO_NAME, source.metadata[INFO_NAME])
            copier = _Copier(source, file)
            for idx in range(source.chunk_count):
                copier.copy_chunk(idx)
            file.close()
        except OSError:
            file.abandon()
            raise
    return Repair(
        source=path, target=target, message_count=copier.count, damage=tuple(copier.damage)
    )


class _Copier:
    """Copies chunks, those whole that are what their checksums say."""

    def __init__(self, source: McapSource, file: McapFile) -> None:
        self._source = source
        self._file = file
        self._channel_ids: dict[int, int] = {}
        self._schema_ids: dict[str, int] = {}
        self.count = 0
        self.damage = list(source.damage)

    def copy_chunk(self, idx: int) -> None:
        try:
            for message in self._source.messages(idx):
                channel = self._source.channels.get(message.channel_id)
                if channel is None:
                    continue
                if channel.id not in self._channel_ids:
                    self._channel_ids[channel.id] = self._add_channel(channel)
                self._file.add_message(
                    self._channel_ids[channel.id],
                    message.sequence,
                    message.log_time_ns,
                    message.publish_time_ns,
                    (message.data,),
                )
                self.count += 1
        except DamagedError as error:
            self.damage.append(error.damage)
        self._file.flush()

    def _add_channel(self, channel: Channel) -> int:
        name = self._source.schemas.get(channel.schema_id, "")
        if name not in self._schema_ids:
            # A schema that was damaged is written anew from its name, or there is none (id 0).
            encoding, data = schema_of(name) if has_schema(name) else ("", b"")
            known = bool(encoding)
            self._schema_ids[name] = self._file.add_schema(name, encoding, data) if known else 0
        return self._file.add_channel(
            channel.topic, channel.message_encoding, self._schema_ids[name], channel.metadata
        )


def default_target(path: Path) -> Path:
    """Where `keystep recording repair` writes when it is not told: beside the original."""
    if path.is_dir():
        return path.with_name(f"{path.name}-repaired")
    return path.with_name(f"{path.stem}-repaired{path.suffix}")
