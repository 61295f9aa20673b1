"""The methods that recognise steps, by name: what each needs, and how a session gets one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

from keystep_capture.errors import ConfigError
from keystep_models.psr.clips import ClipPrediction
from keystep_models.psr.fusion import SharedFusion
from keystep_models.psr.logic import Detection, StepCompletion, StepLogic, make_logic
from keystep_models.psr.procedure import Procedure
from keystep_models.psr.soft_voting import SoftVoting
from keystep_models.psr.steps_files import RecognisedStep
from keystep_models.psr.temporal import WINDOW_FRAMES, TemporalLogic

Fusion: TypeAlias = Literal["shared", "soft"]
FrameStep: TypeAlias = Callable[
    [int, Sequence[Detection], ClipPrediction | None], Sequence[RecognisedStep]
]


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodOptions:
    """What a user may set; a method takes what it has. `threshold` None: the method's own."""

    threshold: float | None = None
    decay: float = 0.75
    fusion: Fusion = "shared"
    weight: float = 0.5
    window_frames: int = WINDOW_FRAMES


@dataclass(frozen=True, slots=True, kw_only=True)
class Recogniser:
    """A method at the start of a session, the same for all of them.

    `step(frame_idx, detections, clip)` takes the next frame and gives the steps it completes.
    Of the last frame, `branches` gives the steps by branch, and `retracted` those of earlier frames
    that it took back; both are empty where a method has none.
    """

    step: FrameStep
    snapshot: Callable[[], Mapping[str, Any]]
    restore: Callable[[Mapping[str, Any]], None]
    branches: Callable[[], Mapping[str, Sequence[RecognisedStep]]] = dict
    retracted: Callable[[], Sequence[RecognisedStep]] = tuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to recognise steps: `make(procedure, options)` starts it."""

    title: str
    needs_detections: bool
    needs_clips: bool
    make: Callable[[Procedure, MethodOptions], Recogniser]


def _detection_method(name: str) -> Callable[[Procedure, MethodOptions], Recogniser]:
    def make(procedure: Procedure, options: MethodOptions) -> Recogniser:
        threshold = 8.0 if options.threshold is None else options.threshold
        logic: StepLogic = make_logic(name, procedure, threshold=threshold, decay=options.decay)
        return Recogniser(
            step=lambda frame_idx, detections, _: logic.step(frame_idx, detections),
            snapshot=logic.snapshot,
            restore=logic.restore,
        )

    return make


def _make_temporal(procedure: Procedure, options: MethodOptions) -> Recogniser:
    logic = TemporalLogic(procedure, **_branch_options(options))
    return Recogniser(
        step=lambda frame_idx, _, clip: logic.step(frame_idx, clip),
        snapshot=logic.snapshot,
        restore=logic.restore,
    )


def _make_storm(procedure: Procedure, options: MethodOptions) -> Recogniser:
    settings = {**_branch_options(options), "weight": options.weight}
    if options.fusion == "soft":
        voting = SoftVoting(procedure, **settings)
        return Recogniser(step=voting.step, snapshot=voting.snapshot, restore=voting.restore)
    fused = SharedFusion(procedure, **settings)
    last: dict[str, list[StepCompletion]] = {}

    def step(
        frame_idx: int, detections: Sequence[Detection], clip: ClipPrediction | None
    ) -> list[StepCompletion]:
        frame = fused.step(frame_idx, detections, clip)
        last.update(detector=frame.detector, temporal=frame.temporal)
        return frame.merged

    return Recogniser(
        step=step, snapshot=fused.snapshot, restore=fused.restore, branches=lambda: last
    )


def _branch_options(options: MethodOptions) -> dict[str, Any]:
    return {
        "threshold": 6.0 if options.threshold is None else options.threshold,
        "decay": options.decay,
        "window_frames": options.window_frames,
    }


METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        **{
            name: Method(
                title=title,
                needs_detections=True,
                needs_clips=False,
                make=_detection_method(name),
            )
            for name, title in (
                ("b1", "IndustReal's naive baseline"),
                ("b2", "IndustReal's accumulated confidence"),
                ("b3", "IndustReal's accumulated confidence over expected steps"),
            )
        },
        "temporal": Method(
            title="STORM-PSR's spatio-temporal branch alone",
            needs_detections=False,
            needs_clips=True,
            make=_make_temporal,
        ),
        "storm": Method(
            title="STORM-PSR: both branches fused",
            needs_detections=True,
            needs_clips=True,
            make=_make_storm,
        ),
    }
)
"""Every method by the name that `keystep psr run --method` takes."""


def find_method(name: str) -> Method:
    """The method with this name; ConfigError when there is none."""
    method = METHODS.get(name)
    if method is None:
        raise ConfigError(f"no method {name!r}; there are {', '.join(METHODS)}")
    return method


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRun:
    """A whole recording's steps in order of time.

    `steps` are those that stood at the end, `retracted` those that did not, `branches` each
    branch's own.
    """

    steps: list[RecognisedStep]
    retracted: list[RecognisedStep]
    branches: Mapping[str, list[RecognisedStep]]


def run_method(
    recogniser: Recogniser,
    detections: Sequence[Sequence[Detection]],
    clips: Sequence[ClipPrediction | None],
) -> MethodRun:
    """Give a recogniser every frame of a recording, as a live session would.

    Args:
        recogniser: At the start of a session.
        detections: One list per frame.
        clips: What the clip that ends at each frame shows; as many.
    """
    steps: list[RecognisedStep] = []
    retracted: list[RecognisedStep] = []
    branches: dict[str, list[RecognisedStep]] = {}
    for frame_idx, (seen, clip) in enumerate(zip(detections, clips, strict=True)):
        steps += recogniser.step(frame_idx, seen, clip)
        for gone in recogniser.retracted():
            steps.remove(gone)
            retracted.append(gone)
        for name, found in recogniser.branches().items():
            branches.setdefault(name, []).extend(found)
    return MethodRun(steps=steps, retracted=retracted, branches=branches)
