"""A contact sheet of simulated sessions, to look at.

    python -m keystep_capture.simulation.sheet --out sheet.jpg

One row a session (task, seed, person); its columns are moments of one step: the reach, the carried
part, the fitting, the completion, and the hands gone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from keystep_capture.simulation.motion import RATE_HZ
from keystep_capture.simulation.session import Session, SessionSpec

DEFAULT = ("cart:1:1:5", "gearbox:5:1:10", "lamp:4:3:3", "cart:7:2:8", "gearbox:2:2:7")


def row_of(session: Session, action_idx: int) -> NDArray[np.uint8]:
    """Pictures of five moments of an action, side by side, RGB (H, 5 W, 3)."""
    action = session.truth.plan.actions[action_idx]
    moments = (
        action.grasp_s,
        (action.lift_s + action.arrive_s) / 2,
        action.arrive_s + 0.2,
        action.complete_s,
        action.end_s + 0.35,
    )
    last = len(session.movement.times_s) - 1
    return np.hstack([session.draw(min(round(t * RATE_HZ), last)) for t in moments])


def main() -> None:
    """Draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=DEFAULT, help="task:seed:person:action")
    parser.add_argument("--occlusion", type=float, default=0.6)
    parser.add_argument("--profile", default="learn")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for text in options.rows:
        task, seed, person, action = text.split(":")
        spec = SessionSpec(
            task=task,
            seed=int(seed),
            person=int(person),
            profile=options.profile,
            occlusion_rate=options.occlusion,
        )
        rows.append(row_of(Session(spec), int(action)))
    quality = (int(cv2.IMWRITE_JPEG_QUALITY), 82)
    cv2.imwrite(str(options.out), np.vstack(rows)[..., ::-1], quality)


if __name__ == "__main__":
    main()
