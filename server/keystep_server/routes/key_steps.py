"""A session's key steps, their revisions, edits, pictures and clips; and the procedures."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path as FilePath
from typing import Annotated

import cv2
import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request, Response

from keystep_capture.errors import ChangedError, NotFoundError
from keystep_server.entity_tags import (
    NOT_MODIFIED,
    IfMatch,
    IfNoneMatch,
    matches,
    still_matches,
    tag_of,
    tagged_json,
)
from keystep_server.feed import key_steps_notice
from keystep_server.key_step_editor import KeyStepEditor
from keystep_server.key_step_edits import Add, Split
from keystep_server.procedure_shelf import summary_of
from keystep_server.ranges import file_response
from keystep_server.routes.deps import AppDeps, Deps, SessionId, problems
from keystep_server.routes.recordings import Access, AskedBytes, bytes_of, run_in_worker
from keystep_server.schemas import (
    API,
    KeyStepList,
    KeyStepOut,
    KeyStepsPatch,
    ProcedureList,
    ProcedureOut,
    RevisionDetailOut,
    RevisionList,
    RevisionOut,
)
from keystep_server.schemas.key_steps import KEY_STEP_ID_PATTERN
from keystep_server.storage import KeyStep, KeyStepRevision

router = APIRouter(prefix=API, tags=["key steps"])

_JPEG_QUALITY = 90
_CACHE_CONTROL = "private, max-age=60"
_NONE = "there is no such session, or no such revision"
_TAGGED = {"ETag": {"description": "for If-None-Match and If-Match", "schema": {"type": "string"}}}

KeyStepId = Annotated[str, Path(pattern=KEY_STEP_ID_PATTERN)]
Width = Annotated[int | None, Query(ge=16, le=1920, description="pixels; never enlarged")]
Revision = Annotated[int | None, Query(ge=1, le=2**31 - 1, description="by default the newest")]


def _editor_of(request: Request) -> KeyStepEditor:
    editor: KeyStepEditor = request.app.state.key_step_editor
    return editor


Editor = Annotated[KeyStepEditor, Depends(_editor_of)]


@router.get(
    "/sessions/{session_id}/key-steps",
    response_model=KeyStepList,
    responses={200: {"headers": _TAGGED}, **NOT_MODIFIED, **problems(s404=_NONE)},
)
async def list_key_steps(
    deps: Deps, session_id: SessionId, revision: Revision = None, if_none_match: IfNoneMatch = None
) -> Response:
    """The key steps of a session: extracted from an expert's, or a guided session's progress.

    `revision` asks for an older state of the extracted ones.
    """
    session = await deps.registry.get(session_id)
    found = await asyncio.to_thread(_key_steps, deps, session.id, revision)
    return tagged_json(found, if_none_match)


@router.patch(
    "/sessions/{session_id}/key-steps",
    response_model=KeyStepList,
    responses={
        200: {"headers": _TAGGED},
        **problems(
            s404="there is no such session, or it has no extracted key steps",
            s409="it has as many revisions as it can have",
            s412="the key steps are not those that If-Match names",
            s422="an operation does not fit; nothing was changed",
        ),
    },
)
async def edit_key_steps(
    deps: Deps,
    access: Access,
    editor: Editor,
    session_id: SessionId,
    body: KeyStepsPatch,
    if_match: IfMatch = None,
) -> Response:
    """Edit the extracted key steps: the result is a new revision, and older ones stay.

    With `If-Match` (the ETag of what was seen) nobody else's edit is edited unseen.
    """
    session = await deps.registry.get(session_id)

    def check(newest: KeyStepRevision) -> None:
        tags = [
            tag_of(_listing(deps, newest, number).model_dump_json().encode())
            for number in (None, newest.number)
        ]
        if not any(still_matches(if_match, tag) for tag in tags):
            raise ChangedError(
                f"the key steps are now those of revision {newest.number}, with the ETag {tags[0]};"
                " fetch them again and look at what changed"
            )

    edits = [operation.edit() for operation in body.operations]
    changes = [operation.model_dump(exclude_none=True) for operation in body.operations]
    if any(isinstance(edit, Split | Add) for edit in edits):  # pictures have to be decoded
        stored = await run_in_worker(access, editor.edit, session.id, edits, changes, check)
    else:
        stored = await asyncio.to_thread(editor.edit, session.id, edits, changes, check)
    deps.feed.publish(key_steps_notice(stored))
    return tagged_json(await asyncio.to_thread(_listing, deps, stored, None), None)


@router.get(
    "/sessions/{session_id}/key-steps/revisions",
    responses=problems(s404="there is no such session"),
)
async def list_revisions(deps: Deps, session_id: SessionId) -> RevisionList:
    """All revisions of the extracted key steps, oldest first."""
    session = await deps.registry.get(session_id)
    found = await asyncio.to_thread(deps.store.revisions.all, session.id)
    return RevisionList(revisions=[RevisionOut.model_validate(one) for one in found])


@router.get(
    "/sessions/{session_id}/key-steps/{key_step_id}/image",
    response_class=Response,
    responses={
        200: {"content": {"image/jpeg": {}}, "description": "the exemplar frame"},
        **NOT_MODIFIED,
        **problems(s404="there is no such key step, or it has no picture"),
    },
)
async def get_image(
    deps: Deps,
    session_id: SessionId,
    key_step_id: KeyStepId,
    width: Width = None,
    revision: Revision = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The exemplar frame of a key step as JPEG, in its own size or a smaller one."""
    key_step = await asyncio.to_thread(_key_step, deps, session_id, key_step_id, revision)
    if key_step.exemplar_path is None:
        raise NotFoundError(f"key step {key_step_id} has no picture")
    content = await asyncio.to_thread(_read_inside, deps.config.data_dir, key_step.exemplar_path)
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}-{width or "full"}"'
    headers = {"ETag": tag, "Cache-Control": _CACHE_CONTROL}
    if matches(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    jpeg = await asyncio.to_thread(_to_jpeg, content, width)
    return Response(jpeg, media_type="image/jpeg", headers=headers)


@router.get(
    "/sessions/{session_id}/key-steps/{key_step_id}/clip",
    response_class=Response,
    responses=bytes_of(
        "video/mp4",
        s404="there is no such key step, or no video of it",
        s409="its session is not closed",
    ),
)
async def get_clip(
    deps: Deps,
    access: Access,
    session_id: SessionId,
    key_step_id: KeyStepId,
    asked: AskedBytes,
    revision: Revision = None,
) -> Response:
    """The video of a key step as MP4, as it came; the first request makes the file.

    It begins at the key frame before the key step: `Keystep-Lead-In-S` seconds earlier.
    """
    key_step = await asyncio.to_thread(_key_step, deps, session_id, key_step_id, revision)
    clip = await run_in_worker(access, access.clip, key_step)
    response = await asyncio.to_thread(file_response, clip.path, "video/mp4", asked)
    response.headers["Keystep-Lead-In-S"] = f"{clip.lead_in_s:.3f}"
    return response


@router.get("/procedures", tags=["procedures"])
async def list_procedures(deps: Deps) -> ProcedureList:
    """The procedures that sessions can be guided through."""
    found = await asyncio.to_thread(deps.chooser.procedures.all)
    return ProcedureList(
        procedures=[ProcedureOut.model_validate(summary_of(procedure)) for procedure in found]
    )


def _key_steps(deps: AppDeps, session_id: str, number: int | None) -> KeyStepList:
    """All key steps of a session, the extracted ones as they were in a revision (blocks)."""
    revisions = deps.store.revisions
    if number is not None:
        return _listing(deps, revisions.get(session_id, number), number)
    newest = revisions.find(session_id)
    if newest is not None:
        return _listing(deps, newest, None)
    progress = deps.store.progress(session_id)
    return KeyStepList(key_steps=[KeyStepOut.of(one) for one in progress], revision=None)


def _listing(deps: AppDeps, revision: KeyStepRevision, number: int | None) -> KeyStepList:
    """The key steps with those of a revision; addresses name it where `number` is given."""
    progress = deps.store.progress(revision.session_id)
    return KeyStepList(
        key_steps=[
            *(KeyStepOut.of(one, number) for one in revision.key_steps),
            *(KeyStepOut.of(one) for one in progress),
        ],
        revision=RevisionDetailOut.model_validate(revision),
    )


def _key_step(deps: AppDeps, session_id: str, key_step_id: str, number: int | None) -> KeyStep:
    revisions = deps.store.revisions
    revision = revisions.find(session_id) if number is None else revisions.get(session_id, number)
    for step in (*(revision.key_steps if revision else ()), *deps.store.progress(session_id)):
        if step.id == key_step_id:
            return step
    raise NotFoundError(
        f"session {session_id} has no key step {key_step_id}"
        + (" now; ?revision= asks for an older state" if number is None else f" then ({number})")
    )


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
