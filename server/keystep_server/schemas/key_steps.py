"""Key steps."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from keystep_server.schemas.common import API, EXAMPLE_SESSION_ID, Nanoseconds, config_of
from keystep_server.storage import KeyStep, KeyStepSource, KeyStepStatus

_KEY_STEP_ID = "kst_8a3d1c0e5b7f42d69e10a4c2b6d8f013"
_KEY_STEP = {
    "id": _KEY_STEP_ID,
    "position": 0,
    "title": "Fit the front wheel",
    "start_s": 12.3,
    "end_s": 20.1,
    "exemplar_s": 18.4,
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
    "provenance": {"method": "steps"},
}


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
    provenance: dict[str, Any] = Field(description="how it was found: method, models, parameters")

    @classmethod
    def of(cls, key_step: KeyStep) -> KeyStepOut:
        """The key step as REST gives it."""
        names = cls.model_fields.keys() - {"exemplar"}
        values = {name: getattr(key_step, name) for name in names}
        exemplar = None
        if key_step.exemplar_size is not None:
            width, height = key_step.exemplar_size
            url = f"{API}/sessions/{key_step.session_id}/key-steps/{key_step.id}/image"
            exemplar = ExemplarOut(url=url, width=width, height=height)
        return cls(**values, exemplar=exemplar)


class KeyStepList(BaseModel):
    """All key steps of a session, in order."""

    model_config = config_of({"key_steps": [_KEY_STEP]})

    key_steps: list[KeyStepOut]
