"""What the tracker assumes: a handful of numbers, most of them per frame at 10 Hz.

`docs/tracker.md` derives them; `keystep_models.psr.fit_tracker` fits those that data can tell
(`order_counts`, `confusions`), and the others as far as it is asked to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import msgspec

from keystep_capture.errors import ConfigError, DataError, NotFoundError

SCHEMA_VERSION: Final = 1

_BUILTIN: Final[Mapping[str, str]] = MappingProxyType({"industreal": "tracker_industreal.json"})


@dataclass(frozen=True, kw_only=True)
class TrackerModel:
    """Rates and probabilities of the tracker; ConfigError when one is out of range.

    How the work goes on, per frame:
        step_rate: Changes of the assembly; 0.005 is one in 20 s at 10 frames per second.
        mistake_rate: Chance that changing one component goes wrong; also the weight of
            installing one that the procedure does not expect, against an expected one.
        repair_rate: Share of expected steps after a mistake that come once it is put right.
        repair_in_place_rate: Repairs without a step, relative to repairs with one.
        unexpected_rate: Weight of a removal that the procedure does not expect.
        unexpected_right_rate: How often what looks like an unexpected step is one.
        joint_rate: Weight of every further component that changes at once.
        out_of_order_rate: Weight of a step before one that it requires.
        order_counts: How often step `before` came before step `after` in the recordings fitted
            on, as (before, after, count).

    What the detector shows, per frame:
        appear_rate, vanish_rate: Views beginning and ending.
        change_rate: Displayed classes being drawn anew inside a view.
        glitch_rate, glitch_rate_wrong: Chance that a view shows another class than the state's,
            for a right assembly and for one with a mistake.
        error_share, error_share_wrong: Share of the error state among those other classes.
        confusions: Views of a class while another one's state was there, in the recordings
            fitted on, as (class of the state, class shown, count).
        nearness: Fall of a wrong class's weight per component it differs in.
        miss_rate: Frames of a view without a detection.
        stray_rate: Frames outside a view with one.
        floor_rate: Likelihood of anything the view does not show.
        confidence_slope, confidence_neutral: A detection of confidence x speaks for a wrong class
            by slope * (neutral - x), in nats.
        poor_view_rate: Views of right assemblies that look like a wrong one's.
        visible_share: Mistakes that can be seen in a view at all.
        view_frames: Frames after which a view has nothing new to tell.
        forget_frames: Frames after which a view counts as another one.

    What is reported:
        report_threshold: Probability a step must exceed ...
        hold_frames: ... for more than so many frames with detections.
        incorrect_threshold: Probability of a mistake in one component to report it.
        blind_frames: Frames without a view after which the tracker says that it cannot see.
    """

    step_rate: float = 0.006
    mistake_rate: float = 0.04
    repair_rate: float = 0.4
    repair_in_place_rate: float = 0.01
    unexpected_rate: float = 0.002
    unexpected_right_rate: float = 0.5
    joint_rate: float = 0.7
    out_of_order_rate: float = 0.1
    order_counts: tuple[tuple[int, int, int], ...] = ()
    appear_rate: float = 0.02
    vanish_rate: float = 0.05
    change_rate: float = 0.18
    glitch_rate: float = 0.08
    glitch_rate_wrong: float = 0.62
    error_share: float = 0.07
    error_share_wrong: float = 0.3
    confusions: tuple[tuple[int, int, int], ...] = ()
    nearness: float = 0.8
    miss_rate: float = 0.12
    stray_rate: float = 0.01
    floor_rate: float = 0.003
    confidence_slope: float = 2.5
    confidence_neutral: float = 0.65
    poor_view_rate: float = 0.0003
    visible_share: float = 0.87
    view_frames: float = 33.0
    forget_frames: float = 60.0
    report_threshold: float = 0.74
    hold_frames: int = 4
    incorrect_threshold: float = 0.95
    blind_frames: int = 30

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _COUNTS:
                _check_counts(field.name, value)

            elif not _in_range(field.name, value):
                raise ConfigError(f"{field.name}: expected {_range_of(field.name)}, got {value!r}")

    @cached_property
    def count_before(self) -> Mapping[tuple[int, int], int]:
        """`order_counts` by (before, after)."""
        return MappingProxyType({(a, b): count for a, b, count in self.order_counts})


_COUNTS: Final = frozenset({"order_counts", "confusions"})
_UNBOUNDED: Final = frozenset(
    {
        "nearness",
        "confidence_slope",
        "confidence_limit",
        "view_frames",
        "forget_frames",
        "hold_frames",
        "blind_frames",
    }
)
_BELOW_ONE: Final = frozenset({"report_threshold", "incorrect_threshold"})


def _check_counts(name: str, entries: tuple[tuple[int, int, int], ...]) -> None:
    for entry in entries:
        if len(entry) != 3 or any(type(n) is not int for n in entry) or entry[2] < 0:
            raise ConfigError(f"{name}: expected (id, id, count) as whole numbers, got {entry!r}")


def _in_range(name: str, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if name in ("hold_frames", "blind_frames"):
        return isinstance(value, int) and value >= 0
    if name in _UNBOUNDED:
        return 0 < value < float("inf")
    if name in _BELOW_ONE:
        return 0.5 <= value < 1  # two hypotheses can then never both be reported
    return 0 < value < 1


def _range_of(name: str) -> str:
    if name in ("hold_frames", "blind_frames"):
        return "a whole number from 0"
    if name in _UNBOUNDED:
        return "a number above 0"
    return "from 0.5 to below 1" if name in _BELOW_ONE else "a number between 0 and 1"


class _ModelFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    keystep_tracker: int
    source: str = ""
    settings: dict[str, int | float]
    order_counts: list[tuple[int, int, int]] = []
    confusions: list[tuple[int, int, int]] = []


def load_tracker_model(path: str | Path) -> TrackerModel:
    """Read a model that `save_tracker_model` wrote; DataError naming the file otherwise."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the tracker model {path}: {error}") from error
    return _parse(content, str(path))


def save_tracker_model(model: TrackerModel, path: str | Path, *, source: str = "") -> None:
    """Write a model as JSON; `source` says what it was fitted on."""
    settings = {f.name: getattr(model, f.name) for f in fields(model) if f.name not in _COUNTS}
    file = _ModelFile(
        keystep_tracker=SCHEMA_VERSION,
        source=source,
        settings=settings,
        order_counts=list(model.order_counts),
        confusions=list(model.confusions),
    )
    text = msgspec.json.format(msgspec.json.encode(file), indent=1).decode()
    Path(path).write_text(text + "\n", encoding="utf-8")


def builtin_tracker_model(name: str) -> TrackerModel:
    """A fitted model that comes with Keystep ("industreal"); NotFoundError for another name."""
    file = _BUILTIN.get(name)
    if file is None:
        raise NotFoundError(f"no built-in tracker model {name!r}; there are {', '.join(_BUILTIN)}")
    return _parse((resources.files(__package__) / "data" / file).read_bytes(), file)


def model_values(model: TrackerModel) -> dict[str, Any]:
    """Every number of a model, as JSON holds it; two models are the same where these are."""
    values = {field.name: getattr(model, field.name) for field in fields(model)}
    return values | {name: [list(entry) for entry in values[name]] for name in sorted(_COUNTS)}


def _parse(content: bytes, source: str) -> TrackerModel:
    try:
        file = msgspec.json.decode(content, type=_ModelFile)
        if file.keystep_tracker != SCHEMA_VERSION:
            raise DataError(
                f"{source}: expected keystep_tracker {SCHEMA_VERSION}, got {file.keystep_tracker}"
            )
        counts = {"order_counts": file.order_counts, "confusions": file.confusions}
        tables = {name: tuple(entries) for name, entries in counts.items()}
        return TrackerModel(**file.settings, **tables)  # type: ignore[arg-type]
    except (msgspec.DecodeError, TypeError, ConfigError) as error:
        raise DataError(f"{source}: expected a tracker model ({error})") from error
