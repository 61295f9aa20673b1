"""The methods that recognise steps, by name: what each needs, and how a session gets one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

from keystep_capture.errors import ConfigError
from keystep_models.psr.clip_evidence import TRACKER_CLIPS, TrackerWithClips
from keystep_models.psr.clips import ClipPrediction
from keystep_models.psr.fusion import SharedFusion
from keystep_models.psr.logic import Detection, StepCompletion, StepLogic, make_logic
from keystep_models.psr.procedure import ComponentState, Procedure
from keystep_models.psr.recogniser import FrameReport, Recogniser
from keystep_models.psr.soft_voting import SoftVoting
from keystep_models.psr.temporal import WINDOW_FRAMES, TemporalLogic
from keystep_models.psr.tracker_model import TrackerModel
from keystep_models.psr.tracker_recogniser import (
    TRACKER,
    choose_model,
    fitted_model,
    make_tracker,
)

AUTO: Final = "auto"
"""In place of a method's name: what is best for the procedure; see `choose_live_method`."""

Fusion: TypeAlias = Literal["shared", "soft"]
_Session: TypeAlias = Any  # whatever has step, declare, snapshot, restore and state


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodOptions:
    """What a user may set; a method takes what it has.

    `threshold` None: the method's own. `tracker_model` None: the shipped settings where they fit.
    """

    threshold: float | None = None
    decay: float = 0.75
    fusion: Fusion = "shared"
    weight: float = 0.5
    window_frames: int = WINDOW_FRAMES
    tracker_model: TrackerModel | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to recognise steps: `make(procedure, options)` starts it.

    `options` names the fields of `MethodOptions` that it takes.
    """

    title: str
    needs_detections: bool
    needs_clips: bool
    options: frozenset[str]
    make: Callable[[Procedure, MethodOptions], Recogniser]


class _Adapter(Recogniser):
    """A logic object behind the common interface; `advance` gives it a frame."""

    def __init__(
        self,
        method: str,
        logic: _Session,
        advance: Callable[[int, Sequence[Detection], ClipPrediction | None], FrameReport],
    ) -> None:
        super().__init__(method, logic.procedure)
        self._logic = logic
        self._advance = advance

    @property
    def state(self) -> ComponentState:
        """The logic's state; the procedure's first one until it has one."""
        state: ComponentState | None = self._logic.state
        return self.procedure.initial_state if state is None else state

    @property
    def is_at_rest(self) -> bool:
        """Whether a frame without any input would change nothing; known of B1, B2 and B3."""
        return isinstance(self._logic, StepLogic) and self._logic.is_at_rest

    def step(
        self,
        frame_idx: int,
        detections: Sequence[Detection],
        clip: ClipPrediction | None = None,
    ) -> FrameReport:
        """Take the next frame; as `Recogniser.step`."""
        return self._advance(frame_idx, detections, clip)

    def declare(self, step_id: int) -> StepCompletion:
        """Take a step as done; as `Recogniser.declare`."""
        step: StepCompletion = self._logic.declare(step_id)
        return step

    def snapshot(self) -> Mapping[str, Any]:
        """The logic's snapshot."""
        snapshot: Mapping[str, Any] = self._logic.snapshot()
        return snapshot

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Restore the logic; as `Recogniser.restore`."""
        self._logic.restore(snapshot)


def _detection_method(name: str) -> Callable[[Procedure, MethodOptions], Recogniser]:
    def make(procedure: Procedure, options: MethodOptions) -> Recogniser:
        threshold = 8.0 if options.threshold is None else options.threshold
        logic = make_logic(name, procedure, threshold=threshold, decay=options.decay)
        return _Adapter(
            name,
            logic,
            lambda frame_idx, detections, _: FrameReport(steps=logic.step(frame_idx, detections)),
        )

    return make


def _make_temporal(procedure: Procedure, options: MethodOptions) -> Recogniser:
    logic = TemporalLogic(procedure, **_branch_options(options))
    return _Adapter(
        "temporal",
        logic,
        lambda frame_idx, _, clip: FrameReport(steps=logic.step(frame_idx, clip)),
    )


def _make_storm(procedure: Procedure, options: MethodOptions) -> Recogniser:
    settings = {**_branch_options(options), "weight": options.weight}
    if options.fusion == "soft":
        voting = SoftVoting(procedure, **settings)
        return _Adapter("storm", voting, lambda *frame: FrameReport(steps=voting.step(*frame)))
    fused = SharedFusion(procedure, **settings)

    def advance(
        frame_idx: int, detections: Sequence[Detection], clip: ClipPrediction | None
    ) -> FrameReport:
        frame = fused.step(frame_idx, detections, clip)
        branches = {"detector": frame.detector, "temporal": frame.temporal}
        return FrameReport(steps=frame.merged, branches=branches)

    return _Adapter("storm", fused, advance)


def _branch_options(options: MethodOptions) -> dict[str, Any]:
    return {
        "threshold": 6.0 if options.threshold is None else options.threshold,
        "decay": options.decay,
        "window_frames": options.window_frames,
    }


def _make_tracker(procedure: Procedure, options: MethodOptions) -> Recogniser:
    _refuse_threshold(options)
    return make_tracker(procedure, options.tracker_model)


def _make_tracker_with_clips(procedure: Procedure, options: MethodOptions) -> Recogniser:
    _refuse_threshold(options)
    model, note = choose_model(procedure, options.tracker_model)
    return TrackerWithClips(procedure, model, window_frames=options.window_frames, note=note)


def _refuse_threshold(options: MethodOptions) -> None:
    if options.threshold is not None:
        raise ConfigError(
            f"the tracker has no sum to exceed (threshold {options.threshold}); its thresholds are"
            " in its settings"
        )


_SUM_OPTIONS: Final = frozenset({"threshold", "decay"})

METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        **{
            name: Method(
                title=title,
                needs_detections=True,
                needs_clips=False,
                options=options,
                make=_detection_method(name),
            )
            for name, title, options in (
                ("b1", "IndustReal's naive baseline", frozenset[str]()),
                ("b2", "IndustReal's accumulated confidence", _SUM_OPTIONS),
                ("b3", "IndustReal's accumulated confidence over expected steps", _SUM_OPTIONS),
            )
        },
        "temporal": Method(
            title="STORM-PSR's spatio-temporal branch alone",
            needs_detections=False,
            needs_clips=True,
            options=_SUM_OPTIONS | {"window_frames"},
            make=_make_temporal,
        ),
        "storm": Method(
            title="STORM-PSR: both branches fused",
            needs_detections=True,
            needs_clips=True,
            options=_SUM_OPTIONS | {"window_frames", "fusion", "weight"},
            make=_make_storm,
        ),
        TRACKER: Method(
            title="Keystep's tracker: a probabilistic filter over assemblies",
            needs_detections=True,
            needs_clips=False,
            options=frozenset({"tracker_model"}),
            make=_make_tracker,
        ),
        TRACKER_CLIPS: Method(
            title="Keystep's tracker with clips as evidence beside the detections",
            needs_detections=True,
            needs_clips=True,
            options=frozenset({"tracker_model", "window_frames"}),
            make=_make_tracker_with_clips,
        ),
    }
)
"""Every method by the name that `keystep psr run --method` and sessions take."""

LIVE_METHODS: Final = tuple(name for name, method in METHODS.items() if not method.needs_clips)
"""Those that a live session of any procedure can run."""

LIVE_CLIP_METHODS: Final[Mapping[str, tuple[str, Fusion]]] = MappingProxyType(
    {
        "temporal": ("temporal", "shared"),
        "storm": ("storm", "shared"),
        "storm-soft": ("storm", "soft"),
        TRACKER_CLIPS: (TRACKER_CLIPS, "shared"),
    }
)
"""Those that live sessions can run beside where the procedure pins a storm bundle: what each is
here, and how it fuses."""


def find_method(name: str) -> Method:
    """The method with this name; ConfigError when there is none."""
    method = METHODS.get(name)
    if method is None:
        raise ConfigError(f"no method {name!r}; there are {', '.join(METHODS)}")
    return method


def check_live_method(name: str) -> None:
    """ConfigError, with the reason, unless a live session of any procedure can run this method."""
    if name in LIVE_CLIP_METHODS or find_method(name).needs_clips:
        raise ConfigError(
            f"method {name!r} needs clip predictions, which a live session has only where its"
            f" procedure pins a storm bundle; any live session can run {', '.join(LIVE_METHODS)}"
        )


KEY_STEPS: Final = "key_steps"
"""The method of procedures that pin a bundle; `guidance.bundle_recogniser` makes it."""


def choose_live_method(
    asked: str | None,
    procedure: Procedure,
    *,
    default: str = AUTO,
    clip_options: MethodOptions | None = None,
) -> tuple[str, Recogniser]:
    """The method by which a live session recognises steps from detections and clips, at its start.

    Arguments and errors as `live_method_name`; a procedure that pins a bundle has none.
    `clip_options` holds for methods of clips, as far as they take them.
    """
    name = live_method_name(asked, procedure, default=default)
    if name == KEY_STEPS:
        raise ConfigError(f"procedure {procedure.name!r} is followed by its bundle")
    if name in LIVE_CLIP_METHODS:
        return name, _make_clip_method(name, procedure, clip_options or MethodOptions())
    return name, METHODS[name].make(procedure, MethodOptions())


def _make_clip_method(name: str, procedure: Procedure, options: MethodOptions) -> Recogniser:
    base, fusion = LIVE_CLIP_METHODS[name]
    taken = {field: getattr(options, field) for field in METHODS[base].options}
    if "fusion" in taken:
        taken["fusion"] = fusion
    return METHODS[base].make(procedure, MethodOptions(**taken))


def live_method_name(asked: str | None, procedure: Procedure, *, default: str = AUTO) -> str:
    """The name of the method that a live session runs.

    A procedure that pins a bundle is followed by it; nothing else can.

    Args:
        asked: What the session asks for; None leaves it to `default`.
        procedure: What the session follows.
        default: A method, or `AUTO`: storm where the procedure pins a storm bundle and a detector,
            temporal where it pins the bundle alone; else the tracker where settings were fitted for
            the procedure (on IndustReal it beats B3, docs/tracker.md), else b3, as nothing was
            measured there.

    Raises:
        ConfigError: there is no such method, it cannot run live, or not with this procedure.
    """
    if procedure.bundle is not None:
        if asked not in (None, AUTO, KEY_STEPS):
            raise ConfigError(
                f"procedure {procedure.name!r} pins a bundle: its method is {KEY_STEPS}, not"
                f" {asked!r}; leave the method out"
            )
        return KEY_STEPS
    if asked == KEY_STEPS:
        raise ConfigError(
            f"method {KEY_STEPS!r} needs a procedure that was published from an expert's key"
            f" steps; {procedure.name!r} pins no bundle"
        )
    name = asked or default
    if name == AUTO:
        name = _best_method(procedure)
    if name in LIVE_CLIP_METHODS and procedure.storm is not None:
        _check_clip_method(name, procedure)
        return name
    check_live_method(name)
    METHODS[name].make(procedure, MethodOptions())
    return name


def _best_method(procedure: Procedure) -> str:
    if procedure.storm is not None:
        return "temporal" if procedure.detector is None else "storm"
    return "b3" if fitted_model(procedure) is None else TRACKER


def _check_clip_method(name: str, procedure: Procedure) -> None:
    if procedure.detector is None and METHODS[LIVE_CLIP_METHODS[name][0]].needs_detections:
        raise ConfigError(
            f"method {name!r} looks at detections too, and procedure {procedure.name!r} pins no"
            " detector; pin one (`keystep procedure convert --detector`) or take temporal"
        )
    _make_clip_method(name, procedure, MethodOptions())
