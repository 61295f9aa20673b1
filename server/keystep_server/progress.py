"""How far each stream was worked off, and from where it would have to be sent again.

A decoder that starts anew needs the key frame before the packets to come. So of a video that its
source keeps, nothing after the last key frame is acknowledged.
"""

from __future__ import annotations

from keystep_capture.streams import StreamSpec
from keystep_capture.wire import PacketHeader
from keystep_server.checkpoint import LaneState, Place

MAX_GROUP_PACKETS = 512
MAX_GROUP_BYTES = 32 * 1024 * 1024
"""A longer group of pictures is acknowledged before it ends: its source cannot keep all of it."""


class StreamProgress:
    """One stream's place, over all epochs of a session."""

    def __init__(self, spec: StreamSpec, *, kept_by_source: bool) -> None:
        """Start before the first packet.

        Args:
            spec: The stream.
            kept_by_source: Whether its video is sent again after a restart.
        """
        self._spec = spec
        self._kept = kept_by_source
        self.epoch = -1
        self.place = Place()
        self._group: Place | None = None  # before the last key frame

    @classmethod
    def from_state(
        cls, spec: StreamSpec, state: LaneState, *, kept_by_source: bool
    ) -> StreamProgress:
        """Go on from where a checkpoint was."""
        progress = cls(spec, kept_by_source=kept_by_source)
        progress.epoch = state.epoch
        progress.place = _copy(state)
        progress._group = state.resume
        return progress

    def note(self, header: PacketHeader, payload_bytes: int) -> None:
        """A packet was worked off; one that was before a restart already changes nothing."""
        place = self.place
        if header.epoch != self.epoch:
            self.epoch, self._group, place.sequence = header.epoch, None, -1
        if header.sequence <= place.sequence:
            return
        if not (self._kept and self._spec.encodings[header.encoding].video):
            self._group = None
        elif header.keyframe:
            self._group = _copy(place)
        place.lost += header.sequence - place.sequence - 1
        place.sequence = header.sequence
        place.packets += 1
        place.bytes += payload_bytes

    def resume(self) -> Place | None:
        """The place from which packets are needed again; None: from the next one."""
        group, place = self._group, self.place
        if (
            group is None
            or place.packets - group.packets > MAX_GROUP_PACKETS
            or place.bytes - group.bytes > MAX_GROUP_BYTES
        ):
            return None
        return _copy(group)

    def state(self, instance: str, *, finished: bool) -> LaneState:
        """What to write down; of a source that has `finished` nothing is needed again."""
        place = self.place
        return LaneState(
            instance=instance,
            epoch=self.epoch,
            sequence=place.sequence,
            packets=place.packets,
            lost=place.lost,
            bytes=place.bytes,
            resume=None if finished else self.resume(),
        )


def _copy(place: Place) -> Place:
    return Place(sequence=place.sequence, packets=place.packets, lost=place.lost, bytes=place.bytes)
