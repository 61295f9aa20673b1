"""Server-sent events of a real uvicorn on a free port."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from keystep_server.storage import SessionKind

API = "/api/v1"


@pytest.fixture
async def session_id(rig: Any) -> str:
    session = await rig.registry.create(device_id="d", kind=SessionKind.GUIDED)
    return str(session.id)


@asynccontextmanager
async def streaming(client: Any, session_id: str, **headers: str) -> AsyncIterator[Any]:
    """The stream's messages, each a dict of its fields; comments are {"comment": text}."""
    accept = {"accept": "text/event-stream", **headers}
    url = f"{API}/sessions/{session_id}/events"
    async with client.stream("GET", url, headers=accept, timeout=30) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")

        async def messages() -> AsyncIterator[dict[str, str]]:
            fields: dict[str, str] = {}
            async for line in answer.aiter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    fields[name or "comment"] = value
                elif fields:
                    yield fields
                    fields = {}

        yield messages()


async def ids_to_the_end(client: Any, session_id: str, **headers: str) -> list[int]:
    ids = []
    async with streaming(client, session_id, **headers) as messages:
        async for message in messages:
            if message.get("event") == "session_closed":
                return ids
            ids.append(int(message["id"]))
            assert message["event"] == "step_event"
            assert f'"ordinal":{message["id"]},' in message["data"]
    raise AssertionError(f"the stream broke off after {ids}")


async def test_stream_gives_what_was_and_what_comes_and_ends_with_the_session(
    rig: Any, session_id: str, make_event: Any
) -> None:
    await rig.events.append(session_id, make_event(0))
    async with rig.serving() as client:
        reading = asyncio.create_task(ids_to_the_end(client, session_id))
        for number in range(1, 20):
            await rig.events.append(session_id, make_event(number))
        await client.post(f"{API}/sessions/{session_id}/close")
        assert await reading == list(range(1, 21))


async def test_broken_stream_resumes_without_gap_or_duplicate_while_events_come(
    rig: Any, session_id: str, make_event: Any
) -> None:
    async def append_all() -> None:
        await asyncio.gather(
            *(rig.events.append(session_id, make_event(number)) for number in range(120))
        )
        await rig.registry.close(session_id, "done")

    async with rig.serving() as client:
        appending, seen, resume = asyncio.create_task(append_all()), [], {}
        for _ in range(4):  # break off after every tenth event
            async with streaming(client, session_id, **resume) as messages:
                for _ in range(10):
                    seen.append(int((await anext(messages))["id"]))
            resume = {"last-event-id": str(seen[-1])}
        seen += await ids_to_the_end(client, session_id, **resume)
        await appending
    assert seen == list(range(1, 121))


async def test_events_survive_a_restart_of_the_server_and_the_stream_goes_on(
    rig: Any, session_id: str, make_event: Any
) -> None:
    async with rig.serving() as client, streaming(client, session_id) as messages:
        await rig.events.append(session_id, make_event(0))
        assert (await anext(messages))["id"] == "1"
        rig.events.stop()
        assert [message["event"] async for message in messages] == ["server_stopping"]
    again = rig.restarted()
    async with again.serving() as client:
        await again.events.append(session_id, make_event(1))
        await again.registry.close(session_id, "done")
        assert await ids_to_the_end(client, session_id, **{"last-event-id": "1"}) == [2]
    again.store.close()


async def test_silent_stream_is_kept_alive_by_comments(rig: Any, session_id: str) -> None:
    async with (
        rig.serving(keepalive_s=0.01) as client,
        streaming(client, session_id) as messages,
    ):
        assert "comment" in await anext(messages)
        assert "comment" in await anext(messages)


async def test_stream_can_be_asked_for_by_parameter(rig: Any, session_id: str) -> None:
    await rig.registry.close(session_id, "done")
    async with rig.client() as client:
        answer = await client.get(f"{API}/sessions/{session_id}/events?stream=1")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == "event: session_closed\ndata: {}\n\n"


@pytest.mark.parametrize("wrong", ["x", "-1", "1.5", str(2**63), "1\u00e9"])
async def test_wrong_last_event_id_is_a_problem(rig: Any, session_id: str, wrong: str) -> None:
    async with rig.client() as client:
        answer = await client.get(
            f"{API}/sessions/{session_id}/events?stream=1",
            headers=[("last-event-id", wrong.encode())],
        )
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


async def test_stream_of_an_unknown_session_is_not_found(rig: Any) -> None:
    async with rig.client() as client:
        answer = await client.get(f"{API}/sessions/ses_{'0' * 26}/events?stream=1")
    assert answer.status_code == 404


async def test_reader_that_leaves_is_forgotten(rig: Any, session_id: str, make_event: Any) -> None:
    async with rig.serving(keepalive_s=0.01) as client:
        async with streaming(client, session_id) as messages:
            await anext(messages)
            while rig.events.subscriber_count(session_id) != 1:  # noqa: ASYNC110 - it is told late
                await asyncio.sleep(0.01)
        while rig.events.subscriber_count(session_id):  # noqa: ASYNC110 - the server notices
            await asyncio.sleep(0.01)
