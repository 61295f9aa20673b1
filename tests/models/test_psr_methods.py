import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from keystep_capture.errors import ConfigError, DataError
from keystep_models.psr.clips import ClipPrediction
from keystep_models.psr.logic import Detection, StepCompletion
from keystep_models.psr.methods import (
    LIVE_CLIP_METHODS,
    LIVE_METHODS,
    METHODS,
    MethodOptions,
    check_live_method,
    choose_live_method,
    find_method,
)
from keystep_models.psr.procedure import ComponentState, Procedure, builtin_procedure
from keystep_models.psr.recogniser import FrameReport, Recogniser, Retraction, run_recording
from keystep_models.psr.tracker_model import TrackerModel, builtin_tracker_model
from keystep_models.psr.tracker_recogniser import fitted_model, make_tracker

ASSEMBLY = builtin_procedure("industreal-assy")
RENUMBERED = replace(  # the same work under other ids: another procedure
    ASSEMBLY, name="other", steps=tuple(replace(s, id=s.id + 100) for s in ASSEMBLY.steps)
)
WORK = [[Detection(1, 0.85)]] * 30 + [[]] * 300 + [[Detection(5, 0.85)]] * 30  # simulated
WORK_CLIPS = [None] * 330 + [ClipPrediction.of([0.0] + [0.9] * 10)] * 30
SEEN = [[Detection(1, 0.9)]] * 3 + [[Detection(13, 1.0)]] * 20
CLIPS = [None] * 3 + [ClipPrediction.of([0.0] + [0.9] * 10)] * 20


def options_of(name: str) -> MethodOptions:
    return MethodOptions(threshold=None if name.startswith("tracker") else 2.0)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_completes_steps_and_goes_on_from_a_snapshot(name: str) -> None:
    def make() -> Recogniser:
        return METHODS[name].make(ASSEMBLY, options_of(name))

    whole = make()
    run = run_recording(whole, WORK, WORK_CLIPS)
    assert run.steps
    first, second = make(), make()
    reports = [first.step(k, WORK[k], WORK_CLIPS[k]) for k in range(332)]
    second.restore(json.loads(json.dumps(first.snapshot())))
    assert second.state == first.state
    reports += [second.step(k, WORK[k], WORK_CLIPS[k]) for k in range(332, 360)]
    assert [step for report in reports for step in report.steps] == run.steps
    assert (second.state, second.can_see) == (whole.state, whole.can_see)
    assert second.method == name


@pytest.mark.parametrize("name", ["b1", "b2", "b3"])
def test_long_empty_stretches_are_skipped_without_a_difference(name: str) -> None:
    frames = [*WORK[:340], *[[]] * 2000, *WORK[:340]]
    whole, skipping = (METHODS[name].make(ASSEMBLY, options_of(name)) for _ in range(2))
    steps = [s for k, seen in enumerate(frames) for s in whole.step(k, seen).steps]
    assert run_recording(skipping, frames, [None] * len(frames)).steps == steps
    assert skipping.snapshot() == whole.snapshot()
    assert not METHODS["tracker"].make(ASSEMBLY, MethodOptions()).is_at_rest


@pytest.mark.parametrize("name", METHODS)
def test_every_method_begins_in_a_state_and_refuses_anothers_snapshot(name: str) -> None:
    recogniser = METHODS[name].make(ASSEMBLY, options_of(name))
    assert recogniser.state == ASSEMBLY.initial_state
    other = METHODS["b1" if name == "b3" else "b3"].make(ASSEMBLY, MethodOptions())
    with pytest.raises(DataError):
        recogniser.restore(other.snapshot())


def test_methods_have_thresholds_of_their_own() -> None:
    def first_frame(name: str, fusion: str = "shared") -> int:
        options = MethodOptions(fusion=fusion)  # type: ignore[arg-type]
        run = run_recording(METHODS[name].make(ASSEMBLY, options), SEEN, CLIPS)
        return run.steps[0].frame_idx

    assert first_frame("b3") == 3 + 8  # the ninth 1.0 exceeds 8
    assert first_frame("temporal") == 3 + 6  # the seventh 0.9 exceeds 6
    assert first_frame("storm") == 3 + 3  # 1.9 a frame towards 6
    assert first_frame("storm", "soft") == 3 + 6  # 0.95 a frame towards 6


class Scripted(Recogniser):
    """Reports what it is told to: another implementation of the interface."""

    def __init__(self, reports: Mapping[int, FrameReport]) -> None:
        super().__init__("scripted", ASSEMBLY)
        self.reports = reports

    @property
    def state(self) -> ComponentState:
        return self.procedure.initial_state

    def step(
        self,
        frame_idx: int,
        detections: Sequence[Detection],
        clip: ClipPrediction | None = None,
    ) -> FrameReport:
        return self.reports.get(frame_idx, FrameReport())

    def snapshot(self) -> Mapping[str, Any]:
        return {}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        pass


def test_retracted_steps_leave_the_list() -> None:
    early = StepCompletion(0, 3, 0.6, 1, "completed")
    late = StepCompletion(2, 6, 0.9, 2, "completed")
    gone = Retraction(early, 2, 0.8)
    reports = {0: FrameReport(steps=[early]), 2: FrameReport(steps=[late], retracted=[gone])}
    run = run_recording(Scripted(reports), [[]] * 3, [None] * 3)
    assert (run.steps, run.retracted) == ([late], [early])
    assert reports[2].changes == (gone, late)


def test_the_tracker_names_the_report_that_it_takes_back() -> None:
    """Class 6 lacks the front rear pin, class 7 the rear rear pin that class 6 showed."""
    recogniser = make_tracker(ASSEMBLY)
    frames = [
        frame for seen in (1, 5, 6, 7) for frame in [[Detection(seen, 0.85)]] * 30 + [[]] * 300
    ]
    reported: list[StepCompletion] = []
    retractions: list[Retraction] = []
    for frame_idx, frame in enumerate(frames):
        report = recogniser.step(frame_idx, frame)
        assert all(retraction.step in reported for retraction in report.retracted)
        retractions += report.retracted
        reported += report.steps
    (gone,) = retractions
    assert gone.step.step_id == 18
    assert gone.frame_idx > gone.step.frame_idx
    assert 0.5 <= gone.confidence <= 1
    assert recogniser.state == ASSEMBLY.states[7]


def test_shipped_settings_are_taken_where_they_were_fitted() -> None:
    shipped = builtin_tracker_model("industreal")
    for name in ("industreal-assy", "industreal-main"):
        procedure = replace(builtin_procedure(name), name="mine", steps=retitled(name))
        assert fitted_model(procedure) == shipped
        assert make_tracker(procedure).note == ""
    other_detector = replace(ASSEMBLY, states=(*ASSEMBLY.states, ASSEMBLY.initial_state))
    for procedure in (RENUMBERED, other_detector):
        assert fitted_model(procedure) is None
        recogniser = make_tracker(procedure)
        assert recogniser.tracker.model == TrackerModel()
        assert f"fitted for procedure {procedure.name!r}" in recogniser.note


def retitled(name: str) -> tuple[Any, ...]:
    return tuple(replace(step, title="?") for step in builtin_procedure(name).steps)


def test_settings_that_count_other_steps_or_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match="got step 3, which it does not have"):
        make_tracker(RENUMBERED, builtin_tracker_model("industreal"))
    counted = replace(TrackerModel(), confusions=((3, 24, 1),))
    with pytest.raises(ConfigError, match=r"classes from 0 to 23 .*got class 24"):
        make_tracker(ASSEMBLY, counted)


def test_the_tracker_has_no_sum_to_exceed() -> None:
    with pytest.raises(ConfigError, match="no sum to exceed"):
        METHODS["tracker"].make(ASSEMBLY, MethodOptions(threshold=8.0))


def test_unknown_methods_are_refused_with_those_that_exist() -> None:
    known = "b1, b2, b3, temporal, storm, tracker"
    with pytest.raises(ConfigError, match=f"no method 'b4'; there are {known}"):
        find_method("b4")


@pytest.mark.parametrize(
    ("asked", "procedure", "default", "expected"),
    [
        (None, ASSEMBLY, "auto", "tracker"),
        (None, RENUMBERED, "auto", "b3"),
        (None, ASSEMBLY, "b2", "b2"),
        ("b1", ASSEMBLY, "auto", "b1"),
        ("auto", ASSEMBLY, "b1", "tracker"),
        ("tracker", RENUMBERED, "auto", "tracker"),
    ],
)
def test_a_live_session_runs_what_it_asks_for_or_the_best_known(
    asked: str | None, procedure: Procedure, default: str, expected: str
) -> None:
    name, recogniser = choose_live_method(asked, procedure, default=default)
    assert (name, recogniser.method) == (expected, expected)


PINNED = replace(ASSEMBLY, storm="0" * 64, detector="1" * 64)


@pytest.mark.parametrize(
    ("asked", "procedure", "expected"),
    [
        (None, PINNED, "storm"),
        (None, replace(PINNED, detector=None), "temporal"),
        ("temporal", PINNED, "temporal"),
        ("storm-soft", PINNED, "storm-soft"),
        ("tracker-clips", PINNED, "tracker-clips"),
        ("b3", PINNED, "b3"),
    ],
)
def test_a_procedure_with_a_storm_bundle_can_be_followed_by_clips(
    asked: str | None, procedure: Procedure, expected: str
) -> None:
    options = MethodOptions(threshold=2.0, window_frames=65)
    assert choose_live_method(asked, procedure, clip_options=options)[0] == expected


@pytest.mark.parametrize("name", ["storm", "storm-soft", "tracker-clips"])
def test_fusions_need_a_detector_too(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}.*pins no detector"):
        choose_live_method(name, replace(PINNED, detector=None))


@pytest.mark.parametrize("name", LIVE_CLIP_METHODS)
def test_what_a_person_calls_done_is_not_reported_again_by_clips_that_show_it(name: str) -> None:
    _, recogniser = choose_live_method(name, PINNED)
    recogniser.step(0, [Detection(1, 0.9)])
    step = ASSEMBLY.step_for(1, "completed")
    assert step is not None
    declared = recogniser.declare(step.id)
    assert (declared.step_id, declared.frame_idx) == (step.id, 0)
    assert recogniser.state[1] == 1
    shown = ClipPrediction.of([0.0, 0.95] + [0.0] * 9)
    found = [recogniser.step(number, [], shown) for number in range(1, 40)]
    assert 1 not in [step.component_idx for report in found for step in report.steps]
    assert recogniser.state[1] == 1


def test_methods_that_need_clips_cannot_run_live_without_a_storm_bundle() -> None:
    assert LIVE_METHODS == ("b1", "b2", "b3", "tracker")
    for name in LIVE_CLIP_METHODS:
        with pytest.raises(ConfigError, match=rf"{name}.*needs clip.*b1, b2, b3, tracker"):
            check_live_method(name)
