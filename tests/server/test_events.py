import asyncio
import sqlite3
from typing import Any

import pytest

from keystep_capture.errors import StateError
from keystep_server.events import EndReason
from keystep_server.storage import EventRetraction, SessionKind


@pytest.fixture
async def session_id(rig: Any) -> str:
    session = await rig.registry.create(device_id="d", kind=SessionKind.GUIDED)
    return str(session.id)


async def append(rig: Any, session_id: str, numbers: range, make_event: Any) -> None:
    for number in numbers:
        await rig.events.append(session_id, make_event(number))


async def ordinals(subscription: Any) -> list[int]:
    return [event.ordinal async for event in subscription]


async def test_row_is_committed_before_it_is_published(
    rig: Any, session_id: str, make_event: Any
) -> None:
    seen = []

    def publish(event: Any) -> None:
        with sqlite3.connect(rig.config.data_dir / "keystep.db") as other:
            query = "SELECT count(*) FROM step_events WHERE id = ?"
            seen.append(other.execute(query, (event.id,)).fetchone()[0])
        other.close()

    rig.events.publishers.append(publish)
    await append(rig, session_id, range(3), make_event)
    assert seen == [1, 1, 1]


async def test_repeated_event_is_published_once(rig: Any, session_id: str, make_event: Any) -> None:
    seen: list[Any] = []
    rig.events.publishers.append(seen.append)
    stored = [await rig.events.append(session_id, make_event(1)) for _ in range(3)]
    assert seen == stored[:1]


async def test_failing_publisher_stops_neither_the_others_nor_the_event(
    rig: Any, session_id: str, make_event: Any
) -> None:
    seen: list[Any] = []

    def fail(_event: Any) -> None:
        raise OSError("socket gone")

    rig.events.publishers.extend([fail, seen.append])
    assert [await rig.events.append(session_id, make_event(1))] == seen


async def test_cancelled_append_is_published_all_the_same(
    rig: Any, session_id: str, make_event: Any
) -> None:
    published = asyncio.Event()
    rig.events.publishers.append(lambda _event: published.set())
    appending = asyncio.create_task(rig.events.append(session_id, make_event(1)))
    await asyncio.sleep(0)
    appending.cancel()
    await published.wait()
    assert len(await rig.events.read(session_id)) == 1


async def test_subscribers_at_any_point_see_each_event_once_and_in_order(
    rig: Any, session_id: str, make_event: Any
) -> None:
    count = 120
    appending = asyncio.create_task(append(rig, session_id, range(count), make_event))
    reading = []
    for after in (0, 0, 5, 17, 50):
        reading.append(asyncio.create_task(ordinals(rig.events.subscribe(session_id, after))))
        await rig.events.append(session_id, make_event(1000 + len(reading)))
    await appending
    await rig.registry.close(session_id, "done")
    total = count + len(reading)
    for after, read in zip((0, 0, 5, 17, 50), await asyncio.gather(*reading), strict=True):
        assert read == list(range(after + 1, total + 1))


async def test_subscription_after_the_close_gives_all_and_ends(
    rig: Any, session_id: str, make_event: Any
) -> None:
    await append(rig, session_id, range(700), make_event)
    await rig.registry.close(session_id, "done")
    subscription = rig.events.subscribe(session_id)
    assert await ordinals(subscription) == list(range(1, 701))
    assert subscription.end_reason is EndReason.CLOSED


async def test_slow_subscriber_is_cut_off_and_can_read_on(
    rig: Any, session_id: str, make_event: Any
) -> None:
    with rig.events.subscribe(session_id) as slow:
        await rig.events.append(session_id, make_event(0))
        first = await anext(slow)
        waiting = asyncio.create_task(anext(slow))
        await append(rig, session_id, range(1, 2), make_event)
        assert (await waiting).ordinal == 2
        await append(rig, session_id, range(2, 100), make_event)
        got = [first.ordinal, 2, *await ordinals(slow)]
    assert slow.end_reason is EndReason.SLOW
    assert got == list(range(1, 53))
    await rig.registry.close(session_id, "done")
    assert await ordinals(rig.events.subscribe(session_id, got[-1])) == list(range(53, 101))


async def test_retraction_reaches_subscribers_under_a_new_ordinal(
    rig: Any, session_id: str, make_event: Any, start: Any
) -> None:
    stored = await rig.events.append(session_id, make_event(1))
    with rig.events.subscribe(session_id, stored.ordinal) as subscription:
        following = asyncio.create_task(anext(subscription))
        why = EventRetraction(at=start, by="tracker")
        await rig.events.retract(stored.id, why)
        heard = await following
        await rig.events.retract(stored.id, why)  # again: nobody is told twice
        after = await rig.events.append(session_id, make_event(2))
        assert (await anext(subscription)).ordinal == after.ordinal == 3
    assert (heard.id, heard.ordinal, heard.retracted) == (stored.id, 2, True)
    assert (heard.retracted_at, heard.retracted_by) == (start, "tracker")


async def test_stopping_ends_subscriptions_present_and_future(rig: Any, session_id: str) -> None:
    present = rig.events.subscribe(session_id)
    reading = asyncio.create_task(ordinals(present))
    await asyncio.sleep(0.01)
    rig.events.stop()
    assert await reading == []
    future = rig.events.subscribe(session_id)
    assert await ordinals(future) == []
    assert (present.end_reason, future.end_reason) == (EndReason.STOPPING,) * 2


async def test_closed_session_takes_no_more_events(
    rig: Any, session_id: str, make_event: Any
) -> None:
    await rig.registry.close(session_id, "done")
    with pytest.raises(StateError):
        await rig.events.append(session_id, make_event(1))


async def test_cancelled_wait_for_the_next_event_loses_none(
    rig: Any, session_id: str, make_event: Any
) -> None:
    with rig.events.subscribe(session_id) as subscription:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(subscription), 0.005)
        await rig.events.append(session_id, make_event(1))
        assert (await anext(subscription)).ordinal == 1
