"""Payload bytes as arrays, without a copy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from keystep_capture.errors import WireError
from keystep_capture.streams import HAND_JOINT_VALUES, HAND_JOINTS, STREAMS
from keystep_capture.wire import PacketHeader

_SHAPES: dict[str, tuple[int, ...]] = {
    "ray_f32": (2, 3),
    "pose_f32": (4, 4),
    "joints_f32": (2, HAND_JOINTS, HAND_JOINT_VALUES),
    "detections_f64": (-1, 6),
}


def read_array(header: PacketHeader, payload: bytes | memoryview) -> npt.NDArray[np.floating]:
    """See a numeric payload as an array.

    Args:
        header: A header that `wire.check_payload` has passed.
        payload: Its payload; the array shares its memory and is read-only.

    Returns:
        `ray_f32`: (2, 3) origin and direction, m; `pose_f32`: (4, 4) world_from_head;
        `joints_f32`: (2, 26, 9) left and right hand; `detections_f64`: (N, 6).

    Raises:
        WireError: The encoding is not numeric or a value is not finite.
    """
    encoding = STREAMS[header.stream].encodings[header.encoding]
    if encoding.numeric is None:
        raise WireError(f"{header.encoding} payloads are not arrays", "unknown_encoding")
    array: npt.NDArray[np.floating] = np.frombuffer(payload, dtype=encoding.numeric)
    if not np.isfinite(array).all():
        raise WireError(f"{header.stream} payload has values that are not finite", "not_finite")
    return array.reshape(_SHAPES[header.encoding])
