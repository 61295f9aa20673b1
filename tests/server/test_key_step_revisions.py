"""Key steps over REST: revisions, edits, ETags, clips; a whole server and a real video."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import av
import cv2
import httpx
import numpy as np
import pytest

API = "/api/v1"
PROBLEM = "application/problem+json"


async def record(live: Any, device: str, coffee: Any) -> str:
    """A closed session of a real video, with the key steps of its closing."""
    sender = await live.join(device, "rgb", kind="expert", replay=True)
    await live.send(sender, "rgb", coffee)
    await sender.finish(close=True)
    return str(sender.session)


def path(session: str, more: str = "") -> str:
    return f"{API}/sessions/{session}/key-steps{more}"


async def patch(live: Any, session: str, *operations: Any, **headers: str) -> httpx.Response:
    answer: httpx.Response = await live.rest.patch(
        path(session), json={"operations": list(operations)}, headers=headers
    )
    return answer


def titles(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [step["title"] for step in answer.json()["key_steps"]]


async def test_closing_makes_the_first_revision_and_edits_make_more(live: Any, coffee: Any) -> None:
    session = await record(live, "a", coffee)
    first = await live.rest.get(path(session))
    found, steps = first.json()["revision"], first.json()["key_steps"]
    assert (found["number"], found["origin"], found["parent"]) == (1, "closing", None)
    assert found["provenance"]["model_sha256"]
    assert found["timeline"][0]["device_time_ns"] == str(coffee[0]["device_time_ns"])
    renamed = await patch(live, session, {"op": "rename", "id": steps[0]["id"], "title": "Grind"})
    assert titles(renamed)[0] == "Grind"
    assert renamed.json()["revision"]["changes"] == [
        {"op": "rename", "id": steps[0]["id"], "title": "Grind"}
    ]
    dropped = await patch(live, session, {"op": "drop", "id": steps[1]["id"]})
    assert titles(dropped) == ["Grind", *(step["title"] for step in steps[2:])]
    revisions = (await live.get(f"/sessions/{session}/key-steps/revisions"))["revisions"]
    assert [(one["number"], one["origin"], one["parent"]) for one in revisions] == [
        (1, "closing", None),
        (2, "edit", 1),
        (3, "edit", 2),
    ]
    old = await live.rest.get(path(session, "?revision=1"))
    assert titles(old) == [step["title"] for step in steps]
    gone = await live.rest.get(path(session, f"/{steps[1]['id']}/image"))
    assert (gone.status_code, gone.headers["content-type"]) == (404, PROBLEM)
    picture = old.json()["key_steps"][1]["exemplar"]["url"]
    assert picture.endswith("?revision=1")
    assert (await live.rest.get(picture)).status_code == 200


async def test_the_tag_guards_against_edits_that_were_not_seen(live: Any, coffee: Any) -> None:
    session = await record(live, "a", coffee)
    seen = await live.rest.get(path(session))
    tag, one = seen.headers["etag"], seen.json()["key_steps"][0]["id"]
    again = await live.rest.get(path(session), headers={"If-None-Match": f'W/{tag}, "x"'})
    assert (again.status_code, again.content) == (304, b"")
    confirmed = await patch(live, session, {"op": "confirm", "id": one}, **{"If-Match": tag})
    assert confirmed.json()["key_steps"][0]["status"] == "confirmed"
    assert confirmed.headers["etag"] != tag
    current = await live.rest.get(path(session))
    assert (current.headers["etag"], current.content) == (
        confirmed.headers["etag"],
        confirmed.content,
    )
    late = await patch(live, session, {"op": "drop", "id": one}, **{"If-Match": tag})
    assert (late.status_code, late.headers["content-type"]) == (412, PROBLEM)
    assert "revision 2" in late.json()["detail"]
    for header in (confirmed.headers["etag"], "*"):
        title = {"op": "rename", "id": one, "title": f"By {header[:5]}"}
        assert (await patch(live, session, title, **{"If-Match": header})).status_code in (200,)
        confirmed = await live.rest.get(path(session))
    weak = f"W/{confirmed.headers['etag']}"
    assert (
        await patch(live, session, {"op": "drop", "id": one}, **{"If-Match": weak})
    ).status_code == 412


async def test_edits_at_the_same_time_are_all_kept(live: Any, coffee: Any) -> None:
    session = await record(live, "a", coffee)
    steps = (await live.get(f"/sessions/{session}/key-steps"))["key_steps"]
    answers = await asyncio.gather(
        *(
            patch(live, session, {"op": "rename", "id": step["id"], "title": f"T{number}"})
            for number, step in enumerate(steps)
        )
    )
    assert {answer.status_code for answer in answers} == {200}
    now = await live.rest.get(path(session))
    assert titles(now) == [f"T{number}" for number in range(len(steps))]
    assert now.json()["revision"]["number"] == 1 + len(steps)


async def test_a_split_shows_the_picture_of_its_time(live: Any, coffee: Any) -> None:
    session = await record(live, "a", coffee)
    step = max(
        (await live.get(f"/sessions/{session}/key-steps"))["key_steps"],
        key=lambda one: one["end_s"] - one["start_s"],
    )
    at_s = round((step["start_s"] + step["end_s"]) / 2, 3)
    answer = await patch(live, session, {"op": "split", "id": step["id"], "at_s": at_s})
    assert answer.status_code == 200, answer.text
    halves = [one for one in answer.json()["key_steps"] if at_s in (one["start_s"], one["end_s"])]
    times = {packet["device_time_ns"] for packet in coffee}
    for half in halves:
        assert int(half["exemplar_device_time_ns"]) in times
        assert half["start_s"] <= half["exemplar_s"] <= half["end_s"]
        shown = await live.rest.get(half["exemplar"]["url"])
        image = cv2.imdecode(np.frombuffer(shown.content, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        assert image.shape == (360, 640, 3)


async def test_a_clip_begins_at_a_key_frame_and_shows_the_key_step(live: Any, coffee: Any) -> None:
    session = await record(live, "a", coffee)
    key_frames = [p["device_time_ns"] for p in coffee if p["keyframe"]]
    for step in (await live.get(f"/sessions/{session}/key-steps"))["key_steps"]:
        answer = await live.rest.get(step["clip_url"])
        assert answer.headers["content-type"] == "video/mp4"
        start_ns, end_ns = int(step["start_device_time_ns"]), int(step["end_device_time_ns"])
        first_ns = max(time_ns for time_ns in key_frames if time_ns <= start_ns)
        shown = [p for p in coffee if first_ns <= p["device_time_ns"] <= end_ns]
        with av.open(io.BytesIO(answer.content)) as video:
            assert sum(1 for _ in video.decode(video=0)) == len(shown)
        lead_in_s = (start_ns - first_ns) / 1e9
        assert float(answer.headers["keystep-lead-in-s"]) == pytest.approx(lead_in_s, abs=1e-3)
        part = await live.rest.get(step["clip_url"], headers={"Range": "bytes=10-99"})
        assert (part.status_code, part.content) == (206, answer.content[10:100])
        past = await live.rest.get(step["clip_url"], headers={"Range": "bytes=99999999-"})
        assert past.status_code == 416


async def test_an_edit_that_does_not_fit_changes_nothing(live: Any, coffee: Any) -> None:
    session = await record(live, "a", coffee)
    before = await live.rest.get(path(session))
    key = before.json()["key_steps"][0]["id"]
    fits = {"op": "confirm", "id": key}
    for wrong in (
        {"op": "paint"},
        {"op": "rename", "id": "kst_" + "0" * 32, "title": "x"},
        {"op": "rename", "id": key, "title": "x", "colour": 1},
        {"op": "split", "id": key, "at_s": 1e6},
        {"op": "add", "title": "x", "start_s": -1, "end_s": 2},
    ):
        answer = await patch(live, session, fits, wrong)
        assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM), wrong
        assert "operations" in answer.json()["detail"]
    assert (await patch(live, session)).status_code == 422
    assert (await live.rest.get(path(session))).content == before.content


async def test_there_is_nothing_to_edit_before_an_extraction(live: Any) -> None:
    made = await live.rest.post(f"{API}/sessions", json={"device_id": "c", "kind": "expert"})
    session = made.json()["id"]
    answer = await patch(live, session, {"op": "drop", "id": "kst_" + "0" * 32})
    assert (answer.status_code, answer.headers["content-type"]) == (404, PROBLEM)
    assert (await live.get(f"/sessions/{session}/key-steps")) == {
        "key_steps": [],
        "revision": None,
    }
    assert (await live.get(f"/sessions/{session}/key-steps/revisions")) == {"revisions": []}
