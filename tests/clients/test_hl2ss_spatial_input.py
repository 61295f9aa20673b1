from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from keystep_capture.errors import DeviceError
from keystep_hololens.hl2ss.spatial_input import (
    SPATIAL_INPUT_SIZE,
    EyeRay,
    HandPose,
    HeadPose,
    SpatialInput,
    decode_spatial_input,
    encode_spatial_input,
)

F32 = st.floats(-100, 100, width=32)
vectors = arrays(np.float32, 3, elements=F32)
hands = st.builds(
    HandPose,
    orientations=arrays(np.float32, (26, 4), elements=F32),
    positions=arrays(np.float32, (26, 3), elements=F32),
    radii=arrays(np.float32, 26, elements=F32),
    accuracies=arrays(np.int32, 26, elements=st.integers(0, 1)),
)
samples = st.builds(
    SpatialInput,
    head=st.none() | st.builds(HeadPose, position=vectors, forward=vectors, up=vectors),
    eye=st.none() | st.builds(EyeRay, origin=vectors, direction=vectors),
    left_hand=st.none() | hands,
    right_hand=st.none() | hands,
)


@given(sample=samples)
def test_samples_survive_the_wire(sample: SpatialInput) -> None:
    payload = encode_spatial_input(sample)
    assert len(payload) == SPATIAL_INPUT_SIZE
    decoded = decode_spatial_input(payload)
    for part in ("head", "eye", "left_hand", "right_hand"):
        assert (getattr(decoded, part) is None) == (getattr(sample, part) is None)
    assert encode_spatial_input(decoded) == payload


def test_fields_sit_at_the_documented_offsets() -> None:
    payload = bytearray(SPATIAL_INPUT_SIZE)
    struct.pack_into("<I", payload, 0, 0b1111)
    struct.pack_into("<9f", payload, 4, *range(9))
    struct.pack_into("<6f", payload, 40, *range(10, 16))
    left, right = 64 + 36 * 10, 64 + 936 + 36 * 25
    struct.pack_into("<8fi", payload, left, *range(8), 1)
    struct.pack_into("<8fi", payload, right, *range(20, 28), 0)
    sample = decode_spatial_input(payload)
    assert sample.head is not None
    assert sample.eye is not None
    assert sample.left_hand is not None
    assert sample.right_hand is not None
    np.testing.assert_array_equal(sample.head.forward, [3, 4, 5])
    np.testing.assert_array_equal(sample.head.up, [6, 7, 8])
    np.testing.assert_array_equal(sample.eye.direction, [13, 14, 15])
    np.testing.assert_array_equal(sample.left_hand.positions[10], [4, 5, 6])
    np.testing.assert_array_equal(sample.right_hand.orientations[25], [20, 21, 22, 23])
    assert sample.left_hand.radii[10] == 7
    assert sample.left_hand.accuracies[10] == 1


def test_parts_no_longer_valid_keep_stale_bytes_and_are_not_decoded() -> None:
    ones = np.ones(3, np.float32)
    seen = encode_spatial_input(SpatialInput(head=HeadPose(position=ones, forward=ones, up=ones)))
    lost = encode_spatial_input(SpatialInput(), previous=seen)
    assert lost[:4] == b"\0\0\0\0"
    assert lost[4:] == seen[4:]
    assert decode_spatial_input(lost).head is None


def test_another_size_is_refused() -> None:
    with pytest.raises(DeviceError, match="1936 bytes, got 1935"):
        decode_spatial_input(b"\0" * 1935)
