"""Recordings over REST: a whole server, real streams, real files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import pytest

from keystep_capture.recording import Recording

API = "/api/v1"
PROBLEM = "application/problem+json"


async def record(
    live: Any, device: str, coffee: Any, *, closed: bool = True, **options: Any
) -> str:
    sender = await live.join(device, "rgb", **{"kind": "expert", "replay": True, **options})
    await live.send(sender, "rgb", coffee[:40])
    if closed:
        await sender.finish(close=True)
    else:
        await live.worked_off(sender, "rgb", 40)
    return str(sender.session)


async def test_recordings_are_listed_newest_first_paged_and_filtered(
    live: Any, coffee: Any
) -> None:
    made = [
        await record(live, "a", coffee),
        await record(live, "b", coffee, kind="guided"),
        await record(live, "a", coffee),
    ]
    empty = await live.rest.post(f"{API}/sessions", json={"device_id": "c", "kind": "expert"})
    assert empty.status_code == 201  # nothing came of it: no recording

    async def listed(query: str) -> list[str]:
        page = await live.get(f"/recordings?{query}")
        return [one["session_id"] for one in page["recordings"]]

    assert await listed("") == made[::-1]
    assert await listed("device=a") == [made[2], made[0]]
    assert await listed("kind=guided") == [made[1]]
    first = await live.get("/recordings?limit=2")
    assert first["next_cursor"] == made[1]
    assert await listed(f"limit=2&cursor={first['next_cursor']}") == [made[0]]
    assert (await live.rest.get(f"{API}/recordings?devcie=a")).status_code == 422


async def test_a_recording_is_opened_and_its_files_come_whole_or_in_ranges(
    live: Any, coffee: Any, tmp_path: Path
) -> None:
    session = await record(live, "a", coffee)
    shown = await live.get(f"/recordings/{session}")
    assert shown["finished"]
    assert shown["damage"] == []
    assert {"stream": "rgb", "epoch": 1, "encodings": ["h264"]} in shown["streams"]
    (part,) = shown["files"]
    whole = await live.rest.get(part["url"])
    assert len(whole.content) == part["size_bytes"] == shown["size_bytes"]
    copy = tmp_path / "part-000.mcap"
    copy.write_bytes(whole.content)
    with Recording(copy) as recording:
        assert [p.payload for p in recording.packets(("rgb",))] == [
            packet["payload"] for packet in coffee[:40]
        ]
    for asked, start, end in (
        ("bytes=100-199", 100, 200),
        ("bytes=100-", 100, None),
        ("bytes=-50", -50, None),
    ):
        answer = await live.rest.get(part["url"], headers={"Range": asked})
        assert answer.status_code == 206
        assert answer.content == whole.content[start:end]
    missing = await live.rest.get(part["url"], headers={"Range": "bytes=99999999999-"})
    assert missing.status_code == 416
    assert missing.headers["content-range"] == f"bytes */{part['size_bytes']}"
    assert missing.headers["content-type"] == PROBLEM


async def test_the_video_is_the_recorded_one_and_has_a_thumbnail(live: Any, coffee: Any) -> None:
    session = await record(live, "a", coffee)
    answer = await live.rest.get(f"{API}/recordings/{session}/video")
    assert answer.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(answer.content)) as video:
        assert sum(1 for _ in video.decode(video=0)) == 40
    head = await live.rest.get(f"{API}/recordings/{session}/video", headers={"Range": "bytes=0-99"})
    assert (head.status_code, head.content) == (206, answer.content[:100])
    picture = await live.rest.get(f"{API}/recordings/{session}/thumbnail")
    assert picture.headers["content-type"] == "image/jpeg"
    with av.open(io.BytesIO(picture.content)) as image:
        (frame,) = image.decode(video=0)
    assert (frame.width, frame.height) == (320, 180)
    absent = await live.rest.get(f"{API}/recordings/{session}/video?epoch=7")
    assert (absent.status_code, absent.headers["content-type"]) == (404, PROBLEM)


async def test_deletion_leaves_no_trace(live: Any, coffee: Any) -> None:
    session = await record(live, "a", coffee)
    await live.rest.get(f"{API}/recordings/{session}/video")
    data_dir = live.server.ingest._parts.data_dir
    assert (data_dir / "sessions" / session).is_dir()
    answer = await live.rest.delete(f"{API}/recordings/{session}")
    assert answer.status_code == 204
    left = [path for path in data_dir.rglob("*") if session in str(path)]
    assert left == []
    for path in (f"recordings/{session}", f"sessions/{session}", f"sessions/{session}/events"):
        gone = await live.rest.get(f"{API}/{path}")
        assert (gone.status_code, gone.headers["content-type"]) == (404, PROBLEM)
    assert (await live.get("/recordings"))["recordings"] == []
    assert (await live.rest.delete(f"{API}/recordings/{session}")).status_code == 404


async def test_what_is_still_being_recorded_is_not_exported_and_not_deleted(
    live: Any, coffee: Any
) -> None:
    session = await record(live, "a", coffee, closed=False)
    for method, path in (("GET", "/video"), ("GET", "/thumbnail"), ("DELETE", "")):
        answer = await live.rest.request(method, f"{API}/recordings/{session}{path}")
        assert (answer.status_code, answer.headers["content-type"]) == (409, PROBLEM), path


@pytest.mark.parametrize(
    "path",
    [
        "ses_01kx5m3v0g8q2m4t6w8y0a2c4e",
        "ses_01kx5m3v0g8q2m4t6w8y0a2c4e/video",
        "ses_01kx5m3v0g8q2m4t6w8y0a2c4e/files/part-000.mcap",
    ],
)
async def test_a_recording_that_is_not_there_is_a_problem(live: Any, path: str) -> None:
    answer = await live.rest.get(f"{API}/recordings/{path}")
    assert (answer.status_code, answer.headers["content-type"]) == (404, PROBLEM)


async def test_a_deletion_that_was_interrupted_is_finished_at_the_next_start(
    tools: Any, tmp_path: Path, coffee: Any
) -> None:
    async with tools.live_server(tmp_path) as live:
        session = await record(live, "a", coffee)
    (tmp_path / "deleting").mkdir()
    (tmp_path / "sessions" / session).rename(tmp_path / "deleting" / session)
    async with tools.live_server(tmp_path) as live:
        assert (await live.rest.get(f"{API}/sessions/{session}")).status_code == 404
    assert list((tmp_path / "deleting").iterdir()) == []
