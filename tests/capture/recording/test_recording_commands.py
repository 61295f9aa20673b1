"""`keystep recording ...` as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from keystep_capture.recording import Recording


def keystep(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "keystep_capture.cli", "recording", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_info_says_what_is_in_it(recorded: Path, tools: Any) -> None:
    told = keystep("info", recorded)
    assert told.returncode == 0
    assert "stream       rgb (h264), epoch 1" in told.stdout
    facts = json.loads(keystep("info", recorded, "--json").stdout)
    assert facts["finished"]
    assert facts["session"] == "ses_1"
    assert {stream["stream"] for stream in facts["streams"]} == {
        header.stream for header, _ in tools.session_packets()
    }


def test_health_prints_a_verdict_and_draws(recorded: Path, tmp_path: Path) -> None:
    picture = tmp_path / "h.png"
    told = keystep("health", recorded, "--picture", picture)
    assert told.returncode == 0, told.stderr
    assert "verdict: good" in told.stdout
    assert picture.stat().st_size > 1000
    facts = json.loads(keystep("health", recorded, "--json").stdout)
    assert facts["verdict"] == "good"
    assert facts["lanes"][0].keys() >= {"stream", "rate_hz", "jitter_ms"}
    assert "times_ns" not in facts["lanes"][0]


def test_a_poor_recording_is_a_failure(tmp_path: Path, tools: Any) -> None:
    without = [one for one in tools.coffee_packets()[:60] if not one[0].keyframe]
    told = keystep("health", tools.record(tmp_path / "r", without))
    assert told.returncode == 1
    assert "verdict: poor" in told.stdout


def test_repair_writes_beside_the_original(recorded: Path, tools: Any) -> None:
    part = recorded / "part-000.mcap"
    part.write_bytes(part.read_bytes()[:-50])
    told = keystep("repair", recorded)
    assert told.returncode == 0, told.stderr
    assert "left out:" in told.stdout
    with Recording(recorded.with_name("recorded-repaired")) as recording:
        assert recording.finished
        assert len(list(recording.packets())) == len(tools.session_packets())
    again = keystep("repair", recorded)
    assert (again.returncode, len(again.stderr.splitlines())) == (2, 1)


def test_a_repair_that_finds_nothing_is_a_failure(recorded: Path) -> None:
    part = recorded / "part-000.mcap"
    part.write_bytes(part.read_bytes()[:600])  # its beginning, no chunk
    told = keystep("repair", part)
    assert told.returncode == 1
    assert "no message in it can be read" in told.stderr


def test_an_export_says_what_is_missing(recorded: Path, tmp_path: Path) -> None:
    part = recorded / "part-000.mcap"
    data = part.read_bytes()
    part.write_bytes(data[:-50])
    cut = keystep("export", part, "--csv", tmp_path / "cut")
    assert cut.returncode == 0, cut.stderr
    assert "damaged: " in cut.stderr
    assert "index is missing or damaged" in cut.stderr
    with Recording(part) as recording:
        chunk = recording.parts[0].chunk_offset(1)
    part.write_bytes(data[: chunk + 5000] + b"\0" * 20 + data[chunk + 5020 :])
    spoiled = keystep("export", part, "--csv", tmp_path / "spoiled")
    assert spoiled.returncode == 1
    assert "`keystep recording repair` copies what is readable" in spoiled.stderr
    assert list((tmp_path / "spoiled").iterdir()) == []  # no half of a file


def test_what_is_no_recording_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.mcap").write_bytes(b"RIFF1234")
    for command in ("info", "health", "repair"):
        told = keystep(command, tmp_path / "x.mcap")
        assert told.returncode == 1
        assert len(told.stderr.splitlines()) == 1
        assert "at byte 0: expected an MCAP recording" in told.stderr
        missing = keystep(command, tmp_path / "none.mcap")
        assert (missing.returncode, len(missing.stderr.splitlines())) == (1, 1)
