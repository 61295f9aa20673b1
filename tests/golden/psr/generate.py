"""Trim the reference vectors of procedure step recognition to what the tests use.

Usage: python generate.py PATH_TO/psr.json
"""

import gzip
import json
import sys
from pathlib import Path
from typing import Any


def trim(recording: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in recording.items() if key != "temporal"}
    kept["ground_truth"] = [[step["frame"], step["id"]] for step in recording["ground_truth"]]
    kept["expected"] = {
        method: {
            "steps": [[step["frame"], step["id"], step["conf"]] for step in expected["steps"]],
            "metrics": expected["metrics"],
        }
        for method, expected in recording["expected"].items()
    }
    return kept


def clips(recording: dict[str, Any]) -> dict[str, Any]:
    """Clip outputs, in thousandths as the source rounds them, and each branch's own steps."""
    first = next(idx for idx, (predicted, _) in enumerate(recording["temporal"]) if predicted)
    frames = recording["temporal"][first:]
    storm = recording["expected"]["storm"]
    return {
        "window_frames": recording["window_frames"],
        "first_frame": first,
        "predicted": ["".join(map(str, predicted)) for predicted, _ in frames],
        "thousandths": [[round(1000 * value) for value in values] for _, values in frames],
        "branch_steps": {
            branch: [[step["frame"], step["id"], step["conf"]] for step in storm[f"{branch}_steps"]]
            for branch in ("detector", "temporal")
        },
    }


def main() -> None:
    recordings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    text = json.dumps([trim(recording) for recording in recordings], separators=(",", ":"))
    Path(__file__).with_name("recordings.json").write_text(text + "\n", encoding="utf-8")
    text = json.dumps([clips(recording) for recording in recordings], separators=(",", ":"))
    archive = gzip.compress(text.encode(), compresslevel=9, mtime=0)
    Path(__file__).with_name("clips.json.gz").write_bytes(archive)


if __name__ == "__main__":
    main()
