"""Draw what the wearer sees: guidance on the simulated headset, projected into its field of view.

A simulated headset is shown guidance by the real display client; what then stands in its scene is
drawn over a picture of a real video. Letters are OpenCV's, not TextMeshPro's, so widths differ a
little. Needs OpenCV 5 (scalable fonts).

Usage: python docs/examples/headset_view.py docs/images/headset_view.jpg
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

from keystep_capture import wire
from keystep_capture.samples import find_sample
from keystep_hololens.display import Display
from keystep_hololens.display_layout import EM_M, FIELD_OF_VIEW_DEG, LINE_EM
from keystep_hololens.simulator import Room, SimulatedHeadset, UnityApp
from keystep_hololens.simulator.unity import SceneObject

WIDTH_PX, CAMERA_FIELD_OF_VIEW_DEG = 640, 64.69
HALF = np.tan(np.radians(FIELD_OF_VIEW_DEG) / 2)
FOCAL_PX = WIDTH_PX / 2 / HALF[0]
HEIGHT_PX = round(2 * HALF[1] * FOCAL_PX)
POUR, PUT_BACK = "Pour coffee into the mug", "Put the pot back"
TOLD = (
    ("info", f"{POUR}.", 0.45, ""),
    ("caution", "Check this: Put the mug onto the table.", 0.45, ""),
    (
        "cannot_see",
        "I can't see: no picture of the work is coming in.",
        0.45,
        "Done: Fetch the mug.",
    ),
)
Image = npt.NDArray[np.uint8]


def frame(part: float) -> Image:
    """The sample video's picture at a part of its length."""
    path = find_sample("pour-coffee").video_path
    assert path is not None
    with av.open(path) as video:
        pictures = [one.to_ndarray(format="bgr24") for one in video.decode(video=0)]
    return np.asarray(pictures[int(part * len(pictures))], np.uint8)


def background(part: float) -> Image:
    """What of the camera's picture lies inside the display's narrower field of view, dimmed."""
    picture = frame(part)
    height, width = picture.shape[:2]
    inner = width * HALF[0] / np.tan(np.radians(CAMERA_FIELD_OF_VIEW_DEG / 2))
    size = (int(inner), min(height, int(inner * HEIGHT_PX / WIDTH_PX)))
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    cut = picture[top : top + size[1], left : left + size[0]]
    return np.asarray(cv2.resize(cut, (WIDTH_PX, HEIGHT_PX)) * 0.45, np.uint8)


def draw(view: Image, thing: SceneObject) -> None:
    """Project one head-locked object: x right, y up, z ahead."""
    assert thing.placement is not None
    x_m, y_m, z_m = thing.placement.position_m
    scale = FOCAL_PX / z_m
    centre = (WIDTH_PX / 2 + x_m * scale, HEIGHT_PX / 2 - y_m * scale)
    if thing.primitive is None:
        draw_text(view, thing, centre, thing.font_size * EM_M * scale)
        return
    picture = cv2.imdecode(np.frombuffer(thing.texture, np.uint8), cv2.IMREAD_COLOR)
    width, height = (round(side * scale) for side in thing.placement.scale[:2])
    left, top = round(centre[0] - width / 2), round(centre[1] - height / 2)
    view[top : top + height, left : left + width] = cv2.resize(picture, (width, height))


def draw_text(view: Image, text: SceneObject, centre: tuple[float, float], em_px: float) -> None:
    """Draw lines centred on a point, as TextMeshPro does."""
    font, size = cv2.FontFace("sans"), round(em_px)
    colour = tuple(round(255 * part) for part in text.rgba[2::-1])
    lines = text.text.split("\n")
    for number, line in enumerate(lines):
        width = cv2.getTextSize((0, 0), line, (0, 0), font, size, 400)[2]
        below = (number - (len(lines) - 1) / 2) * LINE_EM * em_px + 0.35 * em_px
        where = (round(centre[0] - width / 2), round(centre[1] + below))
        cv2.putText(view, line, where, colour, font, size, 400)


async def views() -> list[Image]:
    """The wearer's view of each guidance."""
    drawn = []
    _, exemplar = cv2.imencode(".jpg", frame(0.5))
    async with SimulatedHeadset(room=Room(), app=UnityApp()) as headset:
        assert headset.app is not None
        shown = asyncio.Queue[object]()
        display = Display(headset.host, base_port=headset.base_port, on_showing=shown.put_nowait)
        running = asyncio.create_task(display.run())
        display.put_picture("pour", exemplar.tobytes())
        for revision, (severity, text, part, note) in enumerate(TOLD, start=1):
            if note:
                display.tell(note)
            display.show(
                wire.Guidance(
                    protocol=wire.PROTOCOL,
                    revision=revision,
                    severity=severity,
                    current_step=wire.StepName(id=2, title=POUR),
                    next_step=wire.StepName(id=3, title=PUT_BACK),
                    text=text,
                    progress=(2, 6),
                    device_time_ns=0,
                    picture="pour",
                )
            )
            await shown.get()
            view = background(part)
            for thing in headset.app.on_show:
                draw(view, thing)
            drawn.append(view)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return drawn


def main(path: Path) -> None:
    """Write the views side by side."""
    border = np.full((HEIGHT_PX, 8, 3), 255, np.uint8)
    parts = [part for view in asyncio.run(views()) for part in (border, view)][1:]
    if not cv2.imwrite(str(path), np.concatenate(parts, axis=1)):
        raise SystemExit(f"{path} could not be written")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
