"""The drain between a ZeroMQ socket and the loop; binds are in test_link_access.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from keystep_capture.sockets import MESSAGES_PER_TURN, Drain


@pytest.fixture
def pair() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.PAIR) as near, context.socket(zmq.PAIR) as far:
        near.bind("inproc://drain")
        far.connect("inproc://drain")
        yield near, far
    context.term()


async def test_all_that_waits_is_taken_though_the_descriptor_speaks_once(
    pair: Any, rig: Any
) -> None:
    near, far = pair
    taken: list[bytes] = []
    drain = Drain(near, asyncio.get_running_loop(), lambda: taken.append(near.recv(zmq.NOBLOCK)))
    for number in range(3 * MESSAGES_PER_TURN):
        far.send(b"%d" % number, zmq.NOBLOCK)
    await rig.eventually(lambda: len(taken) == 3 * MESSAGES_PER_TURN)
    far.send(b"last")
    await rig.eventually(lambda: taken[-1] == b"last")
    drain.close()


async def test_other_callbacks_get_their_turn_in_a_flood(pair: Any, rig: Any) -> None:
    near, far = pair
    taken: list[bytes] = []
    drain = Drain(near, asyncio.get_running_loop(), lambda: taken.append(near.recv(zmq.NOBLOCK)))
    for _ in range(2 * MESSAGES_PER_TURN + 1):
        far.send(b"", zmq.NOBLOCK)
    await asyncio.sleep(0)
    assert len(taken) <= MESSAGES_PER_TURN
    await rig.eventually(lambda: len(taken) == 2 * MESSAGES_PER_TURN + 1)
    drain.close()


async def test_one_message_that_fails_does_not_hold_up_the_next(pair: Any, rig: Any) -> None:
    near, far = pair
    taken: list[bytes] = []
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))

    def take_one() -> None:
        message = near.recv(zmq.NOBLOCK)
        if message == b"bad":
            raise ValueError("the consumer failed")
        taken.append(message)

    for message in (b"bad", b"1", b"bad", b"2"):
        far.send(message)
    drain = Drain(near, asyncio.get_running_loop(), take_one)
    await rig.eventually(lambda: taken == [b"1", b"2"])
    assert len(failures) == 2
    drain.close()


async def test_a_closed_drain_takes_nothing(pair: Any) -> None:
    near, far = pair
    drain = Drain(near, asyncio.get_running_loop(), lambda: pytest.fail("taken"))
    drain.close()
    drain.close()
    far.send(b"late")
    drain.poke()
    for _ in range(3):
        await asyncio.sleep(0)
    assert near.recv(zmq.NOBLOCK) == b"late"
