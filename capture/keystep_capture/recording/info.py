"""What a recording says of itself: the file's metadata record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from keystep_capture.errors import DataError

_MAX_CHARACTERS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingInfo:
    """Where a recording comes from; all texts, so that any MCAP tool shows them.

    Attributes:
        session: The session's id.
        device: The headset's id.
        kind: `expert` or `guided`.
        task: Name of the task.
        procedure: Name of the procedure.
        source: What was recorded: `live`, or the importer's name and its source.
        absent: What the source lacks, in words; only importers say it.
        clock: What `publish_time` counts: `server_monotonic`, or `none` where arrival is unknown.
        utc_ns: UTC when the part was begun, ns since 1970 ...
        clock_ns: ... and the arrival clock at that moment.
    """

    session: str
    device: str = ""
    kind: str = ""
    task: str = ""
    procedure: str = ""
    source: str = "live"
    absent: str = ""
    clock: str = "server_monotonic"
    utc_ns: str = field(default="")
    clock_ns: str = field(default="")

    def to_metadata(self) -> dict[str, str]:
        """All that is said, as texts."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name))}

    @classmethod
    def from_metadata(cls, values: Mapping[str, str]) -> RecordingInfo:
        """Read a metadata record; what a newer version adds is ignored.

        Raises:
            DataError: It does not name its session, or a text is too long.
        """
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        if "session" not in known:
            raise DataError("the recording's metadata names no session")
        if any(len(value) > _MAX_CHARACTERS for value in known.values()):
            raise DataError(f"a text of the metadata has more than {_MAX_CHARACTERS} characters")
        return cls(**known)
