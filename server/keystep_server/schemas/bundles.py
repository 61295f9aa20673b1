"""Bundles, and publishing key steps as a procedure that pins one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from keystep_models.bundles.bundle import Bundle
from keystep_server.procedure_shelf import NAME_PATTERN
from keystep_server.schemas.common import Name, config_of
from keystep_server.schemas.procedures import ProcedureOut

BUNDLE_ID_PATTERN = r"^[0-9a-f]{64}$"

_ID = "8f2d" * 16
_SOURCE = {"model": "appearance-efficientnet-lite0", "extractor": "gaze-crop", "version": 1}
_PART: dict[str, Any] = {
    "name": "gaze_appearance",
    "cue": "gaze_appearance",
    "of": "raw",
    "size": 1280,
    "source": _SOURCE,
}
_STEP = {"step_id": 1, "start_s": 0.8, "end_s": 4.7}
_BUNDLE: dict[str, Any] = {
    "id": _ID,
    "error": None,
    "tick_rate_hz": 10.0,
    "duration_s": 112.4,
    "size_bytes": 6120448,
    "parts": [_PART],
    "steps": [_STEP],
    "procedures": ["toy-cart"],
}
_PUBLISHED = {
    "procedure": {
        "name": "toy-cart",
        "title": "toy-cart (cart)",
        "steps": [{"step_id": 1, "title": "Place the chassis"}],
    },
    "bundle_id": _ID,
    "revision": 3,
}


class BundlePartOut(BaseModel):
    """What a bundle looks at: a cue's raw feature, or what its encoders make of it."""

    model_config = config_of(_PART)

    name: str
    cue: str
    of: str
    size: int
    source: dict[str, Any] = Field(
        {},
        description="what makes the cue; `instead_of` and `because`: where another would be better",
    )


class BundleStepOut(BaseModel):
    """A stretch of the expert's recording in which a step is done."""

    model_config = config_of(_STEP)

    step_id: int
    start_s: float
    end_s: float


class BundleOut(BaseModel):
    """A bundle on this server; with `error` it cannot be used, and no more is known of it."""

    model_config = config_of(_BUNDLE)

    id: str
    error: str | None = None
    tick_rate_hz: float | None = None
    duration_s: float | None = None
    size_bytes: int | None = None
    parts: list[BundlePartOut] = []
    steps: list[BundleStepOut] = []
    procedures: list[str] = Field([], description="those that pin it")

    @classmethod
    def of(cls, bundle: Bundle, procedures: list[str]) -> BundleOut:
        """What REST tells of a bundle."""
        document, rate_hz = bundle.document, bundle.document.tick_rate_hz
        return cls(
            id=bundle.id,
            tick_rate_hz=rate_hz,
            duration_s=len(next(iter(bundle.expert.values())).rows) / rate_hz,
            size_bytes=sum(entry.bytes for entry in document.files.values()),
            parts=[
                BundlePartOut(
                    name=part.name, cue=part.cue, of=part.of, size=part.size, source=part.source
                )
                for part in document.parts
            ],
            steps=[
                BundleStepOut(
                    step_id=segment.step_id,
                    start_s=segment.start_tick / rate_hz,
                    end_s=(segment.end_tick + 1) / rate_hz,
                )
                for segment in document.segments
            ],
            procedures=procedures,
        )


class BundleList(BaseModel):
    """All bundles of this server."""

    model_config = config_of({"bundles": [_BUNDLE]})

    bundles: list[BundleOut]


class PublishIn(BaseModel):
    """What the procedure is to be called."""

    model_config = config_of({"name": "toy-cart", "task": "cart"})

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    task: Name | None = Field(None, description="by default the session's")
    revision: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        None, description="whose key steps; by default the newest"
    )


class PublishedOut(BaseModel):
    """A procedure that new sessions can be guided through, and what it came from."""

    model_config = config_of(_PUBLISHED)

    procedure: ProcedureOut
    bundle_id: str
    revision: int
