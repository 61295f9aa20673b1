"""All 20 real recordings through one whole server: B3's published steps, frame for frame."""

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import msgspec
import zmq

from keystep_capture.samples import load_detection_rows

GOLDEN = Path(__file__).parents[1] / "golden" / "industreal"
RECORDINGS = json.loads((GOLDEN / "expected.json").read_text())

Steps = list[tuple[int, int]]


def published_steps(name: str) -> Steps:
    steps = RECORDINGS[name]["expected"]["b3"]["steps"]
    return [(step["frame"], step["id"]) for step in steps]


async def stream(live: Any, tools: Any, name: str) -> Any:
    """Stream a recording to its end; its source, with the session still open."""
    recording = RECORDINGS[name]
    frames = load_detection_rows(GOLDEN / f"{name}_pred.csv.gz", frame_count=recording["n_frames"])
    procedure = f"industreal-{recording['procedure']}"
    sender = await live.join(name, "detections", replay=True, procedure=procedure, method="b3")
    await live.send(sender, "detections", tools.detection_packets(frames))
    return sender


async def read_stream(live: Any, session: str) -> Steps:
    """A session's steps as server-sent events, to the stream's end."""
    steps, name = [], ""
    accept = {"accept": "text/event-stream"}
    url = f"/api/v1/sessions/{session}/events"
    async with live.rest.stream("GET", url, headers=accept, timeout=60) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: ") and name == "step_event":
                event = json.loads(line.removeprefix("data: "))
                steps.append((event["frame_idx"], event["step_id"]))
    assert name == "session_closed"
    return steps


class Follower:
    """A subscriber of the PUB socket, as another program would be."""

    def __init__(self, endpoint: str) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.SUB)
        self.socket.connect(endpoint)
        self.socket.subscribe(b"")
        self.messages: list[tuple[str, dict[str, Any]]] = []

    def read(self) -> list[tuple[str, dict[str, Any]]]:
        """All messages so far, as (topic, map)."""
        while self.socket.poll(0):
            topic, body = self.socket.recv_multipart()
            self.messages.append((topic.decode(), msgspec.msgpack.decode(body)))
        return self.messages

    def steps(self, session: str) -> Steps:
        return [
            (body["frame_idx"], body["step_id"])
            for topic, body in self.read()
            if topic == f"{session}/step_event"
        ]

    def states(self, session: str) -> list[str]:
        return [body["state"] for topic, body in self.read() if topic == f"{session}/session"]

    async def subscribed(self, live: Any) -> None:
        """Let sources join until one is heard of: from then on nothing is missed."""
        for number in itertools.count():
            if self.read():
                return
            await live.join(f"warm-up-{number}", "gaze")
            await asyncio.sleep(0.05)

    def close(self) -> None:
        self.context.destroy(linger=0)


async def test_twenty_sessions_at_once_each_give_the_published_steps(live: Any, tools: Any) -> None:
    senders = dict(
        zip(
            RECORDINGS,
            await asyncio.gather(*(stream(live, tools, name) for name in RECORDINGS)),
            strict=True,
        )
    )
    for name, sender in senders.items():
        await sender.finish(close=True)
        stats = await live.stats(sender)
        assert await live.steps(sender) == published_steps(name), name
        taken = stats["streams"]["detections"]
        assert (taken["packets"], taken["lost"]) == (RECORDINGS[name]["n_frames"], 0)
        assert (stats["dropped"], stats["refused"], stats["last_error"]) == ({}, {}, None)


async def test_followers_over_sse_and_pub_see_the_same_steps(live: Any, tools: Any) -> None:
    name = "03_main_0_1"
    follower = Follower(live.server.publish_endpoint)
    await follower.subscribed(live)
    opened = await live.rest.post(
        "/api/v1/sessions",
        json={
            "device_id": name,
            "kind": "guided",
            "procedure": "industreal-main",
            "method": "b3",
            "replay": True,
        },
    )
    session = opened.json()["id"]
    reading = asyncio.create_task(read_stream(live, session))
    sender = await stream(live, tools, name)
    assert sender.session == session
    await live.close_session(sender)
    assert await reading == published_steps(name) == await live.steps(sender)
    await tools.eventually(lambda: follower.states(session)[-1:] == ["closed"])
    assert follower.steps(session) == published_steps(name)
    assert follower.states(session) == ["open", "closed"]
    follower.close()


async def test_reader_that_comes_after_the_close_gets_every_step(live: Any, tools: Any) -> None:
    sender = await stream(live, tools, "19_main_0_1")
    await sender.finish(close=True)
    assert await read_stream(live, sender.session) == published_steps("19_main_0_1")
