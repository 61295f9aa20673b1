"""`keystep demo --story`: from an expert's simulated session to a novice's guidance."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import cv2
import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_the_story_is_told_to_its_end(tmp_path: Path) -> None:
    out = tmp_path / "story"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "keystep_capture.cli", "demo", "--story", "--out", str(out)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert re.search(r"Procedure toy-cart, which pins bundle [0-9a-f]{12}", said)
    assert re.search(r"^ +\d+\.\d s  Install .* 0\.\d\d$", said, re.MULTILINE)
    assert "The headset's display: showing" in said
    done = re.search(r"REST: (\d+) of (\d+) key steps are completed", said)
    assert done is not None
    assert 0 < int(done[1]) <= int(done[2])
    picture = cv2.imread(str(out / "story.png"))
    assert picture is not None
    assert picture.shape[0] > 500
