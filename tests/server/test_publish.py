"""Key steps published over REST: a procedure and its bundle, used by the next session."""

from __future__ import annotations

import json
from typing import Any

import pytest

import guided_session as cart

API = "/api/v1"

pytestmark = pytest.mark.timeout(300)  # several sessions of real pictures


@pytest.fixture(scope="module")
def packets(learned: cart.Learned) -> list[cart.Packet]:
    return learned.packets


async def play(live: Any, packets: list[cart.Packet], **options: Any) -> Any:
    sender = await live.join("hl2", *cart.STREAMS, replay=True, **options)
    for _, stream, packet in packets:
        await live.send(sender, stream, [packet])
    return sender


async def publish(live: Any, session: str, **body: Any) -> Any:
    path = f"{API}/sessions/{session}/key-steps/publish"
    return await live.rest.post(path, json={"name": "cart", **body})


async def test_a_closed_sessions_key_steps_guide_the_next_session(
    live: Any, packets: list[cart.Packet]
) -> None:
    expert = await play(live, packets, kind="expert", task="cart")
    assert (await publish(live, expert.session)).status_code == 409
    await live.close_session(expert)
    listed = await live.get(f"/sessions/{expert.session}/key-steps")
    steps = listed["key_steps"]
    rename = {"op": "rename", "id": steps[0]["id"], "title": "Place the chassis"}
    path = f"{API}/sessions/{expert.session}/key-steps"
    assert (await live.rest.patch(path, json={"operations": [rename]})).status_code == 200

    answer = await publish(live, expert.session)
    assert answer.status_code == 201, answer.text
    published = answer.json()
    assert published["revision"] == 2
    titles = [step["title"] for step in published["procedure"]["steps"]]
    assert titles[0] == "Place the chassis"
    assert len(titles) == len(steps)
    procedures = (await live.get("/procedures"))["procedures"]
    assert procedures[-1] == published["procedure"]
    (bundle,) = (await live.get("/bundles"))["bundles"]
    assert bundle == await live.get(f"/bundles/{published['bundle_id']}")
    assert (bundle["procedures"], bundle["error"]) == (["cart"], None)
    assert [part["of"] for part in bundle["parts"]] == ["raw"]

    novice = await play(live, packets, procedure="cart")
    closed = await live.close_session(novice)
    assert (closed["method"], closed["procedure"]) == ("key_steps", "cart")
    events = (await live.get(f"/sessions/{novice.session}/events?limit=1000"))["events"]
    seen = [event["step_id"] for event in events if not event["retracted"]]
    assert len(seen) >= len(steps) - 2
    pictures = {step.stem for step in (live.data_dir / "procedures" / "cart").iterdir()}
    assert pictures == {str(number) for number in range(1, len(steps) + 1)}


async def test_a_running_session_keeps_its_bundle_when_another_is_published(
    live: Any, packets: list[cart.Packet]
) -> None:
    expert = await play(live, packets[: len(packets) // 2], kind="expert")
    await live.close_session(expert)
    first = (await publish(live, expert.session)).json()
    novice = await live.join("novice", *cart.STREAMS, replay=True, procedure="cart")
    steps = (await live.get(f"/sessions/{expert.session}/key-steps"))["key_steps"]
    drop = {"operations": [{"op": "drop", "id": steps[-1]["id"]}]}
    await live.rest.patch(f"{API}/sessions/{expert.session}/key-steps", json=drop)
    second = (await publish(live, expert.session)).json()
    assert second["bundle_id"] != first["bundle_id"]
    pinned = live.data_dir / "sessions" / str(novice.session) / "procedure.json"
    assert json.loads(pinned.read_text())["bundle"] == first["bundle_id"]
    again = (await publish(live, expert.session, revision=1)).json()
    assert again["bundle_id"] == first["bundle_id"]
    assert len((await live.get("/bundles"))["bundles"]) == 2


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"name": "../cart"}, 422, "name"),
        ({"name": "industreal-assy"}, 422, "built-in"),
        ({"name": "cart", "revision": 7}, 404, "revision 7"),
    ],
)
async def test_what_cannot_be_published_is_said_plainly(
    live: Any, packets: list[cart.Packet], body: dict[str, Any], status: int, words: str
) -> None:
    expert = await play(live, packets[:400], kind="expert")
    await live.close_session(expert)
    answer = await publish(live, expert.session, **body)
    assert answer.status_code == status
    assert words in answer.text


async def test_a_damaged_bundle_is_listed_with_what_is_wrong(
    live: Any, learned: cart.Learned
) -> None:
    learned.publish(live.data_dir)
    prototypes = live.data_dir / "bundles" / learned.bundle.id / "prototypes.npz"
    prototypes.write_bytes(prototypes.read_bytes()[:-1])
    (bundle,) = (await live.get("/bundles"))["bundles"]
    assert "prototypes.npz" in bundle["error"]
    answer = await live.rest.get(f"{API}/bundles/{learned.bundle.id}")
    assert answer.status_code == 422
    assert (await live.rest.get(f"{API}/bundles/{'0' * 64}")).status_code == 404
