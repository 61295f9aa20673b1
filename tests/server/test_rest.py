"""REST over the application itself; test_rest_stream.py has a real server and its streams."""

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keystep_capture.errors import DataError, RefusedError
from keystep_server.storage import (
    KeyStep,
    KeyStepSource,
    KeyStepStatus,
    NewRevision,
    RevisionOrigin,
    key_step_id,
)

API = "/api/v1"
PROBLEM = "application/problem+json"
NEW = {"device_id": "hololens-07", "kind": "guided", "procedure": "toy-bike"}


async def create(client: Any, **changes: Any) -> str:
    answer = await client.post(f"{API}/sessions", json={**NEW, **changes})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"{API}/sessions/{answer.json()['id']}"
    return str(answer.json()["id"])


def assert_problem(answer: Any, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    assert {"type", "title", "status", "detail"} <= answer.json().keys()
    assert answer.json()["status"] == status


async def test_session_lives_from_create_to_close(rig: Any) -> None:
    async with rig.client() as client:
        session_id = await create(client)
        shown = (await client.get(f"{API}/sessions/{session_id}")).json()
        assert (shown["state"], shown["epoch"], shown["closed_at"]) == ("open", 0, None)
        assert shown["created_at"].endswith("Z")
        stats = (await client.get(f"{API}/sessions/{session_id}/stats")).json()
        assert stats["stats"] == {"rgb": {"packets": 3}}
        for _ in range(2):
            closed = (await client.post(f"{API}/sessions/{session_id}/close")).json()
            assert (closed["state"], closed["close_reason"]) == ("closed", "closed over REST")
    assert rig.closed == [session_id]


async def test_a_session_is_a_replay_or_recorded_by_true_and_by_no_word(rig: Any) -> None:
    async with rig.client() as client:
        for replay in ("yes", "true", 1, None):
            assert_problem(await client.post(f"{API}/sessions", json=NEW | {"replay": replay}), 422)
        for record in ("yes", "true", 1):
            assert_problem(await client.post(f"{API}/sessions", json=NEW | {"record": record}), 422)
        session_id = await create(client, replay=True)
        assert (await client.get(f"{API}/sessions/{session_id}")).json()["replay"] is True


async def test_second_open_session_of_a_device_conflicts_and_is_named(rig: Any) -> None:
    async with rig.client() as client:
        session_id = await create(client)
        answer = await client.post(f"{API}/sessions", json=NEW)
        assert_problem(answer, 409)
        assert session_id in answer.json()["detail"]
        assert_problem(await client.post(f"{API}/sessions", json={**NEW, "procedure": "x"}), 404)


async def test_sessions_and_devices_are_paged_and_filtered(rig: Any) -> None:
    async with rig.client() as client:
        made = [await create(client, device_id=f"d{n}") for n in range(5)]
        await client.post(f"{API}/sessions/{made[0]}/close")
        seen, cursor = [], {}
        while True:
            page = (await client.get(f"{API}/sessions", params={"limit": 2, **cursor})).json()
            seen += [session["id"] for session in page["sessions"]]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert seen == made[::-1]
        shut = (await client.get(f"{API}/sessions?state=closed")).json()["sessions"]
        assert [session["id"] for session in shut] == made[:1]
        mine = (await client.get(f"{API}/sessions?device=d3")).json()["sessions"]
        assert [session["id"] for session in mine] == [made[3]]
        first = (await client.get(f"{API}/devices?limit=4")).json()
        rest = (await client.get(f"{API}/devices?cursor={first['next_cursor']}")).json()
        assert [device["id"] for device in rest["devices"]] == ["d4"]


async def test_events_are_listed_after_an_ordinal_with_exact_times(
    rig: Any, make_event: Any
) -> None:
    async with rig.client() as client:
        session_id = await create(client)
        for number in range(5):
            await rig.events.append(session_id, make_event(number))
        page = (await client.get(f"{API}/sessions/{session_id}/events?after=1&limit=2")).json()
        assert [event["ordinal"] for event in page["events"]] == [2, 3]
        assert page["next_after"] == 3
        assert page["events"][0]["device_time_ns"] == str(2**60 + 1)
        rest = (await client.get(f"{API}/sessions/{session_id}/events?after=3")).json()
        assert ([event["ordinal"] for event in rest["events"]], rest["next_after"]) == (
            [4, 5],
            None,
        )


def store_key_steps(rig: Any, session_id: str, image: bytes | None) -> list[str]:
    source = KeyStepSource.EXTRACTED
    path = rig.config.data_dir / "exemplars"
    path.mkdir(exist_ok=True)
    if image is not None:
        (path / "0.jpg").write_bytes(image)
    steps = [
        KeyStep(
            id=key_step_id(session_id, source, position),
            session_id=session_id,
            position=position,
            title=f"Key step {position}",
            status=KeyStepStatus.PROPOSED,
            source=source,
            start_s=1.5,
            start_device_time_ns=2**60 + 1,
            confidence=0.8,
            exemplar_path=f"exemplars/{position}.jpg" if position < 2 else None,
            exemplar_size=(640, 360) if position < 2 else None,
        )
        for position in range(3)
    ]
    made = NewRevision(origin=RevisionOrigin.CLOSING, key_steps=tuple(steps))
    rig.store.revisions.add(session_id, made, datetime.now(UTC))
    return [step.id for step in steps]


def picture(width: int = 640, height: int = 360) -> bytes:
    gradient = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    return cv2.imencode(".jpg", gradient.astype(np.uint8))[1].tobytes()


async def test_key_steps_have_one_schema_and_pictures_in_any_size(rig: Any) -> None:
    async with rig.client() as client:
        session_id, original = await create(client), picture()
        store_key_steps(rig, session_id, original)
        steps = (await client.get(f"{API}/sessions/{session_id}/key-steps")).json()["key_steps"]
        assert [step["position"] for step in steps] == [0, 1, 2]
        assert (steps[0]["start_device_time_ns"], steps[0]["end_s"]) == (str(2**60 + 1), None)
        assert (steps[0]["exemplar"]["width"], steps[2]["exemplar"]) == (640, None)
        url = steps[0]["exemplar"]["url"]
        for asked, expected in ((16, 16), (320, 320), (640, 640), (1920, 640)):
            answer = await client.get(url, params={"width": asked})
            assert answer.headers["content-type"] == "image/jpeg"
            decoded = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
            assert decoded.shape[:2] == (expected * 360 // 640, expected)
        assert (await client.get(url)).content == original


async def test_pictures_are_cached_by_their_tag(rig: Any) -> None:
    async with rig.client() as client:
        session_id = await create(client)
        step, *_ = store_key_steps(rig, session_id, picture())
        url = f"{API}/sessions/{session_id}/key-steps/{step}/image"
        tag = (await client.get(f"{url}?width=320")).headers["etag"]
        again = await client.get(f"{url}?width=320", headers={"if-none-match": f'W/"x", {tag}'})
        assert (again.status_code, again.content) == (304, b"")
        other = await client.get(f"{url}?width=321", headers={"if-none-match": tag})
        assert other.status_code == 200
        store_key_steps(rig, session_id, picture(height=400))
        changed = await client.get(f"{url}?width=320", headers={"if-none-match": tag})
        assert changed.status_code == 200


async def test_pictures_that_are_not_there_are_not_found(rig: Any) -> None:
    async with rig.client() as client:
        session_id = await create(client)
        steps = store_key_steps(rig, session_id, b"no picture")
        for step in (*steps, "kst_" + "0" * 32):
            url = f"{API}/sessions/{session_id}/key-steps/{step}/image"
            assert_problem(await client.get(url), 404)
        for width in ("15", "1921", "x"):
            assert_problem(await client.get(f"{url}?width={width}"), 422)


@pytest.mark.parametrize("path", ["../outside.jpg", "/etc/hostname", "a/../../outside.jpg", "a\0b"])
def test_exemplars_outside_the_data_directory_are_refused(path: str) -> None:
    with pytest.raises(DataError, match="exemplar_path"):
        KeyStep(
            id="kst",
            session_id="ses",
            position=0,
            title="",
            status=KeyStepStatus.PROPOSED,
            source=KeyStepSource.EXTRACTED,
            exemplar_path=path,
            exemplar_size=(1, 1),
        )


async def test_procedures_are_listed_with_their_steps(rig: Any) -> None:
    step = {"id": 7, "title": "Fit the front wheel", "component": "wheel", "kind": "completed"}
    document = {
        "keystep_procedure": 1, "name": "toy-bike", "task": "assembly", "components": ["wheel"],
        "initial_state": [0], "steps": [step],
    }  # fmt: skip
    folder = rig.config.resolved_procedures_dir
    folder.mkdir()
    (folder / "toy-bike.json").write_text(json.dumps(document))
    (folder / "broken.json").write_text("{")  # is left out
    async with rig.client() as client:
        procedures = (await client.get(f"{API}/procedures")).json()["procedures"]
    assert [each["name"] for each in procedures] == [
        "industreal-assy", "industreal-main", "toy-bike"
    ]  # fmt: skip
    assert procedures[-1]["steps"] == [{"step_id": 7, "title": "Fit the front wheel"}]


async def test_readiness_tells_what_is_missing(rig: Any) -> None:
    async with rig.client() as client:
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (200, True)
        rig.ready = False
        missing = await client.get("/readyz")
    assert missing.status_code == 503
    assert [(c["name"], c["ok"]) for c in missing.json()["checks"]] == [
        ("database", True),
        ("models", False),
    ]


async def test_metrics_count_requests_by_route_template(rig: Any) -> None:
    rig.metrics.packets_dropped("rgb", "stale", 3)
    async with rig.client() as client:
        session_id = await create(client)
        await client.get(f"{API}/sessions/{session_id}")
        await client.get("/guess/1")
        text = (await client.get("/metrics")).text
    template = f"{API}/sessions/{{session_id}}"
    for line in (
        f'keystep_rest_requests_total{{method="GET",route="{template}",status="200"}} 1.0',
        'keystep_rest_requests_total{method="any",route="unmatched",status="404"} 1.0',
        'keystep_dropped_packets_total{reason="stale",stream="rgb"} 3.0',
        "keystep_sessions_open 1.0",
    ):
        assert line in text
    assert session_id not in text


async def test_every_kind_of_error_is_a_problem(rig: Any) -> None:
    async with rig.client() as client:
        session_id = await create(client)
        assert_problem(await client.get("/none"), 404)
        assert_problem(await client.get(f"{API}/sessions/"), 404)
        assert_problem(await client.get(f"{API}/sessions/ses_{'0' * 26}"), 404)
        wrong_method = await client.delete(f"{API}/sessions/{session_id}")
        assert_problem(wrong_method, 405)
        assert "GET" in wrong_method.headers["allow"]
        invalid = await client.post(f"{API}/sessions", json={**NEW, "kind": "x", "colour": 1})
        assert_problem(invalid, 422)
        assert {e["where"] for e in invalid.json()["errors"]} == {"body.kind", "body.colour"}


async def test_errors_of_the_tree_and_unexpected_ones_are_mapped(rig: Any) -> None:
    app_errors = {RefusedError("go away"): 403, ValueError("the secret is 42"): 500}
    for error, status in app_errors.items():

        def refuse(_name: str, error: Exception = error) -> None:
            raise error

        rig.validate_procedure = refuse
        async with rig.client() as client:
            answer = await client.post(f"{API}/sessions", json=NEW)
        assert_problem(answer, status)
        assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 422),
        (b"", 422),
        (b"[" * 60_000, 400),
        (b'{"device_id":' * 4_000, 400),
        (b"1" * 10_000, 400),
        (b'{"device_id": "\xff"}', 400),
        (b'{"device_id": "\\ud800", "kind": "expert"}', 422),
        (b'{"\\ud800": "x"}', 422),
        (b'{"device_id": "d", "kind": "expert", "time_scale": NaN}', 422),
        (b'{"device_id": "d", "kind": "expert", "time_scale": 1e999}', 422),
        (b'{"device_id": "d", "kind": "expert", "task": "\\u0000"}', 422),
        (b" " * 65_537, 413),
    ],
)
async def test_hostile_bodies_are_problems(rig: Any, body: bytes, status: int) -> None:
    async with rig.client() as client:
        headers = {"content-type": "application/json"}
        answer = await client.post(f"{API}/sessions", content=body, headers=headers)
        assert_problem(answer, status)
    assert rig.store.sessions() == []


async def test_body_of_unsaid_length_is_cut_off_at_the_limit(rig: Any) -> None:
    async def chunks() -> Any:
        for _ in range(70):
            yield b" " * 1024

    async with rig.client() as client:
        headers = {"content-type": "application/json"}
        answer = await client.post(f"{API}/sessions", content=chunks(), headers=headers)
        assert_problem(answer, 413)


TEXT = st.text(st.characters(codec="utf-8"), max_size=40)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(session_id=TEXT, step=TEXT, name=TEXT, value=TEXT, body=st.none() | TEXT)
async def test_no_path_or_parameter_gives_an_internal_error(
    rig: Any, session_id: str, step: str, name: str, value: str, body: str | None
) -> None:
    parameters = dict.fromkeys(("limit", "cursor", "after", "width", "state", "device"), value)
    base = f"{API}/sessions/{quote(session_id, safe='')}"
    paths = [base, f"{base}/events", f"{base}/key-steps/{quote(step, safe='')}/image"]
    async with rig.client() as client:
        for path in (*paths, f"{API}/sessions", f"{API}/devices"):
            answer = await client.get(path, params={**parameters, name: value})
            assert answer.status_code < 500
            if answer.status_code >= 400:
                assert_problem(answer, answer.status_code)
        made = await client.post(
            f"{API}/sessions", json={"device_id": value, "kind": "guided", "task": body}
        )
        assert made.status_code in (201, 409, 422)


async def test_openapi_gives_an_example_of_every_schema(rig: Any) -> None:
    async with rig.client() as client:
        spec = (await client.get("/openapi.json")).json()
    schemas = spec["components"]["schemas"]
    objects = {name for name, schema in schemas.items() if schema["type"] == "object"}
    without = {name for name in objects if not schemas[name].get("examples")}
    assert without == set()
    assert f"{API}/sessions/{{session_id}}/key-steps" in spec["paths"]
    for path in spec["paths"].values():
        for operation in path.values():
            invalid = operation["responses"].get("422", {"content": {PROBLEM: {}}})
            assert set(invalid["content"]) == {PROBLEM}


async def test_docs_page_loads_nothing_from_anywhere(rig: Any) -> None:
    async with rig.client() as client:
        answer = await client.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<script" not in answer.text
    assert "://" not in answer.text.split("<h2>")[0]
    assert "/api/v1/sessions/{session_id}/key-steps" in answer.text
    assert "Fit the front wheel" in answer.text


async def test_a_misspelt_parameter_is_refused_and_the_known_ones_named(rig: Any) -> None:
    async with rig.client() as client:
        answer = await client.get("/api/v1/sessions?device_id=x&state=open")
        assert answer.status_code == 422
        assert "device_id" in answer.text
        assert "cursor, device, limit, state" in answer.text
        assert (await client.get("/api/v1/sessions?device=x&state=open")).status_code == 200
