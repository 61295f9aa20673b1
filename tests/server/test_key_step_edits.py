"""Edits of key steps: what they keep, whatever a person does."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep_capture.errors import DataError
from keystep_server.key_step_edits import (
    Add,
    Confirm,
    Drop,
    Edit,
    EditContext,
    Merge,
    Rename,
    Reorder,
    Split,
    apply_edits,
)
from keystep_server.storage import EpochSpan, KeyStep, KeyStepSource, KeyStepStatus

SESSION = "ses_01kx5m3v0g8q2m4t6w8y0a2c4e"
ORIGIN_NS = 2**60
NS = 1_000_000_000
SPAN = EpochSpan(epoch=1, start_s=0.0, end_s=100.0, device_time_ns=ORIGIN_NS)
CONTEXT = EditContext(session_id=SESSION, seed="revision 2", timeline=(SPAN,))


def step(number: int, start_s: float, end_s: float, **changes: Any) -> KeyStep:
    exemplar_s = changes.pop("exemplar_s", (start_s + end_s) / 2)
    values: dict[str, Any] = {
        "id": f"kst_{number:032x}",
        "session_id": SESSION,
        "position": 0,
        "title": f"Key step {number + 1}",
        "status": KeyStepStatus.PROPOSED,
        "source": KeyStepSource.EXTRACTED,
        "epoch": 1,
        "start_s": start_s,
        "end_s": end_s,
        "exemplar_s": exemplar_s,
        "start_device_time_ns": ORIGIN_NS + round(start_s * NS),
        "end_device_time_ns": ORIGIN_NS + round(end_s * NS),
        "exemplar_device_time_ns": ORIGIN_NS + round(exemplar_s * NS),
        "confidence": 0.5,
        "exemplar_path": f"a/{number}.jpg",
        "exemplar_size": (640, 360),
        "provenance": {"method": "steps", "cluster": number},
    }
    return KeyStep(**{**values, **changes})


def three() -> list[KeyStep]:
    return [step(0, 0, 10), step(1, 12, 20), step(2, 30, 44)]


def ids(steps: Sequence[KeyStep]) -> list[str]:
    return [one.id for one in steps]


def spans(steps: Sequence[KeyStep]) -> list[tuple[float | None, float | None]]:
    return [(one.start_s, one.end_s) for one in steps]


@st.composite
def recordings(draw: st.DrawFn) -> list[KeyStep]:
    """Key steps of one recording, apart from each other, the exemplar anywhere in each."""
    count = draw(st.integers(1, 8))
    bounds = sorted(draw(st.sets(st.integers(0, 1000), min_size=2 * count, max_size=2 * count)))
    made = []
    for number, (start, end) in enumerate(zip(bounds[::2], bounds[1::2], strict=True)):
        share = draw(st.floats(0, 1))
        start_s, end_s = start / 10, end / 10
        exemplar_s = min(end_s, start_s + share * (end_s - start_s))
        confidence = draw(st.none() | st.floats(0, 1))
        made.append(step(number, start_s, end_s, exemplar_s=exemplar_s, confidence=confidence))
    return made


def some_edit(draw: st.DrawFn, steps: Sequence[KeyStep], kinds: Sequence[str]) -> Edit:
    one = draw(st.sampled_from(steps))
    place = ids(steps).index(one.id)
    match draw(st.sampled_from(kinds)):
        case "split":
            assert one.start_s is not None
            assert one.end_s is not None
            return Split(id=one.id, at_s=draw(st.floats(one.start_s, one.end_s)))
        case "merge":
            return Merge(ids=tuple(ids(steps)[place : place + draw(st.integers(1, 3))]))
        case "reorder":
            return Reorder(ids=tuple(draw(st.permutations(ids(steps)))))
        case "drop":
            return Drop(id=one.id)
        case "add":
            start_s, end_s = draw(st.floats(-5, 105)), draw(st.floats(-5, 105))
            return Add(title="New", start_s=start_s, end_s=end_s)
        case "confirm":
            return Confirm(id=one.id)
        case _:
            return Rename(id=one.id, title="Renamed")


def edited(
    draw: st.DrawFn, steps: Sequence[KeyStep], kinds: Sequence[str]
) -> list[tuple[Edit, tuple[KeyStep, ...], tuple[KeyStep, ...]]]:
    """Edits one after another, with what was before and after; those that do not fit left out."""
    done = []
    now = apply_edits(steps, [], CONTEXT)
    for number in range(draw(st.integers(1, 8))):
        if not now:
            break
        edit = some_edit(draw, now, kinds)
        context = EditContext(session_id=SESSION, seed=f"{number}", timeline=(SPAN,))
        try:
            after = apply_edits(now, [edit], context)
        except DataError:
            continue
        done.append((edit, now, after))
        now = after
    return done


KEEPING = ("split", "merge", "rename", "confirm", "reorder")
IN_ORDER = ("split", "merge", "rename", "confirm", "drop", "add")
ALL = (*KEEPING, "drop", "add")


def covers(steps: Sequence[KeyStep], time_s: float) -> bool:
    return any(start <= time_s <= end for start, end in spans(steps) if start is not None and end)


@given(data=st.data(), steps=recordings())
def test_no_time_is_lost_but_by_dropping(data: st.DataObject, steps: list[KeyStep]) -> None:
    for _, before, after in edited(data.draw, steps, KEEPING):
        for start_s, end_s in spans(before):
            assert start_s is not None
            assert end_s is not None
            for share in (0, 0.25, 0.5, 0.75, 1):
                assert covers(after, min(end_s, start_s + share * (end_s - start_s)))


@given(data=st.data(), steps=recordings())
def test_key_steps_stay_apart_and_in_order_of_time(
    data: st.DataObject, steps: list[KeyStep]
) -> None:
    for _, _, after in edited(data.draw, steps, IN_ORDER):
        times = list(itertools.chain.from_iterable(spans(after)))
        assert times == sorted(times, key=lambda time_s: time_s or 0)
        assert [one.position for one in after] == list(range(len(after)))


@given(data=st.data(), steps=recordings())
def test_every_key_step_holds_its_exemplar_and_device_times_follow(
    data: st.DataObject, steps: list[KeyStep]
) -> None:
    for _, _, after in edited(data.draw, steps, ALL):
        for one in after:
            assert one.start_s is not None
            assert one.exemplar_s is not None
            assert one.end_s is not None
            assert 0 <= one.start_s <= one.exemplar_s <= one.end_s <= 100
            for name in ("start", "end", "exemplar"):
                time_s = getattr(one, f"{name}_s")
                device_ns = getattr(one, f"{name}_device_time_ns")
                assert abs(device_ns - ORIGIN_NS - time_s * NS) < 2


@given(data=st.data(), steps=recordings())
def test_ids_are_stable_and_never_used_twice(data: st.DataObject, steps: list[KeyStep]) -> None:
    seen = set(ids(steps))
    for edit, before, after in edited(data.draw, steps, ALL):
        assert len(set(ids(after))) == len(after)
        gone, new = set(ids(before)) - set(ids(after)), set(ids(after)) - set(ids(before))
        assert not new & seen
        seen |= new
        match edit:
            case Merge():
                first = next(one for one in ids(before) if one in edit.ids)
                assert gone == set(edit.ids) - {first}
                assert not new
            case Drop():
                assert gone == {edit.id}
            case Split() | Add():
                assert (gone, len(new)) == (set(), 1)
            case _:
                assert not gone | new


@given(data=st.data(), steps=recordings())
def test_merging_what_was_split_gives_back_the_stretch(
    data: st.DataObject, steps: list[KeyStep]
) -> None:
    one = data.draw(st.sampled_from(steps))
    assert one.start_s is not None
    assert one.end_s is not None
    at_s = data.draw(st.floats(one.start_s, one.end_s, exclude_min=True, exclude_max=True))
    halves = apply_edits(steps, [Split(id=one.id, at_s=at_s)], CONTEXT)
    place = ids(halves).index(one.id)
    assert halves[place].end_s == halves[place + 1].start_s == at_s
    assert halves[place].end_device_time_ns == halves[place + 1].start_device_time_ns
    pair = tuple(ids(halves)[place : place + 2])
    whole = apply_edits(halves, [Merge(ids=pair)], CONTEXT)
    assert ids(whole) == ids(steps)
    assert spans(whole) == spans(steps)
    if one.confidence is not None:  # then the half with the picture is known to be the better one
        assert whole[place].exemplar_path == one.exemplar_path


def test_a_merged_key_step_shows_the_clearest_exemplar_of_its_parts() -> None:
    steps = [step(0, 0, 10, confidence=0.2), step(1, 12, 20, confidence=0.9), step(2, 30, 44)]
    [whole, last] = apply_edits(steps, [Merge(ids=(steps[1].id, steps[0].id))], CONTEXT)
    assert (whole.id, whole.title, whole.confidence) == (steps[0].id, "Key step 1", 0.9)
    assert (whole.exemplar_path, whole.exemplar_s) == ("a/1.jpg", 16)
    assert whole.provenance["merged_from"] == ids(steps[:2])
    assert (last.id, last.position) == (steps[2].id, 1)


def test_a_split_leaves_the_picture_where_it_belongs() -> None:
    [early, late, *_] = apply_edits(three(), [Split(id=three()[0].id, at_s=4.0)], CONTEXT)
    assert (early.id, early.exemplar_s, early.exemplar_path, early.confidence) == (
        three()[0].id,
        2.0,
        None,
        None,
    )
    assert (late.exemplar_s, late.exemplar_path, late.confidence) == (5.0, "a/0.jpg", 0.5)
    assert (late.title, late.provenance["split_from"]) == ("Key step 1 (2)", early.id)


def test_an_addition_stands_where_its_time_is_and_is_a_persons() -> None:
    after = apply_edits(three(), [Add(title="Look", start_s=21, end_s=29)], CONTEXT)
    assert [one.title for one in after] == ["Key step 1", "Key step 2", "Look", "Key step 3"]
    new = after[2]
    assert (new.status, new.confidence, new.epoch) == (KeyStepStatus.CONFIRMED, None, 1)
    assert new.exemplar_device_time_ns == ORIGIN_NS + 25 * NS
    assert new.provenance == {"method": "person"}


A, B, C = ids(three())


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([Rename(id=A, title="")], "title"),
        ([Rename(id=A, title="x\ny")], "title"),
        ([Rename(id=A, title="x" * 201)], "title"),
        ([Drop(id="kst_0")], "there is no key step"),
        ([Drop(id=A), Confirm(id=A)], r"operations\[1\]: there is no"),
        ([Merge(ids=(A,))], "two or more"),
        ([Merge(ids=(A, A))], "two or more"),
        ([Merge(ids=(A, C))], "follow each other"),
        ([Reorder(ids=(A, C, B)), Merge(ids=(A, C))], "lies between them in time"),
        ([Split(id=A, at_s=0.0)], "between 0 and 10"),
        ([Split(id=A, at_s=float("nan"))], "between 0 and 10"),
        ([Reorder(ids=(A, B))], "expected all 3"),
        ([Reorder(ids=(A, B, B))], "expected all 3"),
        ([Add(title="x", start_s=50, end_s=50)], "expected a stretch"),
        ([Add(title="x", start_s=90, end_s=101)], "0 to 100 s"),
        ([Add(title="x", start_s=9, end_s=11)], "overlaps"),
        ([Add(title="x", start_s=50, end_s=60, exemplar_s=61)], "exemplar_s"),
    ],
)
def test_what_does_not_fit_is_refused_and_says_why(edits: list[Edit], message: str) -> None:
    with pytest.raises(DataError, match=message):
        apply_edits(three(), edits, CONTEXT)


def test_key_steps_of_two_epochs_are_never_one() -> None:
    steps = [step(0, 0, 10), step(1, 20, 30, epoch=2)]
    with pytest.raises(DataError, match="restarted"):
        apply_edits(steps, [Merge(ids=(A, B))], CONTEXT)


def test_new_ids_differ_between_revisions_and_sessions() -> None:
    def new_id(**changes: Any) -> str:
        values = {"session_id": SESSION, "seed": "revision 2", "timeline": (SPAN,), **changes}
        context = EditContext(**values)
        return apply_edits(three(), [Split(id=A, at_s=3.0)], context)[1].id

    assert new_id() == new_id()
    assert len({new_id(), new_id(seed="revision 3"), new_id(session_id="ses_other")}) == 3
