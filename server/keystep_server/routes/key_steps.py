"""A session's key steps and their pictures, and the procedures."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path as FilePath
from typing import Annotated

import cv2
import numpy as np
from fastapi import APIRouter, Header, Path, Query, Response

from keystep_capture.errors import NotFoundError
from keystep_server.entity_tags import matches
from keystep_server.routes.deps import Deps, SessionId, problems
from keystep_server.schemas import API, KeyStepList, KeyStepOut, ProcedureList, ProcedureOut

router = APIRouter(prefix=API, tags=["key steps"])

_JPEG_QUALITY = 90
_CACHE_CONTROL = "private, max-age=60"

KeyStepId = Annotated[str, Path(pattern=r"^kst_[0-9a-f]{32}$")]
Width = Annotated[int | None, Query(ge=16, le=1920, description="pixels; never enlarged")]


@router.get("/sessions/{session_id}/key-steps", responses=problems(s404="there is no such session"))
async def list_key_steps(deps: Deps, session_id: SessionId) -> KeyStepList:
    """The key steps of a session: extracted from an expert's, or a guided session's progress."""
    session = await deps.registry.get(session_id)
    found = await asyncio.to_thread(deps.store.key_steps, session.id)
    return KeyStepList(key_steps=[KeyStepOut.of(key_step) for key_step in found])


@router.get(
    "/sessions/{session_id}/key-steps/{key_step_id}/image",
    response_class=Response,
    responses={
        200: {"content": {"image/jpeg": {}}, "description": "the exemplar frame"},
        304: {"description": "what If-None-Match names is still right"},
        **problems(s404="there is no such key step, or it has no picture"),
    },
)
async def get_image(
    deps: Deps,
    session_id: SessionId,
    key_step_id: KeyStepId,
    width: Width = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The exemplar frame of a key step as JPEG, in its own size or a smaller one."""
    key_step = await asyncio.to_thread(deps.store.key_step, session_id, key_step_id)
    if key_step.exemplar_path is None:
        raise NotFoundError(f"key step {key_step_id} has no picture")
    content = await asyncio.to_thread(_read_inside, deps.config.data_dir, key_step.exemplar_path)
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}-{width or "full"}"'
    headers = {"ETag": tag, "Cache-Control": _CACHE_CONTROL}
    if matches(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    jpeg = await asyncio.to_thread(_to_jpeg, content, width)
    return Response(jpeg, media_type="image/jpeg", headers=headers)


@router.get("/procedures", tags=["procedures"])
async def list_procedures(deps: Deps) -> ProcedureList:
    """The procedures that sessions can be guided through."""
    found = await asyncio.to_thread(deps.procedures)
    return ProcedureList(procedures=[ProcedureOut.model_validate(item) for item in found])


def _read_inside(data_dir: FilePath, relative: str) -> bytes:
    """The bytes of a file of the data directory, and of no other."""
    root = data_dir.resolve()
    path = (root / relative).resolve()
    if not path.is_relative_to(root):
        raise NotFoundError(f"the picture {relative!r} lies outside the data directory")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"the picture {relative!r} is no longer there") from None


def _to_jpeg(content: bytes, width: int | None) -> bytes:
    """The picture as JPEG, at most `width` pixels wide; a JPEG that fits stays as it is."""
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise NotFoundError("the key step's picture cannot be decoded; extract the key steps again")
    height_px, width_px = image.shape[:2]
    if width is None or width >= width_px:
        if content.startswith(b"\xff\xd8\xff"):
            return content
    else:
        size = (width, max(1, round(height_px * width / width_px)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _ok, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return encoded.tobytes()
