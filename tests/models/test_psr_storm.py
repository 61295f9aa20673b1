"""Branch 2 and both fusions, against the published results on simulated recordings."""

import gzip
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystep_capture.errors import ConfigError, DataError, StateError
from keystep_models.psr.clips import ClipPrediction
from keystep_models.psr.confidence_sums import ConfidenceSums
from keystep_models.psr.fusion import FusedFrame, SharedFusion
from keystep_models.psr.logic import Detection, StepCompletion
from keystep_models.psr.merged_steps import MergedSteps
from keystep_models.psr.procedure import (
    Procedure,
    ProcedureStep,
    builtin_procedure,
    parse_state,
)
from keystep_models.psr.soft_voting import SoftVoting
from keystep_models.psr.temporal import RecentChanges, TemporalLogic

GOLDEN = Path(__file__).parents[1] / "golden" / "psr"
SIMULATED = json.loads((GOLDEN / "recordings.json").read_text(encoding="utf-8"))
CLIPS = json.loads(gzip.decompress((GOLDEN / "clips.json.gz").read_bytes()))
ASSEMBLY = builtin_procedure("industreal-assy")
NUMBERS = range(6)

Frame = tuple[list[Detection], ClipPrediction | None]

detections = st.lists(
    st.builds(Detection, st.sampled_from((0, 1, 4, 8, 13, 23)), st.sampled_from((0.4, 1.0))),
    max_size=2,
)
sigmoids = st.lists(st.sampled_from((0.1, 0.6, 1.0)), min_size=11, max_size=11)
clips = st.one_of(st.none(), sigmoids.map(ClipPrediction.of))
recordings = st.lists(
    st.tuples(st.tuples(detections, clips), st.integers(1, 9)).map(lambda p: [p[0]] * p[1]),
    max_size=15,
).map(lambda blocks: [frame for block in blocks for frame in block])


def procedure_of(recording: dict[str, Any]) -> Procedure:
    """The recording's procedure; MECCANO's as far as the logic can tell (no licence to copy it)."""
    if recording["dataset"] == "industreal":
        return ASSEMBLY
    count = recording["num_components"]
    kinds = ("completed", "incorrect", "removed")
    return Procedure(
        name="meccano",
        task="assy",
        steps=tuple(
            ProcedureStep(
                id=3 * idx + offset,
                title=f"{kind} {idx}",
                component_idx=idx,
                kind=kind,  # type: ignore[arg-type]
                expected=offset == 0,
            )
            for idx in range(count)
            for offset, kind in enumerate(kinds)
        ),
        component_count=count,
        initial_state=parse_state(recording["initial_state"]),
        states=(None, *(parse_state(text) for text in recording["states"][1:-1]), None),
    )


def golden_frames(number: int) -> list[Frame]:
    stored = CLIPS[number]
    clips: list[ClipPrediction | None] = [None] * stored["first_frame"]
    for values, predicted in zip(stored["thousandths"], stored["predicted"], strict=True):
        confidences = tuple(value / 1000 for value in values)
        clips.append(ClipPrediction(confidences, tuple(digit == "1" for digit in predicted)))
    per_frame = SIMULATED[number]["detections"]
    return [
        ([Detection(*values) for values in frame], clip)
        for frame, clip in zip(per_frame, clips, strict=True)
    ]


def as_lists(completions: Iterable[StepCompletion]) -> list[list[float]]:
    return [[done.frame_idx, done.step_id, done.confidence] for done in completions]


@pytest.mark.parametrize("number", NUMBERS)
def test_clips_alone_give_the_published_steps(number: int) -> None:
    logic = TemporalLogic(procedure_of(SIMULATED[number]))
    steps = [s for k, (_, clip) in enumerate(golden_frames(number)) for s in logic.step(k, clip)]
    assert as_lists(steps) == SIMULATED[number]["expected"]["temporal_b3"]["steps"]


@pytest.mark.parametrize("number", NUMBERS)
def test_shared_fusion_gives_the_published_steps_of_each_branch_and_merged(number: int) -> None:
    logic = SharedFusion(procedure_of(SIMULATED[number]))
    frames = [logic.step(k, *frame) for k, frame in enumerate(golden_frames(number))]
    branch_steps = CLIPS[number]["branch_steps"]
    assert as_lists(s for f in frames for s in f.detector) == branch_steps["detector"]
    assert as_lists(s for f in frames for s in f.temporal) == branch_steps["temporal"]
    merged = as_lists(s for f in frames for s in f.merged)
    assert merged == SIMULATED[number]["expected"]["storm"]["steps"]


def step_temporal(logic: Any, frame_idx: int, frame: Frame) -> list[StepCompletion]:
    return list(logic.step(frame_idx, frame[1]))


def step_fused(logic: Any, frame_idx: int, frame: Frame) -> Any:
    return logic.step(frame_idx, *frame)


LOGICS: dict[str, tuple[Callable[..., Any], Callable[[Any, int, Frame], Any]]] = {
    "temporal": (TemporalLogic, step_temporal),
    "shared": (SharedFusion, step_fused),
    "soft": (SoftVoting, step_fused),
}


@pytest.mark.parametrize("name", LOGICS)
@given(frames=recordings, share=st.floats(0, 1))
@settings(max_examples=40)
def test_a_restored_session_goes_on_as_an_uninterrupted_one(
    name: str, frames: Sequence[Frame], share: float
) -> None:
    make, step = LOGICS[name]
    cut = int(share * len(frames))
    whole, first, second = (make(ASSEMBLY, threshold=2.5, window_frames=20) for _ in range(3))
    expected = [step(whole, k, frame) for k, frame in enumerate(frames)]
    came = [step(first, k, frame) for k, frame in enumerate(frames[:cut])]
    second.restore(json.loads(json.dumps(first.snapshot())))
    came += [step(second, k, frames[k]) for k in range(cut, len(frames))]
    assert came == expected
    assert second.snapshot() == whole.snapshot()


@given(frames=recordings)
@settings(max_examples=40)
def test_soft_voting_completes_only_expected_steps_that_change_its_state(
    frames: Sequence[Frame],
) -> None:
    logic = SoftVoting(ASSEMBLY, threshold=1.5, window_frames=20)
    for frame_idx, frame in enumerate(frames):
        before = logic.state
        for done in logic.step(frame_idx, *frame):
            assert ASSEMBLY.step(done.step_id).expected
            assert before[done.component_idx] != logic.state[done.component_idx]


def test_soft_voting_needs_twice_the_threshold_of_one_branch_alone() -> None:
    sees_all = ([Detection(13, 1.0)], None)
    logic = SoftVoting(ASSEMBLY, threshold=2.0)
    steps = [logic.step(k, *sees_all) for k in range(5)]
    assert [len(found) for found in steps] == [0, 0, 0, 0, 9]


def test_soft_voting_with_both_branches_needs_the_threshold() -> None:
    changed = [0.0] * 11
    changed[1] = 1.0  # component 1, "Install front chassis"
    both = ([Detection(13, 1.0)], ClipPrediction.of(changed))
    logic = SoftVoting(ASSEMBLY, threshold=2.0)
    steps = [logic.step(k, *both) for k in range(3)]
    assert [[done.step_id for done in found] for found in steps] == [[], [], [3]]


def test_a_change_is_not_believed_again_while_clips_still_show_it() -> None:
    changed = [0.0] * 11
    changed[5] = 1.0
    logic = TemporalLogic(ASSEMBLY, threshold=2.0, window_frames=10)
    clip = ClipPrediction.of(changed)
    steps = [done.frame_idx for k in range(30) for done in logic.step(k, clip)]
    assert steps == [2]  # later flips would be removals, which assembly does not expect
    assert logic.snapshot()["sums"]["sum_by_step"].get("15") is None


def test_changes_within_a_window_of_the_last_cancel_each_other() -> None:
    recent = RecentChanges(10)
    recent.add(0, [1])
    recent.add(12, [1, 2])
    recent.add(20, [2, 3])
    assert recent.flipped_before(21) == {1, 3}
    assert recent.flipped_before(30) == frozenset()


def taken(ids: Sequence[int]) -> list[int]:
    merged = MergedSteps(ASSEMBLY)
    steps = [StepCompletion(k, i, 1.0, i // 3, ASSEMBLY.step(i).kind) for k, i in enumerate(ids)]
    return [done.step_id for step in steps for done in merged.take([step])]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([3, 3, 6], [3, 6]),
        ([3, 5, 3, 5], [3, 5, 3, 5]),
        ([5, 3, 5, 3], [5, 3]),
        ([5, 5], [5]),
    ],
)
def test_a_step_is_taken_again_only_after_its_removal(ids: list[int], expected: list[int]) -> None:
    assert taken(ids) == expected


@pytest.mark.parametrize("name", LOGICS)
def test_refused_input_leaves_the_logic_as_it_was(name: str) -> None:
    make, step = LOGICS[name]
    logic = make(ASSEMBLY)
    step(logic, 3, ([Detection(13, 0.9)], ClipPrediction.of([0.9] * 11)))
    before = logic.snapshot()
    with pytest.raises(StateError, match="after 3, got frame 3"):
        step(logic, 3, ([], None))
    for clip in (ClipPrediction.of([0.9] * 10), ClipPrediction.of([1.5] * 11)):
        with pytest.raises(DataError, match="clip prediction: expected"):
            step(logic, 4, ([], clip))
    assert logic.snapshot() == before


@pytest.mark.parametrize("name", ["shared", "soft"])
def test_fusions_refuse_classes_the_detector_does_not_have(name: str) -> None:
    logic = LOGICS[name][0](ASSEMBLY)
    before = logic.snapshot()
    with pytest.raises(DataError, match="expected a class from 0 to 23"):
        logic.step(0, [Detection(24, 0.9)], ClipPrediction.of([0.9] * 11))
    assert logic.snapshot() == before


@pytest.mark.parametrize("name", LOGICS)
@pytest.mark.parametrize(
    "changes",
    [
        {"method": "b3"},
        {"procedure": "industreal-main"},
        {"threshold": 5.0},
        {"state": [0, 1], "temporal": {}},
        {"sums": {}, "merged": [3, 3], "clip_sums": None},
        {"recent": {"window_frames": 3, "changes": []}, "temporal": None},
        {"frame_idx": "soon", "detector": None},
    ],
)
def test_foreign_and_malformed_snapshots_are_refused(name: str, changes: dict[str, Any]) -> None:
    make, step = LOGICS[name]
    logic = make(ASSEMBLY)
    step(logic, 0, ([Detection(13, 0.9)], ClipPrediction.of([0.9] * 11)))
    before = logic.snapshot()
    applicable = {key: value for key, value in changes.items() if key in before}
    assert applicable
    with pytest.raises(DataError, match="expected"):
        logic.restore(before | applicable)
    assert logic.snapshot() == before


def test_shared_sums_that_differ_are_refused() -> None:
    logic = SharedFusion(ASSEMBLY)
    logic.step(0, [Detection(13, 0.9)], None)
    snapshot = json.loads(json.dumps(logic.snapshot()))
    snapshot["temporal"]["sums"]["sum_by_step"]["3"] = 4.0
    with pytest.raises(DataError, match="both branches' sums to be equal"):
        logic.restore(snapshot)


def test_settings_out_of_range_are_refused() -> None:
    for make, wrong in [
        (TemporalLogic, {"threshold": 0.0}),
        (TemporalLogic, {"window_frames": 0}),
        (SharedFusion, {"weight": 1.5}),
        (SoftVoting, {"weight": -0.1}),
        (SoftVoting, {"decay": 2.0}),
    ]:
        with pytest.raises(ConfigError, match="expected"):
            make(ASSEMBLY, **wrong)  # type: ignore[operator]


def test_united_sums_gain_together_and_keep_their_own_gainers() -> None:
    mine, theirs = ConfidenceSums(decay=0.5), ConfidenceSums(decay=0.5)
    mine.add(3, 1.0)
    theirs.add(6, 2.0)
    mine.unite(theirs, weight=0.25)
    assert mine.snapshot()["sum_by_step"] == {"3": 0.75, "6": 0.5}
    assert theirs.add(3, 1.0) == 1.75
    mine.decay()  # 6 did not gain here
    assert theirs.snapshot()["sum_by_step"] == {"3": 1.75, "6": 0.25}


def test_a_fused_frame_holds_what_each_branch_completed() -> None:
    changed = [0.0] * 11
    changed[1] = 1.0
    logic = SharedFusion(ASSEMBLY, threshold=0.6)
    frame = logic.step(0, [Detection(1, 1.0)], ClipPrediction.of(changed))
    assert frame == FusedFrame(detector=[], temporal=frame.temporal, merged=frame.temporal)
    assert [done.step_id for done in frame.temporal] == [3]
