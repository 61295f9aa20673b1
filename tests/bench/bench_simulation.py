"""How fast simulated sessions are drawn: frames a CPU second, all of it included.

Usage: python tests/bench/bench_simulation.py [--seconds 12] [--rounds 3]

Prints one JSON object. Counted is the CPU time of this process for drawing, sensors, encoding,
depth and truth; not the seconds of setting a session up, which are given by themselves. The best
of the rounds counts, since other work on the machine can only slow it down. Targets: `learn` 60,
`full` 10.
"""

from __future__ import annotations

import argparse
import json
import platform
import time

from keystep_capture.simulation.session import Session, SessionSpec

TARGETS = {"learn": 60.0, "full": 10.0}


def frames_a_second(profile: str, seconds: float, rounds: int) -> dict[str, float]:
    best, setup = 0.0, float("inf")
    for _ in range(rounds):
        start = time.process_time()
        spec = SessionSpec(task="cart", seed=1, person=1, profile=profile)
        session = Session(spec, limit_s=seconds)
        ready = time.process_time()
        for _ in session.packets():
            pass
        frames = len(session.truth.frames)
        best = max(best, frames / (time.process_time() - ready))
        setup = min(setup, ready - start)
    return {"frames_per_cpu_s": round(best, 1), "setup_cpu_s": round(setup, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found = {p: frames_a_second(p, options.seconds, options.rounds) for p in TARGETS}
    for name, target in TARGETS.items():
        found[name] |= {"target": target}
    print(json.dumps({"machine": platform.processor() or platform.machine(), **found}, indent=1))


if __name__ == "__main__":
    main()
