"""The queue of extraction jobs, with a real subprocess that behaves as badly as it can.

test_extraction_jobs.py has the real `keystep extract`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import typer

from keystep_capture import wire
from keystep_capture.recording import RecordingInfo, RecordingWriter
from keystep_models.commands.extract_command import extract
from keystep_server.jobs.process import MAX_LOG_BYTES
from keystep_server.jobs.runner import JobSettings
from keystep_server.schemas import ExtractionIn
from keystep_server.storage import JobState, SessionKind

API = "/api/v1"
PROBLEM = "application/problem+json"
PROGRAM = Path(__file__).parent / "job_program.py"
REFUSED, GARBAGE, FAILS, STUBBORN, FLOODS, EMPTY, WAITS, CRASHES, FOREIGN = range(1, 10)
SETTINGS = {"program": (sys.executable, str(PROGRAM)), "needs": "json"}


@pytest.fixture
def settings() -> JobSettings:
    return JobSettings(**SETTINGS)


@pytest.fixture
async def jobs(rig: Any, settings: JobSettings) -> AsyncIterator[Any]:
    """A rig whose jobs run."""
    made = replace(rig, job_settings=settings)
    await made.jobs.start()
    yield made
    await made.jobs.stop()


async def closed_session(rig: Any, device: str = "a") -> str:
    """A closed session with a recording of one pose."""
    session = await rig.registry.create(device_id=device, kind=SessionKind.EXPERT)
    folder = rig.config.data_dir / "sessions" / session.id / "recording"
    writer = RecordingWriter(folder, RecordingInfo(session=session.id, device=device))
    header = wire.PacketHeader(
        protocol=wire.PROTOCOL,
        session=session.id,
        epoch=1,
        stream="head",
        sequence=0,
        device_time_ns=10**18,
        send_time_ns=0,
        encoding="pose_f32",
    )
    writer.write_packet(header, np.eye(4, dtype="<f4").tobytes(), receive_time_ns=0)
    writer.close()
    await rig.registry.close(session.id, "test")
    return str(session.id)


async def submit(rig: Any, session: str, seed: int, **body: Any) -> httpx.Response:
    async with rig.client() as client:
        answer: httpx.Response = await client.post(
            f"{API}/sessions/{session}/extraction", json={"seed": seed, **body}
        )
    return answer


async def begun(rig: Any, session: str, seed: int = 0, **body: Any) -> str:
    answer = await submit(rig, session, seed, **body)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"{API}/jobs/{answer.json()['id']}"
    return str(answer.json()["id"])


async def get(rig: Any, path: str) -> Any:
    async with rig.client() as client:
        answer = await client.get(f"{API}{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def until(rig: Any, job: str, *states: str) -> dict[str, Any]:
    """Wait until a job is in one of these states; the test's time limit ends it."""
    while (found := await get(rig, f"/jobs/{job}"))["state"] not in states:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return dict(found)


async def running(rig: Any, job: str) -> None:
    """Wait until a job's process has said something."""
    while not (await get(rig, f"/jobs/{job}"))["progress"]:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


def extraction(rig: Any, session: str) -> Path:
    return Path(rig.config.data_dir) / "sessions" / session / "extraction"


async def test_a_job_ends_with_a_revision_that_says_where_it_comes_from(jobs: Any) -> None:
    session = await closed_session(jobs)
    job = await begun(jobs, session, preset="small", cues=["appearance", "hands"], drop_epochs=[])
    done = await until(jobs, job, "done", "failed")
    assert (done["error"], done["revision"], done["attempts"]) == (None, 1, 1)
    assert done["notes"] == ["a note"]
    assert done["options"]["cues"] == ["appearance", "hands"]
    async with jobs.client() as client:
        found = (await client.get(done["key_steps_url"])).json()
        (step,) = found["key_steps"]
        assert (await client.get(step["exemplar"]["url"])).headers["content-type"] == "image/jpeg"
        log = (await client.get(done["log_url"])).text
    revision = found["revision"]
    assert (revision["origin"], revision["job_id"]) == ("extraction", job)
    assert revision["provenance"]["model_sha256"] == "ab"
    assert revision["provenance"]["extraction"]["seed"] == 0
    assert (step["source"], step["provenance"]["job_id"]) == ("extracted", job)
    assert "--cues=appearance,hands --drop-epochs=none" in log
    for word in ("features", "training", "done"):
        assert word in log


async def test_extracting_again_keeps_what_was_edited(jobs: Any) -> None:
    session = await closed_session(jobs)
    await until(jobs, await begun(jobs, session), "done")
    first = await get(jobs, f"/sessions/{session}/key-steps")
    title = {"op": "rename", "id": first["key_steps"][0]["id"], "title": "Mine"}
    async with jobs.client() as client:
        await client.patch(f"{API}/sessions/{session}/key-steps", json={"operations": [title]})
    await until(jobs, await begun(jobs, session), "done")
    now = await get(jobs, f"/sessions/{session}/key-steps")
    assert (now["revision"]["number"], now["key_steps"][0]["title"]) == (3, "Key step 1")
    assert now["key_steps"][0]["id"] != first["key_steps"][0]["id"]
    edited = await get(jobs, f"/sessions/{session}/key-steps?revision=2")
    assert edited["key_steps"][0]["title"] == "Mine"


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (FAILS, "the disk is full"),
        (CRASHES, "ended by SIGSEGV"),
        (EMPTY, "without a result"),
        (FOREIGN, "timeline"),
    ],
)
async def test_a_job_that_fails_says_why_and_leaves_no_key_steps(
    jobs: Any, seed: int, message: str
) -> None:
    session = await closed_session(jobs)
    failed = await until(jobs, await begun(jobs, session, seed), "done", "failed")
    assert failed["state"] == "failed"
    assert message in failed["error"]
    assert (await get(jobs, f"/sessions/{session}/key-steps"))["revision"] is None
    again = await until(jobs, await begun(jobs, session), "done", "failed")
    assert again["state"] == "done"


@pytest.mark.parametrize("seed", [GARBAGE, FLOODS])
async def test_a_process_may_write_what_it_likes(jobs: Any, seed: int) -> None:
    session = await closed_session(jobs)
    job = await begun(jobs, session, seed)
    assert (await until(jobs, job, "done", "failed"))["state"] == "done"
    log = jobs.jobs.log_path(await asyncio.to_thread(jobs.store.jobs.get, job))
    assert log.stat().st_size <= MAX_LOG_BYTES + 100
    assert (seed == FLOODS) == ("the log is full" in log.read_text())


@pytest.mark.parametrize("seed", [WAITS, STUBBORN])
async def test_a_cancelled_job_has_no_process_and_no_key_steps(jobs: Any, seed: int) -> None:
    session = await closed_session(jobs)
    job = await begun(jobs, session, seed)
    await running(jobs, job)
    pid = jobs.jobs._runs[job].process.pid
    assert os.getpriority(os.PRIO_PROCESS, pid) == 19
    async with jobs.client() as client:
        cancelled = await client.delete(f"{API}/jobs/{job}")
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        again = await client.post(f"{API}/jobs/{job}/cancel")
        assert again.json() == cancelled.json()
    assert (await get(jobs, f"/sessions/{session}/key-steps"))["revision"] is None


async def test_jobs_wait_their_turn_and_can_be_cancelled_while_they_do(jobs: Any) -> None:
    sessions = [await closed_session(jobs, device) for device in "abc"]
    first = await begun(jobs, sessions[0], WAITS)
    second, third = [await begun(jobs, session) for session in sessions[1:]]
    await running(jobs, first)
    states = [one["state"] for one in (await get(jobs, "/jobs"))["jobs"]]
    assert states == ["queued", "queued", "running"]
    async with jobs.client() as client:
        await client.post(f"{API}/jobs/{second}/cancel")
    (extraction(jobs, sessions[0]) / "go").touch()
    await until(jobs, third, "done")
    assert (await get(jobs, f"/jobs/{first}"))["state"] == "done"
    assert (await get(jobs, f"/jobs/{second}"))["state"] == "cancelled"
    assert not extraction(jobs, sessions[1]).exists()
    listed = await get(jobs, f"/jobs?session={sessions[2]}&state=done")
    assert [one["id"] for one in listed["jobs"]] == [third]
    page = await get(jobs, "/jobs?limit=2")
    assert [one["id"] for one in page["jobs"]] == [third, second]
    rest = await get(jobs, f"/jobs?limit=2&cursor={page['next_cursor']}")
    assert ([one["id"] for one in rest["jobs"]], rest["next_cursor"]) == ([first], None)


async def test_a_job_that_takes_too_long_fails(rig: Any) -> None:
    rig = replace(rig, job_settings=JobSettings(**SETTINGS, time_limit_s=1.0))
    await rig.jobs.start()
    session = await closed_session(rig)
    failed = await until(rig, await begun(rig, session, STUBBORN), "done", "failed")
    assert (failed["state"], failed["error"]) == ("failed", "it took longer than 1 s")
    await rig.jobs.stop()


async def test_a_restarted_server_goes_on_with_its_jobs(jobs: Any) -> None:
    sessions = [await closed_session(jobs, device) for device in "ab"]
    first, second = [await begun(jobs, session, WAITS) for session in sessions]
    await running(jobs, first)
    await jobs.jobs.stop()
    assert jobs.store.jobs.get(first).state is JobState.RUNNING  # as a killed server leaves it
    again = replace(jobs.restarted(), job_settings=JobSettings(**SETTINGS))
    await again.jobs.start()
    for session in sessions:
        (extraction(again, session) / "go").parent.mkdir(exist_ok=True)
        (extraction(again, session) / "go").touch()
    assert (await until(again, first, "done", "failed"))["attempts"] == 2
    assert (await until(again, second, "done", "failed"))["attempts"] == 1
    assert (extraction(again, sessions[0]) / "runs").read_text() == "begun\n" * 2
    await again.jobs.stop()
    again.store.close()


async def test_a_job_that_no_server_survives_is_given_up(rig: Any) -> None:
    rig = replace(rig, job_settings=JobSettings(**SETTINGS))
    job = await begun(rig, await closed_session(rig))
    rig.store.jobs.update(job, state=JobState.RUNNING, attempts=20)
    await rig.jobs.start()
    failed = await until(rig, job, "done", "failed")
    assert failed["error"] == "the server ended 20 times while this job ran"
    await rig.jobs.stop()


async def test_what_cannot_be_extracted_is_refused(jobs: Any) -> None:
    session = await closed_session(jobs)
    open_one = await jobs.registry.create(device_id="b", kind=SessionKind.EXPERT)
    bare = await jobs.registry.create(device_id="c", kind=SessionKind.EXPERT)
    await jobs.registry.close(bare.id, "test")
    other = await closed_session(jobs, "d")
    job = await begun(jobs, other, WAITS)
    for asked, seed, body, status, words in (
        (session, REFUSED, {}, 422, "seed 1 is refused"),
        (session, 0, {"preset": "-h"}, 422, "preset"),
        (session, 0, {"out": "/tmp"}, 422, "out"),
        (session, 0, {"cues": ["--out=/tmp"]}, 422, "cues"),
        (session, 0, {"recordings": [open_one.id]}, 409, "close it first"),
        (session, 0, {"recordings": ["ses_" + "0" * 26]}, 404, "no session"),
        (open_one.id, 0, {}, 409, "close it first"),
        (bare.id, 0, {}, 404, "nothing is recorded"),
        (other, 0, {}, 409, job),
    ):
        answer = await submit(jobs, asked, seed, **body)
        assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM), body
        assert words in answer.json()["detail"]
    assert [one["id"] for one in (await get(jobs, "/jobs"))["jobs"]] == [job]


def test_every_choice_of_the_command_can_be_asked_for() -> None:
    flags = {parameter.name for parameter in command_parameters()}
    own = {"recordings"}
    servers = {"out", "progress", "check", "cue_file", "cue_model", "appearance_model"}
    servers |= {"bundle", "bundle_encoders"}  # bundles are made when key steps are published
    assert set(ExtractionIn.model_fields) == (flags - servers) | own


def command_parameters() -> list[Any]:
    app = typer.Typer(add_completion=False)
    app.command()(extract)
    return list(typer.main.get_command(app).params)


async def test_without_torch_the_answer_says_which_extra_to_install(rig: Any) -> None:
    rig = replace(rig, job_settings=JobSettings(needs="no_module_of_this_name"))
    session = await closed_session(rig)
    answer = await submit(rig, session, 0)
    assert (answer.status_code, answer.headers["content-type"]) == (409, PROBLEM)
    assert "pip install 'keystep[train]'" in answer.json()["detail"]


async def test_deleting_a_session_ends_its_jobs_and_leaves_nothing(jobs: Any) -> None:
    session, other = await closed_session(jobs), await closed_session(jobs, "b")
    job = await begun(jobs, other, WAITS, recordings=[session])
    await running(jobs, job)
    (extraction(jobs, other) / "features" / session).mkdir(parents=True)
    (extraction(jobs, other) / session).mkdir()
    await until(jobs, await begun_later(jobs, session), "queued", "running")
    async with jobs.client() as client:
        assert (await client.delete(f"{API}/recordings/{session}")).status_code == 204
    ended = await get(jobs, f"/jobs/{job}")
    assert (ended["state"], ended["error"]) == ("cancelled", f"session {session} was deleted")
    assert [one["id"] for one in (await get(jobs, "/jobs"))["jobs"]] == [job]
    left = [path for path in jobs.config.data_dir.rglob("*") if session in path.name]
    assert left == []
    assert (extraction(jobs, other) / "recordings" / other).is_symlink()


async def begun_later(rig: Any, session: str) -> str:
    """A job of a session that waits behind another."""
    return await begun(rig, session, WAITS)


async def read_events(answer: httpx.Response, count: int) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    kind = ""
    async for line in answer.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            found.append((kind, json.loads(value)))
        if len(found) == count:
            break
    return found


async def test_a_stream_tells_of_jobs_and_of_key_steps(jobs: Any) -> None:
    session, other = await closed_session(jobs), await closed_session(jobs, "b")
    job = await begun(jobs, session, WAITS)
    await running(jobs, job)
    async with jobs.serving() as client:
        path = f"{API}/jobs?session={session}&stream=1"
        async with client.stream("GET", path) as answer, asyncio.timeout(60):
            assert answer.headers["content-type"].startswith("text/event-stream")
            [(kind, first)] = await read_events(answer, 1)
        assert (kind, first["id"], first["state"]) == ("job", job, "running")
        accept = {"Accept": "text/event-stream"}
        async with client.stream("GET", f"{API}/jobs/{job}", headers=accept) as answer:
            (extraction(jobs, session) / "go").touch()
            events = await read_events(answer, 1000)  # it ends by itself
        assert {kind for kind, _ in events} == {"job"}
        assert (events[-1][1]["state"], events[-1][1]["revision"]) == ("done", 1)
        await until(jobs, await begun(jobs, other), "done")
        async with client.stream("GET", path) as answer, asyncio.timeout(60):
            reading = asyncio.create_task(read_events(answer, 2))
            await asyncio.sleep(0)
            step = (await get(jobs, f"/sessions/{session}/key-steps"))["key_steps"][0]["id"]
            while not jobs.feed.followers:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            operations = [{"op": "confirm", "id": step}]
            await client.patch(
                f"{API}/sessions/{session}/key-steps", json={"operations": operations}
            )
            events = await reading
    assert [kind for kind, _ in events] == ["key_steps", "key_steps"]
    assert [data["revision"] for _, data in events] == [1, 2]


async def test_streams_end_when_the_server_stops(jobs: Any) -> None:
    async with jobs.serving() as client:
        async with client.stream("GET", f"{API}/jobs?stream=1") as answer:
            while not jobs.feed.followers:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            jobs.feed.stop()
            assert await read_events(answer, 2) == [("server_stopping", {})]
        assert not jobs.feed.followers
