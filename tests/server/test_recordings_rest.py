"""Recordings over REST: a whole server, real streams, real files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import pytest

from keystep_capture.recording import Recording
from keystep_capture.samples import find_sample, load_detection_rows

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


async def listed(live: Any, query: str) -> list[str]:
    page = await live.get(f"/recordings?{query}")
    return [one["session_id"] for one in page["recordings"]]


async def test_recordings_are_filtered_by_task_session_time_and_state(
    live: Any, coffee: Any
) -> None:
    first = await record(live, "a", coffee, task="bike")
    second = await record(live, "b", coffee, task="cart")
    third = await record(live, "c", coffee, task="bike", closed=False)
    assert await listed(live, "task=bike") == [third, first]
    assert await listed(live, f"session={second}") == [second]
    assert await listed(live, f"session={second}&task=bike") == []
    begun = {one: (await live.get(f"/sessions/{one}"))["created_at"] for one in (first, second)}
    assert await listed(live, f"from={begun[second]}") == [third, second]
    assert await listed(live, f"to={begun[second]}") == [first]
    assert await listed(live, f"from={begun[first]}&to={begun[second]}") == [first]
    assert await listed(live, "finished=true") == [second, first]
    assert await listed(live, "finished=false") == [third]
    part = live.server.ingest._parts.data_dir / "sessions" / first / "recording" / "part-000.mcap"
    part.write_bytes(part.read_bytes()[:-20])
    assert await listed(live, "finished=true") == [second]


async def test_recordings_are_listed_in_other_orders_page_by_page(live: Any, coffee: Any) -> None:
    made = [await record(live, "a", coffee[:size]) for size in (20, 40, 10, 30)]
    by_size = [made[1], made[3], made[0], made[2]]
    for sort, expected in (("oldest", made), ("newest", made[::-1]), ("largest", by_size)):
        assert await listed(live, f"sort={sort}") == expected
        found, query = [], f"sort={sort}&limit=3"
        while query:
            page = await live.get(f"/recordings?{query}")
            found += [one["session_id"] for one in page["recordings"]]
            cursor = page["next_cursor"]
            query = f"sort={sort}&limit=3&cursor={cursor}" if cursor else ""
        assert found == expected


@pytest.mark.parametrize(
    "query",
    [
        "from=yesterday",
        "from=2026-03-02T09:15:00",  # of which zone?
        "from=2026-03-03T00:00:00Z&to=2026-03-02T00:00:00Z",
        "task=",
        "kind=novice",
        "finished=perhaps",
        "health=splendid",
        "sort=prettiest",
        "session=ses_1",
        "limit=0",
        "cursor=3",
        "sort=largest&cursor=ses_01kx5m3v0g8q2m4t6w8y0a2c4e",
        "sort=oldest&cursor=5.ses_01kx5m3v0g8q2m4t6w8y0a2c4e",
        "begun_from=2026-03-03T00:00:00Z",
    ],
)
async def test_a_filter_that_is_none_is_a_problem(rig: Any, query: str) -> None:
    async with rig.client() as client:
        answer = await client.get(f"{API}/recordings?{query}")
    assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM)
    assert answer.json()["detail"]


async def test_what_the_client_has_is_not_sent_again(live: Any, coffee: Any) -> None:
    session = await record(live, "a", coffee)
    base = f"{API}/recordings"
    part = f"{base}/{session}/files/part-000.mcap"
    tags = {}
    for path in (base, f"{base}/{session}", part, f"{base}/{session}/thumbnail"):
        tag = tags[path] = (await live.rest.get(path)).headers["etag"]
        again = await live.rest.get(path, headers={"If-None-Match": f'"x", {tag}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        other = await live.rest.get(path, headers={"If-None-Match": '"x"'})
        assert (other.status_code, other.headers["etag"]) == (200, tag)
    for tag, status in ((tags[part], 206), ('"x"', 200)):
        answer = await live.rest.get(part, headers={"Range": "bytes=0-9", "If-Range": tag})
        assert answer.status_code == status
    await record(live, "b", coffee)
    changed = await live.rest.get(base, headers={"If-None-Match": tags[base]})
    assert changed.status_code == 200


async def test_a_recording_is_judged_once_and_found_by_its_verdict(live: Any, coffee: Any) -> None:
    session, other = await record(live, "a", coffee), await record(live, "b", coffee)
    assert await listed(live, "health=unknown") == [other, session]
    found = await live.get(f"/recordings/{session}/health")
    assert found["verdict"] in ("good", "usable")
    (rgb,) = [one for one in found["streams"] if one["stream"] == "rgb"]
    assert (rgb["packets"], rgb["lost"]) == (40, 0)
    assert (await live.get(f"/recordings/{session}"))["health"] == found["verdict"]
    assert await listed(live, f"health={found['verdict']}") == [session]
    assert await listed(live, "health=unknown") == [other]
    assert await live.get(f"/recordings/{session}/health") == found
    data_dir = live.server.ingest._parts.data_dir
    part = data_dir / "sessions" / session / "recording" / "part-000.mcap"
    part.write_bytes(part.read_bytes()[:-20])
    worse = await live.get(f"/recordings/{session}/health")
    assert any("was not closed" in reason for reason in worse["reasons"])
    assert str(data_dir) not in str(worse)


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


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


async def test_deletion_leaves_no_trace(live: Any, tools: Any, coffee: Any) -> None:
    data_dir = live.server.ingest._parts.data_dir
    other = await record(live, "other", coffee)
    before = contents(data_dir)
    sender = await live.join(
        "a",
        "rgb",
        "detections",
        kind="expert",
        replay=True,
        task="a-secret-task",
        procedure="industreal-assy",
        method="b3",
    )
    session = str(sender.session)
    sample = find_sample("industreal-03")
    rows = list(load_detection_rows(sample.detections_path))[690:800]
    await live.send(sender, "rgb", coffee)
    await live.send(sender, "detections", tools.detection_packets(rows))
    await sender.finish(close=True)
    for path in ("video", "thumbnail", "health"):
        answer = await live.rest.get(f"{API}/recordings/{session}/{path}")
        assert answer.status_code == 200
    assert (await live.get(f"/sessions/{session}/events"))["events"]
    steps = (await live.get(f"/sessions/{session}/key-steps"))["key_steps"]
    assert {step["source"] for step in steps} == {"extracted", "procedure"}
    made = contents(data_dir).keys() - before.keys()
    assert {Path(name).suffix for name in made} >= {".mcap", ".jpg", ".mp4", ".json", ".rows"}
    answer = await live.rest.delete(f"{API}/recordings/{session}")
    assert answer.status_code == 204
    after = contents(data_dir)
    assert after.keys() == before.keys()
    assert not list((data_dir / "sessions").glob(f"{session}*"))
    for name, content in after.items():
        for trace in (session, "a-secret-task", *(step["id"] for step in steps)):
            assert trace.encode() not in content, (name, trace)
    for path in (f"recordings/{session}", f"sessions/{session}", f"sessions/{session}/events"):
        gone = await live.rest.get(f"{API}/{path}")
        assert (gone.status_code, gone.headers["content-type"]) == (404, PROBLEM)
    assert await listed(live, "") == [other]
    assert (await live.rest.delete(f"{API}/recordings/{session}")).status_code == 404


async def test_what_is_still_being_recorded_is_not_exported_and_not_deleted(
    live: Any, coffee: Any
) -> None:
    session = await record(live, "a", coffee, closed=False)
    asked = (("GET", "/video"), ("GET", "/thumbnail"), ("GET", "/health"), ("DELETE", ""))
    for method, path in asked:
        answer = await live.rest.request(method, f"{API}/recordings/{session}{path}")
        assert (answer.status_code, answer.headers["content-type"]) == (409, PROBLEM), path
        assert "close it" in answer.json()["detail"]
    say = await live.rest.post(f"{API}/sessions/{session}/commands", json={"command": "pause"})
    assert say.status_code == 200
    assert (await live.rest.delete(f"{API}/recordings/{session}")).status_code == 409


async def test_a_recording_that_is_damaged_or_foreign_is_a_problem(live: Any, coffee: Any) -> None:
    session = await record(live, "a", coffee)
    data_dir = live.server.ingest._parts.data_dir
    part = data_dir / "sessions" / session / "recording" / "part-000.mcap"
    whole = part.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (b"", whole[:8], b"RIFF" * 99, whole[:9000], bytes(flipped)):
        part.write_bytes(content)
        for path in ("", "/health", "/thumbnail", "/video"):
            answer = await live.rest.get(f"{API}/recordings/{session}{path}")
            assert answer.status_code in (200, 404, 422), (len(content), path, answer.text)
            assert str(data_dir) not in answer.text
            if answer.status_code != 200:
                assert answer.headers["content-type"] == PROBLEM
        assert (await live.rest.get(f"{API}/recordings")).status_code == 200
    assert not list((data_dir / "sessions" / session / "exports").glob("unfinished*"))


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
