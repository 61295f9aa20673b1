"""The story on real footage: one half teaches, the other is guided. It shows that nothing breaks.

Two halves of one take are no expert and no novice, so nothing is said of what is recognised. The
shipped clip is real; KEYSTEP_EGOCENTRIC_VIDEO names another, of a head-mounted camera, which no
licence allows to ship.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

from keystep_capture.samples import find_sample

VIDEO = "KEYSTEP_EGOCENTRIC_VIDEO"


def shipped() -> Path:
    path = find_sample("pour-coffee").video_path
    assert path is not None
    return path


def named() -> Path:
    if VIDEO not in os.environ:
        pytest.skip(f"{VIDEO} must name a video of a head-mounted camera")
    return Path(os.environ[VIDEO])


def pictures(tools: Any, path: Path) -> list[av.VideoFrame]:
    """Its pictures at 10 Hz, of half their size where they are large."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        every = round(float(stream.average_rate or 30) / 10.0)
        scale = min(1.0, 480 / max(stream.width, stream.height))
        size = (round(stream.width * scale / 2) * 2, round(stream.height * scale / 2) * 2)
    return list(tools.pictures(path, size))[::every]


async def play(live: Any, tools: Any, shown: list[av.VideoFrame], **options: Any) -> Any:
    sender = await live.join("hl2", "rgb", replay=True, **options)
    await live.send(sender, "rgb", tools.encode_h264(shown, rate_hz=10.0, gop=10))
    return sender


@pytest.mark.timeout(300)
@pytest.mark.parametrize("video", [shipped, named])
async def test_halves_of_a_real_take_teach_and_are_guided(
    live: Any, tools: Any, video: Callable[[], Path]
) -> None:
    shown = pictures(tools, video())
    expert = await play(live, tools, shown[: len(shown) // 2], kind="expert")
    await live.close_session(expert)
    found = await live.get(f"/sessions/{expert.session}/key-steps")
    assert found["key_steps"]
    answer = await live.rest.post(
        f"/api/v1/sessions/{expert.session}/key-steps/publish", json={"name": "real"}, timeout=120
    )
    assert answer.status_code == 201, answer.text

    novice = await play(live, tools, shown[len(shown) // 2 :], procedure="real")
    closed = await live.close_session(novice)
    assert (closed["method"], closed["procedure"]) == ("key_steps", "real")
    stats = await live.stats(novice)
    assert stats["ticks"] == len(shown) - len(shown) // 2
    assert not any(stats["features_left_out"].values())
