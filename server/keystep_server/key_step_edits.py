"""What a person does to key steps: rename, confirm, merge, split, reorder, drop, add.

Pure functions from key steps to key steps. Ids are stable: what is renamed, confirmed, moved or
split keeps its id (the earlier half does), what is merged has the id of the first. No time is lost
but by dropping: parts of a split meet at the cut, a merged key step spans all it was made of.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias
from uuid import UUID, uuid5

from keystep_capture.errors import DataError
from keystep_server.storage import EpochSpan, KeyStep, KeyStepSource, KeyStepStatus

MAX_TITLE_CHARS = 200
_NAMESPACE = UUID("0d5f2a3c-52a4-5b0f-8f3c-6f6b1a5d9e77")
_NS = 1_000_000_000

Steps: TypeAlias = list[KeyStep]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rename:
    """Give a key step another title."""

    id: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirm:
    """Say that a person has looked at a key step and found it right."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """Make one of two or more that follow each other; the first gives its id and title.

    The exemplar is that of the one with the highest confidence.
    """

    ids: tuple[str, ...]
    title: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Cut a key step in two; the earlier half keeps the id, the later one gets `title`."""

    id: str
    at_s: float
    title: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reorder:
    """Put all key steps into another order; their times stay."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Leave a key step out."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Add:
    """A key step where there is none; `exemplar_s` None: its middle."""

    title: str
    start_s: float
    end_s: float
    exemplar_s: float | None = None


Edit: TypeAlias = Rename | Confirm | Merge | Split | Reorder | Drop | Add


@dataclass(frozen=True, slots=True, kw_only=True)
class EditContext:
    """What edits need to know beside the key steps.

    Attributes:
        session_id: Whose key steps they are.
        seed: New ids are made from this; different for every revision.
        timeline: The recording's epochs; additions must lie in one of them.
    """

    session_id: str
    seed: str
    timeline: Sequence[EpochSpan] = ()


def apply_edits(
    key_steps: Sequence[KeyStep], edits: Sequence[Edit], context: EditContext
) -> tuple[KeyStep, ...]:
    """The key steps after edits, one upon the other; all or none.

    A key step whose exemplar is new has an exemplar time and no picture yet.

    Raises:
        DataError: An edit does not fit; the message begins with its place.
    """
    steps = list(key_steps)
    for number, edit in enumerate(edits):
        try:
            steps = _apply(steps, edit, replace(context, seed=f"{context.seed}/{number}"))
        except DataError as error:
            raise DataError(f"operations[{number}]: {error}") from None
    return tuple(replace(step, position=position) for position, step in enumerate(steps))


def _apply(steps: Steps, edit: Edit, context: EditContext) -> Steps:
    match edit:
        case Rename():
            return _changed(steps, edit.id, title=_checked_title(edit.title))
        case Confirm():
            return _changed(steps, edit.id, status=KeyStepStatus.CONFIRMED)
        case Drop():
            place = _place(steps, edit.id)
            return [*steps[:place], *steps[place + 1 :]]
        case Reorder():
            return _reordered(steps, edit)
        case Merge():
            return _merged(steps, edit)
        case Split():
            return _split(steps, edit, context)
        case Add():
            return _added(steps, edit, context)


def _place(steps: Steps, key_step_id: str) -> int:
    for place, step in enumerate(steps):
        if step.id == key_step_id:
            return place
    raise DataError(f"there is no key step {key_step_id[:40]!r}")


def _changed(steps: Steps, key_step_id: str, **changes: object) -> Steps:
    place = _place(steps, key_step_id)
    changed = replace(steps[place], **changes)  # type: ignore[arg-type]
    return [*steps[:place], changed, *steps[place + 1 :]]


def _reordered(steps: Steps, edit: Reorder) -> Steps:
    by_id = {step.id: step for step in steps}
    if sorted(edit.ids) != sorted(by_id):
        raise DataError(f"expected all {len(steps)} key steps, each once; got {len(edit.ids)} ids")
    return [by_id[key_step_id] for key_step_id in edit.ids]


def _merged(steps: Steps, edit: Merge) -> Steps:
    places = sorted(_place(steps, key_step_id) for key_step_id in edit.ids)
    if len(places) < 2 or any(b - a != 1 for a, b in itertools.pairwise(places)):
        raise DataError("expected two or more key steps that follow each other, each once")
    parts = [steps[place] for place in places]
    if len({part.epoch for part in parts}) > 1:
        raise DataError("the device restarted between these key steps; they cannot be one")
    first, last = min(parts, key=_start), max(parts, key=_end)
    _refuse_swallowing(parts, [step for step in steps if step not in parts])
    # The first of equals wins; what a person added has no confidence and comes last.
    best = max(parts, key=lambda part: -1.0 if part.confidence is None else part.confidence)
    confirmed = all(part.status is KeyStepStatus.CONFIRMED for part in parts)
    whole = replace(
        parts[0],
        title=parts[0].title if edit.title is None else _checked_title(edit.title),
        status=KeyStepStatus.CONFIRMED if confirmed else KeyStepStatus.PROPOSED,
        start_s=first.start_s,
        start_device_time_ns=first.start_device_time_ns,
        end_s=last.end_s,
        end_device_time_ns=last.end_device_time_ns,
        exemplar_s=best.exemplar_s,
        exemplar_device_time_ns=best.exemplar_device_time_ns,
        exemplar_path=best.exemplar_path,
        exemplar_size=best.exemplar_size,
        confidence=best.confidence,
        provenance={**best.provenance, "merged_from": [part.id for part in parts]},
    )
    return [*steps[: places[0]], whole, *steps[places[-1] + 1 :]]


def _refuse_swallowing(parts: Steps, others: Steps) -> None:
    """A merged key step would cover one that lies in between: after a reordering, say."""
    start_s, end_s = min(map(_start, parts)), max(map(_end, parts))
    for other in others:
        moment_s = _exemplar(other)
        inside = start_s < moment_s < end_s
        if inside and not any(_start(part) <= moment_s <= _end(part) for part in parts):
            raise DataError(
                f"key step {other.id} ({other.title[:40]!r}) lies between them in time; "
                "merge it too, or drop it"
            )


def _split(steps: Steps, edit: Split, context: EditContext) -> Steps:
    place = _place(steps, edit.id)
    step = steps[place]
    start_s, end_s, at_s = _start(step), _end(step), edit.at_s
    if not start_s < at_s < end_s:
        raise DataError(f"at_s is {at_s}, expected between {start_s:g} and {end_s:g} s")
    at_ns = _device_time(step, at_s)
    earlier = replace(step, end_s=at_s, end_device_time_ns=at_ns)
    later = replace(
        step,
        id=_new_id(context),
        title=_later_title(step) if edit.title is None else _checked_title(edit.title),
        start_s=at_s,
        start_device_time_ns=at_ns,
        provenance={**step.provenance, "split_from": step.id},
    )
    if _exemplar(step) <= at_s:
        later = _with_exemplar(later, (at_s + end_s) / 2)
    else:
        earlier = _with_exemplar(earlier, (start_s + at_s) / 2)
    return [*steps[:place], earlier, later, *steps[place + 1 :]]


def _added(steps: Steps, edit: Add, context: EditContext) -> Steps:
    span = next(
        (one for one in context.timeline if one.start_s <= edit.start_s <= edit.end_s <= one.end_s),
        None,
    )
    if not edit.start_s < edit.end_s or span is None:
        known = ", ".join(f"{one.start_s:g} to {one.end_s:g} s" for one in context.timeline)
        raise DataError(
            f"start_s {edit.start_s} and end_s {edit.end_s}: expected a stretch of the recording "
            f"({known or 'it is not known where that lies: extract the key steps again'})"
        )
    for other in steps:
        if _start(other) < edit.end_s and edit.start_s < _end(other):
            raise DataError(
                f"it overlaps with key step {other.id} ({_start(other):g} to {_end(other):g} s); "
                "split that one instead"
            )
    exemplar_s = edit.exemplar_s
    if exemplar_s is not None and not edit.start_s <= exemplar_s <= edit.end_s:
        raise DataError(f"exemplar_s is {exemplar_s}, expected from start_s to end_s")
    origin_ns = span.device_time_ns - round(span.start_s * _NS)
    new = KeyStep(
        id=_new_id(context),
        session_id=context.session_id,
        position=0,
        title=_checked_title(edit.title),
        status=KeyStepStatus.CONFIRMED,
        source=KeyStepSource.EXTRACTED,
        epoch=span.epoch,
        start_s=edit.start_s,
        end_s=edit.end_s,
        start_device_time_ns=origin_ns + round(edit.start_s * _NS),
        end_device_time_ns=origin_ns + round(edit.end_s * _NS),
        provenance={"method": "person"},
    )
    middle_s = (edit.start_s + edit.end_s) / 2
    new = _with_exemplar(new, middle_s if exemplar_s is None else exemplar_s)
    place = next((n for n, one in enumerate(steps) if _start(one) >= edit.end_s), len(steps))
    return [*steps[:place], new, *steps[place:]]


def _with_exemplar(step: KeyStep, exemplar_s: float) -> KeyStep:
    """The key step with an exemplar that has no picture yet; its confidence was another's."""
    return replace(
        step,
        exemplar_s=exemplar_s,
        exemplar_device_time_ns=_device_time(step, exemplar_s),
        exemplar_path=None,
        exemplar_size=None,
        confidence=None,
    )


def _device_time(step: KeyStep, time_s: float) -> int | None:
    """Device time of a moment of the key step, within its first and last."""
    first_ns, last_ns = step.start_device_time_ns, step.end_device_time_ns
    if first_ns is None or last_ns is None:
        return None
    return min(max(first_ns, first_ns + round((time_s - _start(step)) * _NS)), last_ns)


def _start(step: KeyStep) -> float:
    return _known(step, step.start_s)


def _end(step: KeyStep) -> float:
    return _known(step, step.end_s)


def _exemplar(step: KeyStep) -> float:
    return _known(step, step.exemplar_s)


def _known(step: KeyStep, time_s: float | None) -> float:
    if time_s is None or not math.isfinite(time_s):
        raise DataError(f"key step {step.id} has no times")
    return time_s


def _checked_title(title: str) -> str:
    if not (0 < len(title) <= MAX_TITLE_CHARS and title.isprintable()):
        raise DataError(f"title: expected 1 to {MAX_TITLE_CHARS} printable characters")
    return title


def _later_title(step: KeyStep) -> str:
    return f"{step.title[: MAX_TITLE_CHARS - 4]} (2)"


def _new_id(context: EditContext) -> str:
    return f"kst_{uuid5(_NAMESPACE, f'{context.session_id}/{context.seed}').hex}"
