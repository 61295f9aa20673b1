"""Procedures in a data directory: which of them may be replaced by publishing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from keystep_capture.errors import StateError
from keystep_models.psr.procedure import builtin_procedure
from keystep_models.psr.procedure_document import of_procedure, write_document
from keystep_server.procedure_shelf import ProcedureShelf


def test_publishing_replaces_what_was_published(tmp_path: Path) -> None:
    shelf = ProcedureShelf(tmp_path)
    procedure = replace(builtin_procedure("industreal-assy"), name="mine", states=())
    for bundle in ("1" * 64, "2" * 64):
        shelf.put(of_procedure(replace(procedure, bundle=bundle)))
    assert shelf.get("mine").bundle == "2" * 64


@pytest.mark.parametrize("content", [None, "{"])
def test_publishing_leaves_a_document_of_somebodys_own_alone(
    tmp_path: Path, content: str | None
) -> None:
    shelf = ProcedureShelf(tmp_path)
    procedure = replace(builtin_procedure("industreal-assy"), name="mine", states=())
    path = tmp_path / "mine.json"
    write_document(of_procedure(procedure), path)
    if content is not None:
        path.write_text(content)
    before = path.read_bytes()
    with pytest.raises(StateError, match="was not published from key steps"):
        shelf.put(of_procedure(replace(procedure, bundle="1" * 64)))
    assert path.read_bytes() == before
