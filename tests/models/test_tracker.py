import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystep_capture.errors import ConfigError, DataError, NotFoundError, ShapeError, StateError
from keystep_models.psr.logic import Detection
from keystep_models.psr.procedure import Procedure, ProcedureStep, builtin_procedure
from keystep_models.psr.tracker import Tracker, TrackerEvent
from keystep_models.psr.tracker_model import (
    TrackerModel,
    builtin_tracker_model,
    load_tracker_model,
    save_tracker_model,
)

ASSEMBLY = builtin_procedure("industreal-assy")
MODEL = builtin_tracker_model("industreal")

detection_lists = st.lists(
    st.builds(
        Detection,
        st.sampled_from((0, 1, 4, 5, 6, 7, 8, 13, 22, 23)),
        st.one_of(st.just(0.85), st.floats(0, 1)),
    ),
    max_size=3,
)
recordings = st.lists(
    st.tuples(detection_lists, st.integers(1, 25)).map(lambda pair: [pair[0]] * pair[1]),
    max_size=12,
).map(lambda blocks: [frame for block in blocks for frame in block])


def run(tracker: Tracker, frames: Sequence[Sequence[Detection]], first: int = 0) -> list[object]:
    return [tracker.step(first + idx, frame) for idx, frame in enumerate(frames)]


def events_of(frames: Sequence[Sequence[Detection]], model: TrackerModel = MODEL) -> list:
    tracker = Tracker(ASSEMBLY, model)
    return [event for idx, frame in enumerate(frames) for event in tracker.step(idx, frame)]


def seen(class_id: int, confidence: float = 0.85, count: int = 30) -> list[list[Detection]]:
    return [[Detection(class_id, confidence)]] * count


def unseen(count: int) -> list[list[Detection]]:
    return [[]] * count


def ids(events: Sequence[TrackerEvent]) -> list[int]:
    return [event.step_id for event in events if event.retracts is None]


@settings(max_examples=25, deadline=None)
@given(frames=recordings, data=st.data())
def test_going_on_from_a_snapshot_at_any_frame_changes_nothing(
    frames: list[list[Detection]], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(frames)))
    whole = Tracker(ASSEMBLY, MODEL)
    expected = run(whole, frames)
    first, second = Tracker(ASSEMBLY, MODEL), Tracker(ASSEMBLY, MODEL)
    before = run(first, frames[:cut])
    second.restore(json.loads(json.dumps(first.snapshot())))
    assert before + run(second, frames[cut:], cut) == expected
    assert second.snapshot() == whole.snapshot()


@settings(max_examples=25, deadline=None)
@given(frames=recordings, seed=st.randoms(use_true_random=False))
def test_the_order_of_a_frames_detections_does_not_matter(
    frames: list[list[Detection]], seed: object
) -> None:
    shuffled = [sorted(frame, key=lambda _: seed.random()) for frame in frames]  # type: ignore[attr-defined]
    assert events_of(frames) == events_of(shuffled)


@settings(max_examples=25, deadline=None)
@given(frames=recordings)
def test_every_event_changes_the_state_it_was_made_in(frames: list[list[Detection]]) -> None:
    tracker, state, last = Tracker(ASSEMBLY, MODEL), list(ASSEMBLY.initial_state), {}
    value_after = {"completed": 1, "incorrect": -1, "removed": 0}
    for idx, frame in enumerate(frames):
        for event in tracker.step(idx, frame):
            assert 0.5 <= event.confidence <= 1
            if event.retracts is None:
                assert state[event.component_idx] != value_after[event.kind]
                state[event.component_idx] = value_after[event.kind]
                last[event.id] = event
            else:
                assert last.pop(event.retracts).component_idx == event.component_idx
                state[event.component_idx] = tracker.state[event.component_idx]
    assert all(
        mine == theirs or (theirs == 0 and mine == -1)
        for mine, theirs in zip(state, tracker.state, strict=True)
    )


@settings(max_examples=25, deadline=None)
@given(frames=recordings)
def test_the_same_frames_give_the_same_events_and_a_probability(
    frames: list[list[Detection]],
) -> None:
    first, second = Tracker(ASSEMBLY, MODEL), Tracker(ASSEMBLY, MODEL)
    assert run(first, frames) == run(second, frames)
    total = first.component_probabilities().sum(axis=0) + first.mistake_probability
    np.testing.assert_allclose(total, 1.0, atol=1e-9)


def test_a_state_seen_clearly_completes_its_steps_together() -> None:
    events = events_of(seen(1) + unseen(300) + seen(5))
    assert ids(events) == [3, 6]
    assert {event.frame_idx for event in events} <= set(range(330, 360))
    assert min(event.confidence for event in events) > MODEL.report_threshold


def test_time_alone_completes_no_step() -> None:
    assert events_of(seen(1) + unseen(5000)) == []


def test_a_glimpse_of_a_later_state_is_not_believed() -> None:
    assert events_of(seen(1) + unseen(50) + seen(13, 0.5, count=4) + seen(1)) == []


def test_what_the_procedure_does_not_ask_for_is_hard_to_believe() -> None:
    """Class 22 holds the short rear chassis, which no assembly has; the detector said so once."""
    tracker = Tracker(ASSEMBLY, MODEL)
    frames = seen(1) + unseen(300) + seen(22, 0.7, count=20)
    assert run(tracker, frames) == [[]] * len(frames)


def test_a_report_that_turns_out_wrong_is_retracted() -> None:
    """Class 6 lacks the front rear pin, class 7 the rear rear pin that class 6 showed."""
    tracker = Tracker(ASSEMBLY, MODEL)
    for idx, frame in enumerate(seen(1) + unseen(300) + seen(5) + unseen(300) + seen(6)):
        tracker.step(idx, frame)
    assert tracker.state == ASSEMBLY.states[6]
    later = [tracker.step(1000 + idx, frame) for idx, frame in enumerate(unseen(300) + seen(7))]
    events = list(itertools.chain(*later))
    assert [event.step_id for event in events if event.retracts is not None] == [18]
    assert ids(events) == [15]
    assert tracker.state == ASSEMBLY.states[7]


def test_the_tracker_says_when_it_cannot_see() -> None:
    tracker = Tracker(ASSEMBLY, MODEL)
    run(tracker, seen(1))
    assert tracker.can_see
    run(tracker, unseen(200), first=100)
    assert not tracker.can_see
    run(tracker, seen(1), first=500)
    assert tracker.can_see


def test_next_steps_are_those_that_lead_on_from_here() -> None:
    tracker = Tracker(ASSEMBLY, MODEL)
    run(tracker, seen(1) + unseen(100) + seen(8))
    chances = tracker.next_steps()
    assert set(list(chances)[:3]) == {21, 24, 30}
    assert min(list(chances.values())[:3]) > 0.3 > 10 * list(chances.values())[3]


def test_error_states_and_doubtful_detections_raise_the_chance_of_a_mistake() -> None:
    sure, doubtful = Tracker(ASSEMBLY, MODEL), Tracker(ASSEMBLY, MODEL)
    start = seen(1) + unseen(300)
    run(sure, start + seen(5, 0.85))
    run(doubtful, start + seen(5, 0.35, 10) + seen(23, 0.7, 20) + seen(5, 0.35, 10))
    assert doubtful.mistake_probability > 0.5 > 10 * sure.mistake_probability


def one_component(states: tuple[tuple[int, ...] | None, ...]) -> Procedure:
    kinds = ("completed", "incorrect", "removed")
    return Procedure(
        name="lid",
        task="assy",
        steps=tuple(
            ProcedureStep(id=i, title=kind, component_idx=0, kind=kind, expected=i == 0)
            for i, kind in enumerate(kinds)
        ),
        component_count=1,
        initial_state=(0,),
        states=states,
    )


def test_a_state_known_to_be_wrong_is_reported_as_incorrect_and_can_be_put_right() -> None:
    tracker = Tracker(one_component((None, (0,), (-1,), (1,))), TrackerModel())
    frames = seen(1) + unseen(300) + seen(2, count=60) + unseen(300) + seen(3, count=60)
    events = list(itertools.chain(*run(tracker, frames)))  # type: ignore[call-overload]
    assert [(event.kind, event.retracts) for event in events] == [
        ("incorrect", None),
        ("completed", None),
    ]


def test_evidence_of_another_branch_reports_a_step_no_detection_shows() -> None:
    tracker = Tracker(one_component((None, (0,), (1,))), TrackerModel())
    run(tracker, seen(1) + unseen(50))
    installed, events = np.array([[0.0], [0.0], [3.0]]), []
    for idx in range(20):
        tracker.add_evidence(installed)
        events += tracker.step(100 + idx, [])
    assert ids(events) == [0]


@pytest.mark.parametrize("shape", [(3,), (2, 11), (3, 12)])
def test_evidence_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected shape \(3, 11\)"):
        Tracker(ASSEMBLY, MODEL).add_evidence(np.zeros(shape))


def test_evidence_that_is_no_number_is_refused() -> None:
    with pytest.raises(DataError, match="finite"):
        Tracker(ASSEMBLY, MODEL).add_evidence(np.full((3, 11), np.nan))


@pytest.mark.parametrize(
    ("detection", "message"),
    [
        (Detection(24, 0.5), "class from 0 to 23"),
        (Detection(-1, 0.5), "class from 0 to 23"),
        (Detection(5, 1.01), "confidence from 0 to 1"),
        (Detection(5, float("nan")), "confidence from 0 to 1"),
    ],
)
def test_a_frame_with_a_bad_detection_counts_as_not_given(
    detection: Detection, message: str
) -> None:
    tracker = Tracker(ASSEMBLY, MODEL)
    run(tracker, seen(1))
    before = tracker.snapshot()
    with pytest.raises(DataError, match=message):
        tracker.step(40, [Detection(1, 0.8), detection])
    assert tracker.snapshot() == before


@pytest.mark.parametrize("frame_idx", [29, 5, -1])
def test_frames_out_of_order_are_refused(frame_idx: int) -> None:
    tracker = Tracker(ASSEMBLY, MODEL)
    run(tracker, seen(1))
    with pytest.raises(StateError, match="after 29"):
        tracker.step(frame_idx, [])


@pytest.mark.parametrize(
    "change",
    [
        {"procedure": "industreal-main"},
        {"method": "b3"},
        {"belief": [[1.0]]},
        {"reported": [1]},
        {"view": {}},
        {"frame_idx": None},
        {"model": {}},
    ],
)
def test_a_snapshot_of_something_else_is_refused_and_changes_nothing(
    change: dict[str, object],
) -> None:
    tracker = Tracker(ASSEMBLY, MODEL)
    run(tracker, seen(1))
    before = tracker.snapshot()
    with pytest.raises(DataError):
        tracker.restore({**before, **change})
    assert tracker.snapshot() == before


def test_a_procedure_whose_detector_knows_no_state_is_refused() -> None:
    with pytest.raises(ConfigError, match="detector_states"):
        Tracker(one_component((None, None)), TrackerModel())


@pytest.mark.parametrize(
    "change",
    [
        {"step_rate": 0.0},
        {"report_threshold": 0.4},
        {"hold_frames": -1},
        {"hold_frames": 2.5},
        {"view_frames": float("inf")},
        {"mistake_rate": float("nan")},
        {"order_counts": ((1, 2, -3),)},
    ],
)
def test_numbers_out_of_range_make_no_model(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        replace(TrackerModel(), **change)  # type: ignore[arg-type]


def test_a_model_survives_its_file(tmp_path: Path) -> None:
    save_tracker_model(MODEL, tmp_path / "model.json", source="a test")
    assert load_tracker_model(tmp_path / "model.json") == MODEL


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"keystep_tracker": 1}',
        '{"keystep_tracker": 2, "settings": {}}',
        '{"keystep_tracker": 1, "settings": {"speed": 1}}',
    ],
)
def test_a_file_that_holds_no_model_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"broken\.json"):
        load_tracker_model(path)


def test_a_model_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        load_tracker_model(tmp_path / "none.json")
    with pytest.raises(NotFoundError, match="industreal"):
        builtin_tracker_model("meccano")


def test_a_declared_step_is_not_reported_again_and_survives_a_snapshot() -> None:
    tracker = Tracker(ASSEMBLY, MODEL)
    run(tracker, seen(1))
    declared = tracker.declare(9)
    assert (declared.step_id, declared.confidence, tracker.state[3]) == (9, 1.0, 1)
    again = Tracker(ASSEMBLY, MODEL)
    again.restore(json.loads(json.dumps(tracker.snapshot())))
    later = [event for events in run(again, seen(2, count=60), 30) for event in events]
    assert ids(later) == [18]
    with pytest.raises(NotFoundError):
        tracker.declare(999)


def test_clear_evidence_takes_a_declared_step_back() -> None:
    tracker = Tracker(ASSEMBLY, MODEL)
    run(tracker, seen(1))
    declared = tracker.declare(9)
    later = [event for events in run(tracker, seen(1, count=600), 30) for event in events]
    assert [event.retracts for event in later] == [declared.id]
    assert tracker.state == ASSEMBLY.initial_state
