import asyncio
from datetime import timedelta
from typing import Any

import pytest

from keystep_capture.errors import ConfigError, DataError, ModelError, NotFoundError, StateError
from keystep_server.sessions import check_session_id, new_session_id
from keystep_server.storage import Session, SessionKind, SessionState


async def open_session(rig: Any, device_id: str = "hololens-07") -> Session:
    session: Session = await rig.registry.create(device_id=device_id, kind=SessionKind.EXPERT)
    return session


def test_session_ids_sort_by_time_and_pass_their_own_check(start: Any) -> None:
    ids = [new_session_id(start + timedelta(milliseconds=n)) for n in range(50)]
    assert ids == sorted(ids)
    assert [check_session_id(session_id) for session_id in ids] == ids
    for wrong in ("", ids[0] + "\n", ids[0].upper(), "ses_" + "i" * 26, "../" + ids[0]):
        with pytest.raises(NotFoundError):
            check_session_id(wrong)


async def test_device_keeps_its_session_across_connections(rig: Any) -> None:
    made = await open_session(rig)
    joined = await rig.registry.session_for_device(
        device_id=made.device_id, kind=SessionKind.GUIDED, client="bridge 1"
    )
    assert joined == made
    assert rig.store.devices()[0].client == "bridge 1"
    with pytest.raises(StateError, match=made.id):
        await open_session(rig)


async def test_hellos_at_once_share_one_new_session(rig: Any) -> None:
    hello = {"device_id": "d", "kind": SessionKind.GUIDED}
    joined = await asyncio.gather(*(rig.registry.session_for_device(**hello) for _ in range(8)))
    assert len({session.id for session in joined}) == 1


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"device_id": "a b"}, DataError),
        ({"device_id": ""}, DataError),
        ({"task": "x" * 201}, DataError),
        ({"task": "a\x00b"}, DataError),
        ({"procedure": "none"}, NotFoundError),
        ({"procedure": "toy-bike", "method": "b9"}, ConfigError),
        ({"method": "b3"}, DataError),
        ({"time_scale": float("inf"), "replay": True}, DataError),
        ({"time_scale": 2.0}, DataError),
    ],
)
async def test_sessions_that_make_no_sense_are_refused(
    rig: Any, wrong: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await rig.registry.create(**{"device_id": "d", "kind": SessionKind.GUIDED, **wrong})
    assert rig.store.sessions() == []


async def test_epochs_count_up_until_the_session_closes(rig: Any) -> None:
    made = await open_session(rig)
    assert [await rig.registry.begin_epoch(made.id) for _ in range(3)] == [1, 2, 3]
    await rig.registry.close(made.id, "done")
    with pytest.raises(StateError):
        await rig.registry.begin_epoch(made.id)


async def test_overlapping_closes_drain_once_and_the_session_is_open_until_then(rig: Any) -> None:
    made, states = await open_session(rig), []
    draining, drained = asyncio.Event(), asyncio.Event()

    async def drain(session_id: str) -> None:
        states.append((await rig.registry.get(session_id)).state)
        draining.set()
        await drained.wait()

    rig.on_close = drain
    closing = [asyncio.create_task(rig.registry.close(made.id, f"{n}")) for n in range(5)]
    await draining.wait()
    closing[0].cancel()
    with pytest.raises(StateError, match="being closed"):
        await rig.registry.begin_epoch(made.id)
    joining = asyncio.create_task(
        rig.registry.session_for_device(device_id=made.device_id, kind=SessionKind.GUIDED)
    )
    drained.set()
    closed = await asyncio.gather(*closing[1:])
    assert rig.closed == [made.id]
    assert states == [SessionState.OPEN]
    assert {(s.state, s.close_reason) for s in closed} == {(SessionState.CLOSED, "0")}
    assert (await joining).id != made.id
    assert await rig.registry.close(made.id, "again") == closed[0]
    assert rig.closed == [made.id]


@pytest.mark.parametrize(
    ("failure", "told"),
    [(ModelError("no encoder in the bundle"), "no encoder"), (KeyError("secret"), "KeyError")],
)
async def test_session_closes_even_if_draining_fails_and_says_why(
    rig: Any, failure: Exception, told: str
) -> None:
    made = await open_session(rig)

    async def fail(_session_id: str) -> None:
        raise failure

    rig.on_close = fail
    closed = await rig.registry.close(made.id, "done")
    assert closed.state is SessionState.CLOSED
    assert told in closed.error
    assert "secret" not in closed.error


async def test_paused_session_is_still_the_devices_own(rig: Any) -> None:
    made = await open_session(rig)
    assert (await rig.registry.set_paused(made.id, True)).state is SessionState.PAUSED
    with pytest.raises(StateError, match="paused session"):
        await open_session(rig)
    assert (await rig.registry.set_paused(made.id, False)).state is SessionState.OPEN


async def test_closing_an_unknown_session_is_not_found(rig: Any) -> None:
    for unknown in ("nonsense", "ses_" + "0" * 26):
        with pytest.raises(NotFoundError):
            await rig.registry.close(unknown, "done")
