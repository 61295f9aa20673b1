"""The bundles of this server, and publishing a session's key steps as a procedure."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Response

from keystep_capture.errors import KeystepError
from keystep_server.bundle_shelf import BundleShelf
from keystep_server.procedure_shelf import ProcedureShelf, summary_of
from keystep_server.routes.deps import Deps, SessionId, problems
from keystep_server.schemas import API, ProcedureOut
from keystep_server.schemas.bundles import (
    BUNDLE_ID_PATTERN,
    BundleList,
    BundleOut,
    PublishedOut,
    PublishIn,
)

router = APIRouter(prefix=API, tags=["procedures"])

BundleId = Annotated[str, Path(pattern=BUNDLE_ID_PATTERN)]


@router.post(
    "/sessions/{session_id}/key-steps/publish",
    status_code=201,
    responses=problems(
        s404="there is no such session, no such revision, or no features of it any more",
        s409="the session is not closed",
        s422="it cannot have this name, or the key steps cannot be told apart",
    ),
)
async def publish(
    deps: Deps, session_id: SessionId, body: PublishIn, response: Response
) -> PublishedOut:
    """Make a procedure of a session's key steps; new sessions can be guided through it at once.

    Titles and pictures are the key steps'. A procedure of this name that was published before is
    replaced; sessions that run keep theirs.
    """
    session = await deps.registry.get(session_id)
    found = await asyncio.to_thread(
        deps.publisher.publish, session, name=body.name, task=body.task, revision=body.revision
    )
    response.headers["Location"] = f"{API}/bundles/{found.bundle_id}"
    return PublishedOut(
        procedure=ProcedureOut.model_validate(summary_of(found.procedure)),
        bundle_id=found.bundle_id,
        revision=found.revision,
    )


@router.get("/bundles")
async def list_bundles(deps: Deps) -> BundleList:
    """The bundles of this server; a damaged one has an `error`."""
    return await asyncio.to_thread(_all, deps.chooser.bundles, deps.chooser.procedures)


@router.get("/bundles/{bundle_id}", responses=problems(s404="there is no such bundle"))
async def get_bundle(deps: Deps, bundle_id: BundleId) -> BundleOut:
    """One bundle."""
    return await asyncio.to_thread(_one, deps.chooser.bundles, deps.chooser.procedures, bundle_id)


def _all(bundles: BundleShelf, procedures: ProcedureShelf) -> BundleList:
    pinning = procedures.pinning()
    found = []
    for bundle_id in bundles.ids():
        own = pinning.get(bundle_id, [])
        try:
            found.append(BundleOut.of(bundles.get(bundle_id), own))
        except KeystepError as error:
            found.append(BundleOut(id=bundle_id, error=str(error), procedures=own))
    return BundleList(bundles=found)


def _one(bundles: BundleShelf, procedures: ProcedureShelf, bundle_id: str) -> BundleOut:
    return BundleOut.of(bundles.get(bundle_id), procedures.pinning().get(bundle_id, []))
