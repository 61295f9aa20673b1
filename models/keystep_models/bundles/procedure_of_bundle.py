"""The procedure of a bundle: titles and pictures for its steps, and the bundle pinned by its id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from keystep_capture.errors import DataError
from keystep_models.bundles.bundle import Bundle
from keystep_models.psr.procedure import ProcedureStep
from keystep_models.psr.procedure_document import ProcedureDocument, find_problems, of_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewedStep:
    """What a person says of one step.

    Attributes:
        title: What the wearer reads.
        picture: File that shows it, relative to the procedure's; None without one.
        optional: Whether it may be left out.
        requires: Ids of steps that must come before it; the expert's order alone forces nothing.
    """

    title: str
    picture: str | None = None
    optional: bool = False
    requires: Sequence[int] = ()


def procedure_of_bundle(
    bundle: Bundle, reviewed: Mapping[int, ReviewedStep], *, name: str, task: str
) -> ProcedureDocument:
    """The document of a bundle's steps in the expert's order, a component each.

    Args:
        bundle: Whose steps.
        reviewed: What a person says of each step, by id.
        name: Of the procedure.
        task: Variant of the work.

    Raises:
        DataError: Steps and titles do not belong together, or the procedure has a problem.
    """
    timing = bundle.timing
    if set(reviewed) != set(timing.step_ids):
        raise DataError(
            f"expected titles of the steps {sorted(timing.step_ids)}, got {sorted(reviewed)}"
        )
    steps = [
        ProcedureStep(
            id=step_id,
            title=reviewed[step_id].title,
            component_idx=place,
            kind="completed",
            expected=True,
            optional=reviewed[step_id].optional,
            repeatable=repeatable,
            requires=tuple(reviewed[step_id].requires),
            picture=reviewed[step_id].picture,
        )
        for place, (step_id, repeatable) in enumerate(
            zip(timing.step_ids, timing.repeatable, strict=True)
        )
    ]
    document = of_steps(
        steps, name=name, task=task, initial_state=(0,) * len(steps), bundle=bundle.id
    )
    if problems := find_problems(document):
        raise DataError(f"procedure {name!r}: {problems[0]}")
    return document
