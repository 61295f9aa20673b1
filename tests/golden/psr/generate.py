"""Trim the reference vectors of procedure step recognition to what the tests use.

Usage: python generate.py PATH_TO/psr.json
"""

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


def main() -> None:
    recordings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    text = json.dumps([trim(recording) for recording in recordings], separators=(",", ":"))
    Path(__file__).with_name("recordings.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
