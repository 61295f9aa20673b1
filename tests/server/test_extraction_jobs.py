"""Extraction jobs with the real `keystep extract`, in real servers; needs torch."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from keystep_capture.sender import Callbacks, Sender, Source

pytest.importorskip("torch", reason="training needs torch: make test-training installs it")

API = "/api/v1"
FAST = {"epochs": 3, "chunks": 32, "threads": 1, "cues": ["appearance", "motion"]}
LONG = {**FAST, "epochs": 4000}


async def recorded(wire: str, rest: str, coffee: list[Any], device: str = "a") -> str:
    """A closed session with the video, recorded by a server; its id."""
    source = Source(device=device, client="test", streams=("rgb",), kind="expert", replay=True)
    sender = Sender(source, server=wire, instance="i1", callbacks=Callbacks(), key=None)
    running = asyncio.create_task(sender.run())
    while sender.state != "open":  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    for packet in coffee:
        if not sender.has_room("rgb"):
            await sender.room("rgb")
        sender.offer("rgb", **packet)
    await sender.finish(close=True)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return str(sender.session)


async def begin(server: Any, session: str, **body: Any) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=server.rest, timeout=60) as rest:
        answer = await rest.post(f"{API}/sessions/{session}/extraction", json=body)
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


async def until(server: Any, job: dict[str, Any], what: Any) -> dict[str, Any]:
    while not what(found := await server.get(f"/jobs/{job['id']}")):  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    return dict(found)


def is_over(job: dict[str, Any]) -> bool:
    return job["state"] in ("done", "failed", "cancelled")


def processes(session: str) -> list[int]:
    """Processes that extract a session's key steps."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"extract" in words and any(session.encode() in word for word in words):
            found.append(int(path.parent.name))
    return found


@pytest.mark.timeout(240)
async def test_a_recording_becomes_key_steps_by_a_job(make_server: Any, coffee: Any) -> None:
    server = await make_server("data")
    session = await recorded(server.wire, server.rest, coffee)
    closing = await server.get(f"/sessions/{session}/key-steps")
    job = await begin(server, session, **FAST, clusters=4, seed=7)
    done = await until(server, job, is_over)
    assert (done["state"], done["error"]) == ("done", None)
    assert any("window" in note for note in done["notes"])
    found = await server.get(f"/sessions/{session}/key-steps")
    revision = found["revision"]
    assert (revision["number"], revision["parent"]) == (2, 1)
    assert revision["provenance"]["extraction"]["seed"] == 7
    assert revision["provenance"]["training"]["epochs"] == 3
    assert len(revision["provenance"]["model_sha256"]) == 64
    assert found["key_steps"]
    assert revision["timeline"][0]["device_time_ns"] == str(coffee[0]["device_time_ns"])
    times = {packet["device_time_ns"] for packet in coffee}
    async with httpx.AsyncClient(base_url=server.rest, timeout=60) as rest:
        for step in found["key_steps"]:
            assert int(step["exemplar_device_time_ns"]) in times
            assert (await rest.get(step["exemplar"]["url"])).status_code == 200
            clip = await rest.get(step["clip_url"], headers={"Range": "bytes=0-15"})
            assert (clip.status_code, clip.content[4:8]) == (206, b"ftyp")
    old = await server.get(f"/sessions/{session}/key-steps?revision=1")
    assert [s["title"] for s in old["key_steps"]] == [s["title"] for s in closing["key_steps"]]


@pytest.mark.timeout(240)
async def test_a_killed_server_goes_on_with_the_job_where_it_was(
    make_server: Any, coffee: Any
) -> None:
    server = await make_server("data")
    session = await recorded(server.wire, server.rest, coffee)
    job = await begin(server, session, **{**FAST, "epochs": 120})
    await until(
        server, job, lambda one: one["progress"].get("done", 0) >= 20 and "of" in one["progress"]
    )
    assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in processes(session)] == [19]
    await server.kill()
    while processes(session):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    await server.start()
    done = await until(server, job, is_over)
    assert (done["state"], done["attempts"], done["error"]) == ("done", 2, None)
    folder = server.folder / "sessions" / session
    (curves,) = folder.glob("extraction/training/*/curves.json")
    assert [row["epoch"] for row in json.loads(curves.read_text())] == list(range(120))
    log = (folder / "jobs" / job["id"] / "log.txt").read_text()
    assert (log.count("attempt"), log.count("training")) == (2, 2)
    found = await server.get(f"/sessions/{session}/key-steps")
    assert (found["revision"]["number"], found["revision"]["job_id"]) == (2, job["id"])


@pytest.mark.timeout(240)
async def test_a_job_is_cancelled_and_its_session_deleted(make_server: Any, coffee: Any) -> None:
    server = await make_server("data")
    session = await recorded(server.wire, server.rest, coffee)
    other = await recorded(server.wire, server.rest, coffee, "b")
    job = await begin(server, session, **LONG, recordings=[other])
    running = await until(server, job, lambda one: one["progress"].get("stage") == "training")
    assert running["recordings"] == [session, other]
    async with httpx.AsyncClient(base_url=server.rest, timeout=60) as rest:
        assert (await rest.delete(f"{API}/jobs/{job['id']}")).json()["state"] == "cancelled"
        assert not processes(session)
        assert (await server.get(f"/sessions/{session}/key-steps"))["revision"]["number"] == 1
        again = await begin(server, session, **LONG, recordings=[other])
        await until(server, again, lambda one: one["progress"].get("stage") == "training")
        for one in (other, session):
            assert (await rest.delete(f"{API}/recordings/{one}")).status_code == 204
            assert not [path for path in server.folder.rglob("*") if one in path.name]
        assert (await rest.get(f"{API}/jobs/{job['id']}")).status_code == 404
    assert not processes(session)


@pytest.mark.timeout(120)
async def test_the_command_itself_refuses_choices_that_do_not_go_together(
    make_server: Any, coffee: Any
) -> None:
    server = await make_server("data")
    session = await recorded(server.wire, server.rest, coffee[:40])
    async with httpx.AsyncClient(base_url=server.rest, timeout=60) as rest:
        for body, words in (
            ({"cues": ["smell"]}, "no cue is called 'smell'"),
            ({"preset": "huge"}, "no preset is called 'huge'"),
            ({"context": 5}, "causal transformers"),
            ({"pairs": {"appearance:gaze": 1}}, "'gaze' is not trained on"),
        ):
            answer = await rest.post(f"{API}/sessions/{session}/extraction", json=body)
            assert answer.status_code == 422, answer.text
            assert words in answer.json()["detail"]
