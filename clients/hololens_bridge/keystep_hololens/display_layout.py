"""Where the wearer sees what: guidance as panels before the eyes.

All is head-locked at arm's length, where the work is, so that the eyes need not converge elsewhere
to read. Texts keep to the upper part of the field of view; its middle and lower part stay free for
hands and work, but for a short note at the lower edge. Not tried on a headset.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from keystep_capture import wire
from keystep_hololens.hl2ss.unity_messages import Panel, PicturePanel, Placement, TextPanel

DISTANCE_M = 0.7
"""Arm's length."""
FIELD_OF_VIEW_DEG = (43.0, 29.0)
"""Width and height of a HoloLens 2's displays, as published."""
EM_M = 0.1
"""Height of the letters' square for a TextMeshPro font size of 1, as its 3D text has it."""
CHARACTER_EM = 0.55
"""Width of an average letter; a line of wide ones is longer."""
LINE_EM = 1.25
TITLE_EM_M, LINE_EM_M = 0.017, 0.0125
"""1.4 and 1.0 degrees at arm's length; 0.5 degrees is what can be read with comfort."""
_TOP_M, _NOTE_M = 0.150, -0.150
_WIDTH_M, _WIDTH_BESIDE_PICTURE_M = 0.44, 0.33
_TEXT_X_BESIDE_PICTURE_M = -0.075
_PICTURE_M, _PICTURE_X_M, _PICTURE_Y_M = (0.14, 0.105), 0.175, 0.105
_MAX_LINES = 2

WHITE = (1.0, 1.0, 1.0, 1.0)
GREY = (0.75, 0.80, 0.85, 1.0)
AMBER = (1.0, 0.75, 0.15, 1.0)
RED = (1.0, 0.45, 0.40, 1.0)
_COLOURS = {"info": WHITE, "caution": AMBER, "cannot_see": RED}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepImage:
    """A picture that can be shown.

    Attributes:
        image: JPEG or PNG bytes.
        width_px, height_px: Of the picture.
    """

    image: bytes
    width_px: int
    height_px: int


def read_image(image: bytes) -> StepImage | None:
    """Look at a picture's size; None where it is no picture."""
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR) if image else None
    if pixels is None:
        return None
    return StepImage(image=image, width_px=pixels.shape[1], height_px=pixels.shape[0])


def text_panels(
    guidance: wire.Guidance | None, note: str = "", *, with_picture: bool = False
) -> tuple[TextPanel, ...]:
    """The texts of a guidance, from the top down, and a note at the lower edge.

    Args:
        guidance: What is to be done; None before the first.
        note: What became of a command, say; empty for none.
        with_picture: Leave room for the step's picture.
    """
    panels = []
    x_m, width_m = 0.0, _WIDTH_M
    if with_picture:
        x_m, width_m = _TEXT_X_BESIDE_PICTURE_M, _WIDTH_BESIDE_PICTURE_M
    y_m = _TOP_M
    for text, em_m, rgba in _lines(guidance) if guidance is not None else ():
        wrapped, line_count = _wrap(text, em_m, width_m)
        height_m = line_count * LINE_EM * em_m
        panels.append(_text(wrapped, x_m, y_m - height_m / 2, em_m, rgba))
        y_m -= height_m + 0.5 * em_m
    if note:
        wrapped, _ = _wrap(note, LINE_EM_M, _WIDTH_M)
        panels.append(_text(wrapped, 0.0, _NOTE_M, LINE_EM_M, GREY))
    return tuple(panels)


def picture_panel(picture: StepImage) -> PicturePanel:
    """The step's picture, in the upper right corner, in its own proportions."""
    scale = min(_PICTURE_M[0] / picture.width_px, _PICTURE_M[1] / picture.height_px)
    return PicturePanel(
        image=picture.image,
        placement=Placement(
            position_m=(_PICTURE_X_M, _PICTURE_Y_M, DISTANCE_M),
            scale=(picture.width_px * scale, picture.height_px * scale, 1.0),
        ),
    )


def extent_m(panel: Panel) -> tuple[float, float]:
    """About how wide and high a panel is, m."""
    if isinstance(panel, PicturePanel):
        return panel.placement.scale[0], panel.placement.scale[1]
    lines = panel.text.split("\n")
    em_m = panel.font_size * EM_M
    return max(map(len, lines)) * CHARACTER_EM * em_m, len(lines) * LINE_EM * em_m


def _lines(guidance: wire.Guidance) -> Iterator[tuple[str, float, tuple[float, ...]]]:
    """Text, letter height and colour of each line; of an unseen work nothing stale is shown."""
    yield guidance.text, TITLE_EM_M, _COLOURS[guidance.severity]
    if guidance.severity != "cannot_see":
        if guidance.severity == "caution" and guidance.current_step is not None:
            yield f"Now: {guidance.current_step.title}", LINE_EM_M, WHITE
        if guidance.next_step is not None:
            yield f"Next: {guidance.next_step.title}", LINE_EM_M, GREY
    done, total = guidance.progress
    if total:
        yield f"{done} of {total} steps done", LINE_EM_M, GREY


def _wrap(text: str, em_m: float, width_m: float) -> tuple[str, int]:
    """Break a text into lines that fit (the headset's texts do not wrap), the rest left out.

    Lines are about equally long: a last word alone reads badly.
    """
    fitting = int(width_m / (CHARACTER_EM * em_m))
    lines = textwrap.wrap(text, fitting, max_lines=_MAX_LINES, placeholder=" …")
    for width in range(len(text) // max(1, len(lines)), fitting):
        balanced = textwrap.wrap(text, max(1, width), break_long_words=False)
        if len(balanced) <= len(lines) and max(map(len, balanced)) <= fitting:
            lines = balanced
            break
    return "\n".join(lines), max(1, len(lines))


def _text(text: str, x_m: float, y_m: float, em_m: float, rgba: tuple[float, ...]) -> TextPanel:
    red, green, blue, alpha = rgba
    return TextPanel(
        text=text.replace("<", "\u2039"),  # TextMeshPro would take it for the start of a tag
        placement=Placement(position_m=(x_m, y_m, DISTANCE_M)),
        font_size=em_m / EM_M,
        rgba=(red, green, blue, alpha),
    )
