"""The procedures that sessions can be guided through: built in, or published into a folder."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import structlog

from keystep_capture.errors import DataError, KeystepError, NotFoundError, StateError
from keystep_models.psr.procedure import BUILTIN_PROCEDURES, Procedure, builtin_procedure
from keystep_models.psr.procedure_document import (
    ProcedureDocument,
    read_document,
    to_procedure,
    write_document,
)

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
_NAME = re.compile(NAME_PATTERN[1:-1])

log = structlog.get_logger(__name__)


class ProcedureShelf:
    """`NAME.json` in a folder, and `NAME/STEP.jpg` beside it; blocks, from any thread."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; it need not be there."""
        self.folder = folder

    def get(self, name: str) -> Procedure:
        """A procedure by its name.

        Raises:
            NotFoundError: There is none.
            DataError: Its file is not as documented.
        """
        if name in BUILTIN_PROCEDURES:
            return builtin_procedure(name)
        path = self.folder / f"{name}.json"
        if not _NAME.fullmatch(name) or not path.is_file():
            raise NotFoundError(
                f"there is no procedure {name[:100]!r}; there are {', '.join(self.names()[:20])}"
            )
        procedure = to_procedure(read_document(path))
        if procedure.name != name:
            raise DataError(f"{path}: is of procedure {procedure.name!r}; name the file so")
        return procedure

    def names(self) -> list[str]:
        """The built-in ones, then the published ones by name."""
        found = sorted(self.folder.glob("*.json")) if self.folder.is_dir() else []
        return [*BUILTIN_PROCEDURES, *(path.stem for path in found if _NAME.fullmatch(path.stem))]

    def all(self) -> list[Procedure]:
        """Every procedure that can be read; others are said in the log."""
        found = []
        for name in self.names():
            try:
                found.append(self.get(name))
            except KeystepError as error:
                log.warning("a procedure is left out", procedure=name, error=str(error))
        return found

    def pinning(self) -> dict[str, list[str]]:
        """Bundles' ids to the procedures that pin them."""
        found: dict[str, list[str]] = {}
        for procedure in self.all():
            if procedure.bundle is not None:
                found.setdefault(procedure.bundle, []).append(procedure.name)
        return found

    def check_name(self, name: str) -> None:
        """Whether a procedure may be published by this name.

        Raises:
            DataError: It cannot be a file's, or is a built-in procedure's.
            StateError: A document has it that was not published from key steps: somebody's own.
        """
        if not _NAME.fullmatch(name) or name in BUILTIN_PROCEDURES:
            raise DataError(
                f"{name[:100]!r} cannot be a procedure's name: expected letters, digits, . _ and"
                " -, and none of the built-in ones"
            )
        if (self.folder / f"{name}.json").exists() and not self._was_published(name):
            raise StateError(
                f"procedure {name!r} was not published from key steps; choose another name, or"
                f" move procedures/{name}.json of the data directory away"
            )

    def _was_published(self, name: str) -> bool:
        try:
            return self.get(name).bundle is not None
        except KeystepError:  # it may be somebody's own all the more
            return False

    def put(self, document: ProcedureDocument) -> Procedure:
        """Write a procedure, in place of one of the same name; sessions keep the one they have.

        Raises:
            DataError: As `check_name`; or it has a problem.
            StateError: As `check_name`.
            OSError: The disk does not take it.
        """
        self.check_name(document.name)
        procedure = to_procedure(document)
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_document(document, self.folder / f"{document.name}.json")
        return procedure


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcedureStep:
    """A step of a procedure, as REST lists it."""

    step_id: int
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcedureSummary:
    """A procedure as REST lists it."""

    name: str
    title: str
    steps: tuple[ProcedureStep, ...]


def summary_of(procedure: Procedure) -> ProcedureSummary:
    """What REST lists of a procedure."""
    return ProcedureSummary(
        name=procedure.name,
        title=f"{procedure.name} ({procedure.task})",
        steps=tuple(
            ProcedureStep(step_id=step.id, title=step.title) for step in procedure.expected_steps
        ),
    )


def replace_document(document: ProcedureDocument, path: Path) -> None:
    """Write a document atomically."""
    draft = path.with_name(f".{path.name}-{uuid4().hex}")
    try:
        write_document(document, draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
