"""The bytes of UMQ, GMQ and VI messages."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep_capture.errors import ConfigError, DeviceError
from keystep_hololens.hl2ss import guest_messages as gmq
from keystep_hololens.hl2ss import unity_messages as umq
from keystep_hololens.hl2ss import voice_input as vi

AHEAD = umq.Placement(position_m=(0.0, 0.1, 1.0))
U32 = st.integers(0, 2**32 - 1)


@given(command=st.integers(0, 2**32 - 2), data=st.binary(max_size=50))
def test_umq_commands_survive_the_wire_and_need_every_byte(command: int, data: bytes) -> None:
    message = umq.UnityMessage(command, data)
    encoded = umq.encode_message(message)
    assert umq.parse_message(encoded + b"next") == (message, 8 + len(data))
    assert all(umq.parse_message(encoded[:end]) is None for end in range(len(encoded)))


def test_the_reserved_id_and_absurd_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="0xFFFFFFFE"):
        umq.encode_message(umq.UnityMessage(0xFFFFFFFF))
    with pytest.raises(DeviceError, match="at most"):
        umq.parse_message(struct.pack("<II", 5, 2**31))


def test_the_text_recipe_is_the_documented_one() -> None:
    panel = umq.TextPanel(text="größer", placement=AHEAD, font_size=0.5)
    messages = umq.display_list(umq.REMOVE_ALL, *umq.panel_recipe(panel))
    assert [one.command for one in messages] == [18, 17, 6, 20, 7, 3, 1, 20, 19]
    text = messages[4].data
    assert struct.unpack("<I5f", text[:24]) == (0, 0.5, 1, 1, 1, 1)
    assert text[24:].decode() == "größer"
    assert struct.unpack("<I10f", messages[5].data)[1:4] == pytest.approx((0, 0.1, 1))
    assert (len(messages[5].data), messages[6].data) == (44, struct.pack("<II", 0, 1))
    assert [messages[k].data for k in (3, 7)] == [b"\1\0\0\0", b"\0\0\0\0"]


def test_a_picture_is_a_textured_quad_and_world_placement_another_command() -> None:
    world = umq.Placement(position_m=(1, 2, 3), head_locked=False)
    messages = umq.panel_recipe(umq.PicturePanel(image=b"png", placement=world))
    assert [one.command for one in messages] == [0, 20, 5, 2, 1, 20]
    assert messages[0].data == struct.pack("<I", 5)
    assert messages[2].data == bytes(4) + b"png"


@given(message_id=U32, data=st.binary(max_size=50))
def test_guest_messages_survive_the_wire(message_id: int, data: bytes) -> None:
    encoded = gmq.encode_guest_message(gmq.GuestMessage(message_id, data))
    assert gmq.decode_guest_head(encoded[:8]) == (message_id, len(data))
    assert encoded[8:] == data


def test_no_guest_message_and_absurd_ones() -> None:
    assert gmq.encode_guest_message(None) == b"\xff\xff\xff\xff\0\0\0\0"
    with pytest.raises(DeviceError, match="at most"):
        gmq.decode_guest_head(struct.pack("<II", 1, 2**31))


phrases = st.lists(
    st.text(max_size=12).filter(lambda phrase: not phrase.startswith("\ufeff")),
    min_size=1,
    max_size=5,
).map(tuple)


@given(phrases=phrases, with_mark=st.booleans())
def test_phrases_survive_the_wire_with_a_mark_or_without(
    phrases: tuple[str, ...], with_mark: bool
) -> None:
    encoded = vi.encode_phrases(phrases, with_mark=with_mark)
    assert vi.parse_phrases(encoded + b"\x01") == (phrases, len(encoded))
    assert all(vi.parse_phrases(encoded[:end]) is None for end in range(len(encoded)))


def test_phrases_have_the_documented_bytes() -> None:
    assert vi.encode_phrases(("ok",)) == bytes.fromhex("0100 0600 fffe 6f00 6b00")
    assert vi.encode_phrases(("ok",), with_mark=False) == bytes.fromhex("0100 0400 6f00 6b00")
    assert vi.parse_phrases(b"\0\0") == ((), 2)
    with pytest.raises(ConfigError, match="needs phrases"):
        vi.encode_phrases(())
    with pytest.raises(DeviceError, match="UTF-16LE"):
        vi.parse_phrases(bytes.fromhex("0100 0100 41"))


@given(idx=U32, confidence=U32, duration=st.integers(0, 2**64 - 1), raw=st.floats(0, 1))
def test_heard_phrases_survive_their_32_bytes(
    idx: int, confidence: int, duration: int, raw: float
) -> None:
    heard = vi.HeardPhrase(
        phrase_idx=idx,
        confidence=confidence,
        duration_hns=duration,
        start_filetime_hns=7,
        raw_confidence=raw,
    )
    encoded = vi.encode_heard([heard, heard])
    assert (vi.decode_heard_count(encoded[:4]), len(encoded)) == (2, 68)
    assert vi.HeardPhrase.decode(encoded[36:]) == heard


@given(data=st.binary(max_size=80))
def test_any_bytes_are_a_message_incomplete_or_refused(data: bytes) -> None:
    for parse in (umq.parse_message, vi.parse_phrases):
        try:
            parsed = parse(data)
        except DeviceError:
            continue
        assert parsed is None or 2 <= parsed[1] <= len(data)
