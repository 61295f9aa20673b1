"""A program that is called as `keystep extract` is, and misbehaves as its --seed says."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import cv2
import numpy as np

REFUSED, GARBAGE, FAILS, STUBBORN, FLOODS, EMPTY, WAITS, CRASHES, FOREIGN = range(1, 10)


def say(**event: object) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def write_result(out: Path, name: str, seed: int) -> None:
    folder = out / name
    (folder / "key_steps").mkdir(parents=True, exist_ok=True)
    image = np.full((90, 160, 3), 100, np.uint8)
    for path in (folder / "key_steps" / "00.jpg", folder / "contact_sheet.jpg"):
        cv2.imwrite(str(path), image)
    step = {
        "position": 0,
        "title": "Key step 1",
        "start_s": 1.0,
        "end_s": 3.0,
        "exemplar_s": 2.0,
        "epoch": 1,
        "start_device_time_ns": 10**18,
        "end_device_time_ns": 10**18 + 2 * 10**9,
        "exemplar_device_time_ns": 10**18 + 10**9,
        "confidence": 0.5,
        "cluster": 0,
        "distance": 0.25,
        "picture": "key_steps/00.jpg",
    }
    document = {
        "format": "keystep-key-steps",
        "recording": {"kind": "recording"},
        "timeline": [
            {"epoch": 1, "start_s": 0.0, "end_s": 9.0, "start_device_time_ns": 10**18 - 10**9}
        ],
        "provenance": {"method": "steps", "model_sha256": "ab", "extraction": {"seed": seed}},
        "quality": {"clusters": 1},
        "key_steps": [step],
    }
    if seed == FOREIGN:
        del document["timeline"]
    (folder / "key_steps.json").write_text(json.dumps(document))
    summary = {"recordings": {name: {"key_steps": 1, "notes": ["a note"]}}}
    (out / "extraction.json").write_text(json.dumps(summary))


def main() -> None:
    arguments = sys.argv[1:]
    flags = dict(a[2:].partition("=")[::2] for a in arguments if a.startswith("--"))
    recordings = [a for a in arguments[1:] if not a.startswith("--")]
    seed = int(flags.get("seed", 0))
    if "check" in flags:
        sys.exit("keystep: seed 1 is refused" if seed == REFUSED else 0)
    out = Path(flags["out"])
    (out / "runs").open("a").write("begun\n")
    if seed == GARBAGE:
        sys.stdout.write("no json\n" + "[1]\n" + "x" * 300_000 + "\n" + "[" * 50_000 + "\n")
        say(stage=3, done="many", recording={"a": 1})
    if seed == FAILS:
        sys.exit("some words\nkeystep: the disk is full")
    if seed == CRASHES:
        signal.raise_signal(signal.SIGSEGV)
    if seed == STUBBORN:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for done in range(3):
        say(stage="features", recording="a", done=done)
    if seed in (STUBBORN, WAITS):
        while not (out / "go").exists():
            time.sleep(0.02)
    if seed == FLOODS:
        sys.stderr.write("a long word " * 300_000)
    say(stage="training", done=1, of=2, loss=0.5)
    if seed != EMPTY:
        write_result(out, Path(recordings[0]).name, seed)
    say(stage="done", recordings={})


if __name__ == "__main__":
    main()
