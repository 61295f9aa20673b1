from dataclasses import replace
from typing import Any

import pytest

from keystep_server.config import ServerConfig

TOKEN = "correct-horse-battery-staple-0123456789"


@pytest.fixture
def guarded(rig: Any) -> Any:
    values = {"data_dir": rig.config.data_dir, "rest_host": "0.0.0.0", "token": TOKEN}
    return replace(rig, config=ServerConfig(**values))


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN.upper()}",
        "Bearer \u00e9",
        TOKEN,
    ],
)
async def test_wrong_tokens_are_unauthorised(guarded: Any, authorization: str | None) -> None:
    headers = [] if authorization is None else [("authorization", authorization.encode())]
    async with guarded.client() as client:
        for path in ("/api/v1/sessions", "/metrics", "/readyz", "/openapi.json", "/none"):
            answer = await client.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.headers["content-type"] == "application/problem+json"
            assert TOKEN not in answer.text


async def test_right_token_opens_from_any_host(guarded: Any) -> None:
    async with guarded.client(authorization=f"bearer {TOKEN}", host="bench.example") as client:
        assert (await client.get("/api/v1/sessions")).status_code == 200
        made = await client.post("/api/v1/sessions", json={"device_id": "d", "kind": "expert"})
        assert made.status_code == 201


async def test_health_is_open_to_all(guarded: Any) -> None:
    async with guarded.client(host="bench.example") as client:
        assert (await client.get("/healthz")).json() == {"status": "alive"}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8040", 200),
        ("localhost", 200),
        ("[::1]:8040", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:8040", 403),
        ("localhost.evil.example", 403),
        ("[::1", 403),
        ("", 403),
        ("user@evil.example", 403),
    ],
)
async def test_only_loopback_names_reach_an_open_server(rig: Any, host: str, status: int) -> None:
    async with rig.client(host=host) as client:
        assert (await client.get("/api/v1/sessions")).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8040", 201),
        ("http://127.0.0.1:9000", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("http://[", 403),
    ],
)
async def test_pages_of_other_origins_change_nothing(rig: Any, origin: str, status: int) -> None:
    async with rig.client(origin=origin) as client:
        body = {"device_id": "d", "kind": "expert"}
        assert (await client.post("/api/v1/sessions", json=body)).status_code == status
    assert len(rig.store.sessions()) == (status == 201)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
async def test_bodies_a_form_could_send_are_refused(rig: Any, kind: str) -> None:
    async with rig.client() as client:
        body = b'{"device_id": "d", "kind": "expert"}'
        answer = await client.post("/api/v1/sessions", content=body, headers={"content-type": kind})
        assert answer.status_code == 415
        bare = await client.post("/api/v1/sessions", content=body)
        assert bare.status_code == 415
    assert rig.store.sessions() == []
