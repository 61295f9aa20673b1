"""A detector's classes as a procedure's: by what they stand for, never by their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from keystep_capture.errors import ConfigError
from keystep_models.detector.spec import DetectorSpec
from keystep_models.psr.logic import Detection
from keystep_models.psr.procedure import ComponentState, Procedure

BACKGROUND_ID: Final = 0
"""The class that stands for nothing to be seen, in procedures as in IndustReal's detector."""

BACKGROUND_NAMES: Final = ("background", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMap:
    """Which of a procedure's classes each of a detector's is.

    Attributes:
        procedure_ids: By the detector's class id.
    """

    procedure_ids: tuple[int, ...]

    @classmethod
    def of(cls, spec: DetectorSpec, procedure: Procedure) -> ClassMap:
        """Match a detector's classes with those of a procedure.

        A class with a state is the procedure's class with that very state. One without is the
        procedure's background (class 0, no state) where it is called background, else its error
        state: the last class without a state that is not class 0.

        Raises:
            ConfigError: A class has no match; says which and what to do.
        """
        if not procedure.states:
            raise ConfigError(
                f"procedure {procedure.name!r} does not say what detector classes stand for; give "
                "it `detector_states`, or use `adopt_classes`"
            )
        _check_components(spec, procedure)
        ids_by_state: dict[ComponentState, int] = {}
        for known_id, state in enumerate(procedure.states):
            if state is not None:
                ids_by_state.setdefault(state, known_id)
        stateless = [c for c, state in enumerate(procedure.states) if state is None]
        found: list[int] = []
        class_id: int | None
        for name, state in zip(spec.class_names, spec.states, strict=True):
            if state is not None:
                class_id = ids_by_state.get(state)
            elif name.lower() in BACKGROUND_NAMES:
                class_id = BACKGROUND_ID if BACKGROUND_ID in stateless else None
            else:
                class_id = next((c for c in reversed(stateless) if c != BACKGROUND_ID), None)
            if class_id is None:
                raise _no_match(spec, procedure, name, state)
            found.append(class_id)
        return cls(procedure_ids=tuple(found))

    def apply(self, detections: Sequence[Detection]) -> list[Detection]:
        """Detections with the procedure's class ids, in their order."""
        return [
            Detection(self.procedure_ids[each.class_id], each.confidence, each.box)
            for each in detections
        ]


def adopt_classes(spec: DetectorSpec, procedure: Procedure) -> Procedure:
    """A procedure that says nothing of detector classes, with those of a detector.

    Raises:
        ConfigError: It has classes of its own, or another number of components.
    """
    if procedure.states:
        raise ConfigError(
            f"procedure {procedure.name!r} says itself what detector classes stand for; match "
            "them with `ClassMap.of`"
        )
    _check_components(spec, procedure)
    return replace(procedure, states=spec.states)


def _check_components(spec: DetectorSpec, procedure: Procedure) -> None:
    counts = {len(state) for state in spec.states if state is not None}
    if not counts:
        raise ConfigError(
            f"detector {spec.name} does not say what its classes stand for: call them by their "
            'states ("1100...") or give `states` in its manifest, one text or null for each class'
        )
    if counts != {procedure.component_count}:
        raise ConfigError(
            f"detector {spec.name} knows states of {counts.pop()} components, procedure "
            f"{procedure.name!r} has {procedure.component_count}: they are of different tasks"
        )


def _no_match(
    spec: DetectorSpec, procedure: Procedure, name: str, state: ComponentState | None
) -> ConfigError:
    if state is not None:
        digits = "".join(map(str, state))
        wanted = f"the state {digits}, which its `detector_states` lack"
    elif name.lower() in BACKGROUND_NAMES:
        wanted = "no state for class 0 (null in its `detector_states`), the background"
    else:
        wanted = "a class other than 0 without a state (null in its `detector_states`)"
    return ConfigError(
        f"detector {spec.name} has the class {name!r}; for it procedure {procedure.name!r} needs "
        f"{wanted}; add it there, or take a detector that was made for this procedure"
    )
