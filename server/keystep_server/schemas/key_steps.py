"""Key steps."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from keystep_server import key_step_edits as edits
from keystep_server.key_step_edits import MAX_TITLE_CHARS
from keystep_server.schemas.common import (
    API,
    EXAMPLE_AT,
    EXAMPLE_SESSION_ID,
    Nanoseconds,
    config_of,
)
from keystep_server.storage import (
    MAX_KEY_STEPS,
    KeyStep,
    KeyStepSource,
    KeyStepStatus,
    RevisionOrigin,
)

KEY_STEP_ID_PATTERN = r"^kst_[0-9a-f]{32}$"

_KEY_STEP_ID = "kst_8a3d1c0e5b7f42d69e10a4c2b6d8f013"
_OTHER_ID = "kst_0b7c2f4e9d1a5386b2e4d6f8a0c1b3d5"
_KEY_STEP = {
    "id": _KEY_STEP_ID,
    "position": 0,
    "title": "Fit the front wheel",
    "start_s": 12.3,
    "end_s": 20.1,
    "exemplar_s": 18.4,
    "epoch": 1,
    "start_device_time_ns": "81234567890123",
    "end_device_time_ns": "81242367890123",
    "exemplar_device_time_ns": "81240667890123",
    "confidence": 0.81,
    "status": "proposed",
    "source": "extracted",
    "step_id": None,
    "exemplar": {
        "url": f"{API}/sessions/{EXAMPLE_SESSION_ID}/key-steps/{_KEY_STEP_ID}/image",
        "width": 1280,
        "height": 720,
    },
    "clip_url": f"{API}/sessions/{EXAMPLE_SESSION_ID}/key-steps/{_KEY_STEP_ID}/clip",
    "provenance": {"method": "steps", "cluster": 2},
}
_REVISION = {
    "number": 2,
    "created_at": EXAMPLE_AT,
    "origin": "edit",
    "parent": 1,
    "job_id": None,
    "changes": [{"op": "rename", "id": _KEY_STEP_ID, "title": "Fit the front wheel"}],
}
_REVISION_DETAIL = {
    **_REVISION,
    "provenance": {"method": "steps", "model_sha256": "5c7f...", "extraction": {"seed": 0}},
    "timeline": [{"epoch": 1, "start_s": 0.0, "end_s": 240.1, "device_time_ns": "81222267890123"}],
}
_OPERATIONS = [
    {"op": "rename", "id": _KEY_STEP_ID, "title": "Fit the front wheel"},
    {"op": "split", "id": _KEY_STEP_ID, "at_s": 15.5},
]


class ExemplarOut(BaseModel):
    """The picture that stands for a key step."""

    model_config = config_of(_KEY_STEP["exemplar"])  # type: ignore[arg-type]

    url: str = Field(description="JPEG; `?width=320` for a smaller one")
    width: int
    height: int


class KeyStepOut(BaseModel):
    """A segment of a session with its exemplar frame; null where nothing was seen yet.

    `*_s` are seconds since the session's first packet.
    """

    model_config = config_of(_KEY_STEP)

    id: str
    position: int
    title: str
    start_s: float | None
    end_s: float | None
    exemplar_s: float | None
    epoch: int | None = Field(description="whose device times these are; null: not known")
    start_device_time_ns: Nanoseconds | None
    end_device_time_ns: Nanoseconds | None
    exemplar_device_time_ns: Nanoseconds | None
    confidence: float | None
    status: KeyStepStatus
    source: KeyStepSource = Field(
        description="extracted: from an expert's recording; procedure: a guided session's progress"
    )
    step_id: int | None = Field(description="the procedure's step; null for extracted key steps")
    exemplar: ExemplarOut | None
    clip_url: str | None = Field(
        description="MP4, from the key frame before its start on; null where it has no times. "
        "Takes ranges"
    )
    provenance: dict[str, Any] = Field(
        description="how it was found; what all have in common is the revision's"
    )

    @classmethod
    def of(cls, key_step: KeyStep, revision: int | None = None) -> KeyStepOut:
        """The key step as REST gives it; `revision`: of this one, not of the newest."""
        names = cls.model_fields.keys() - {"exemplar", "clip_url"}
        values = {name: getattr(key_step, name) for name in names}
        url = f"{API}/sessions/{key_step.session_id}/key-steps/{key_step.id}"
        query = "" if revision is None else f"?revision={revision}"
        exemplar = clip_url = None
        if key_step.exemplar_size is not None:
            width, height = key_step.exemplar_size
            exemplar = ExemplarOut(url=f"{url}/image{query}", width=width, height=height)
        if None not in (
            key_step.epoch,
            key_step.start_device_time_ns,
            key_step.end_device_time_ns,
        ):
            clip_url = f"{url}/clip{query}"
        return cls(**values, exemplar=exemplar, clip_url=clip_url)


class RevisionOut(BaseModel):
    """One state of a session's extracted key steps; it never changes."""

    model_config = config_of(_REVISION)

    number: int = Field(description="counts from 1 within the session")
    created_at: datetime
    origin: RevisionOrigin = Field(
        description="closing: of the session; extraction: a job; edit: a PATCH"
    )
    parent: int | None = Field(description="the revision before; null: this is the first")
    job_id: str | None = Field(description="of an extraction")
    changes: list[dict[str, Any]] = Field(description="of an edit: its operations")


class EpochSpanOut(BaseModel):
    """Where an epoch lies on the key steps' time."""

    model_config = config_of(_REVISION_DETAIL["timeline"][0])  # type: ignore[index]

    epoch: int
    start_s: float
    end_s: float
    device_time_ns: Nanoseconds = Field(description="of its start")


class RevisionDetailOut(RevisionOut):
    """A revision with what its key steps have in common."""

    model_config = config_of(_REVISION_DETAIL)

    provenance: dict[str, Any] = Field(
        description="how they were found: method, models with hashes, settings, seed; an edit "
        "keeps that of the revision before"
    )
    timeline: list[EpochSpanOut]


class RevisionList(BaseModel):
    """All revisions of a session's extracted key steps, oldest first."""

    model_config = config_of({"revisions": [_REVISION]})

    revisions: list[RevisionOut]


class KeyStepList(BaseModel):
    """All key steps of a session, in order."""

    model_config = config_of({"key_steps": [_KEY_STEP], "revision": _REVISION_DETAIL})

    key_steps: list[KeyStepOut]
    revision: RevisionDetailOut | None = Field(
        description="of the extracted ones; null where there are none"
    )


KeyStepId = Annotated[str, Field(pattern=KEY_STEP_ID_PATTERN)]
Title = Annotated[str, Field(min_length=1, max_length=MAX_TITLE_CHARS)]
Seconds = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]


class RenameIn(BaseModel):
    """Another title."""

    model_config = config_of({"op": "rename", "id": _KEY_STEP_ID, "title": "Fit the front wheel"})

    op: Literal["rename"]
    id: KeyStepId
    title: Title

    def edit(self) -> edits.Edit:
        """The edit."""
        return edits.Rename(id=self.id, title=self.title)


class ConfirmIn(BaseModel):
    """A person has looked at it and found it right."""

    model_config = config_of({"op": "confirm", "id": _KEY_STEP_ID})

    op: Literal["confirm"]
    id: KeyStepId

    def edit(self) -> edits.Edit:
        """The edit."""
        return edits.Confirm(id=self.id)


class MergeIn(BaseModel):
    """One of two or more that follow each other; the first gives its id, and its title."""

    model_config = config_of({"op": "merge", "ids": [_KEY_STEP_ID, _OTHER_ID]})

    op: Literal["merge"]
    ids: Annotated[list[KeyStepId], Field(min_length=2, max_length=MAX_KEY_STEPS)]
    title: Title | None = None

    def edit(self) -> edits.Edit:
        """The edit."""
        return edits.Merge(ids=tuple(self.ids), title=self.title)


class SplitIn(BaseModel):
    """Two of one; the earlier half keeps the id, the later one gets the title."""

    model_config = config_of({"op": "split", "id": _KEY_STEP_ID, "at_s": 15.5})

    op: Literal["split"]
    id: KeyStepId
    at_s: Seconds
    title: Title | None = None

    def edit(self) -> edits.Edit:
        """The edit."""
        return edits.Split(id=self.id, at_s=self.at_s, title=self.title)


class ReorderIn(BaseModel):
    """Another order; all ids, each once."""

    model_config = config_of({"op": "reorder", "ids": [_OTHER_ID, _KEY_STEP_ID]})

    op: Literal["reorder"]
    ids: Annotated[list[KeyStepId], Field(max_length=MAX_KEY_STEPS)]

    def edit(self) -> edits.Edit:
        """The edit."""
        return edits.Reorder(ids=tuple(self.ids))


class DropIn(BaseModel):
    """Leave it out."""

    model_config = config_of({"op": "drop", "id": _KEY_STEP_ID})

    op: Literal["drop"]
    id: KeyStepId

    def edit(self) -> edits.Edit:
        """The edit."""
        return edits.Drop(id=self.id)


class AddIn(BaseModel):
    """A key step where there is none."""

    model_config = config_of({"op": "add", "title": "Check it", "start_s": 24.0, "end_s": 27.5})

    op: Literal["add"]
    title: Title
    start_s: Seconds
    end_s: Seconds
    exemplar_s: Seconds | None = Field(None, description="by default the middle")

    def edit(self) -> edits.Edit:
        """The edit."""
        return edits.Add(
            title=self.title, start_s=self.start_s, end_s=self.end_s, exemplar_s=self.exemplar_s
        )


OperationIn = Annotated[
    RenameIn | ConfirmIn | MergeIn | SplitIn | ReorderIn | DropIn | AddIn,
    Field(discriminator="op"),
]


class KeyStepsPatch(BaseModel):
    """Operations, one upon the other; all are done or none."""

    model_config = config_of({"operations": _OPERATIONS})

    operations: Annotated[list[OperationIn], Field(min_length=1, max_length=200)]
