"""The tasks that simulated people do: parts, where they belong, and what must come before what.

Every task is built upon a turntable whose post carries the first part, so nothing floats. The
assembly's frame has its origin at the middle of the turntable on the bench, x right, y up, z
towards the wearer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from keystep_capture.errors import ConfigError
from keystep_capture.simulation.shapes import (
    Colour,
    Point,
    Solid,
    ball,
    block,
    cone,
    gear,
    hoop,
    ring,
    rod,
)

STEEL: Colour = (0.55, 0.57, 0.60)
BLACK: Colour = (0.035, 0.035, 0.04)
RED: Colour = (0.62, 0.05, 0.04)
BLUE: Colour = (0.04, 0.14, 0.50)
GREEN: Colour = (0.05, 0.34, 0.12)
YELLOW: Colour = (0.78, 0.50, 0.03)
ORANGE: Colour = (0.80, 0.22, 0.02)
WHITE: Colour = (0.75, 0.75, 0.72)
BRASS: Colour = (0.60, 0.42, 0.12)
TEAL: Colour = (0.02, 0.33, 0.36)
PURPLE: Colour = (0.26, 0.07, 0.38)
GREY: Colour = (0.22, 0.23, 0.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One part of the finished object, and its place.

    Attributes:
        name: What people call it.
        make: Builds its mesh.
        colour: Of solids that have none of their own.
        at_mm: Where its middle sits in the assembly.
        turn_deg: How it is turned there, about x, y, z.
        after: Components that must be there first, by index.
        look_alike: A component whose part can be taken for this one's.
        needs_driver: It is fastened with the screwdriver.
    """

    name: str
    make: Callable[[], list[Solid]]
    colour: Colour
    at_mm: Point
    turn_deg: Point = (0.0, 0.0, 0.0)
    after: tuple[int, ...] = ()
    look_alike: int | None = None
    needs_driver: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is to be assembled, in its usual order.

    Step ids are IndustReal's: 3 k installs component k, 3 k + 1 installs it incorrectly, 3 k + 2
    removes it.
    """

    name: str
    title: str
    components: tuple[Component, ...]

    def step_title(self, step_id: int) -> str:
        """What the labels call a step."""
        verb = ("Install", "Incorrectly installed", "Remove")[step_id % 3]
        return f"{verb} {self.components[step_id // 3].name}"


def _wheel(radius: float, width: float, hub: Colour) -> Callable[[], list[Solid]]:
    return lambda: [
        rod(radius, width, axis="z", colour=BLACK, shine=0.15, sections=20),
        rod(radius * 0.55, width + 1.5, axis="z", colour=hub),
        rod(4, width + 5, axis="z", colour=STEEL, sections=8),
    ]


def _cart() -> Task:
    axle_front, axle_rear = (1, 2)
    return Task(
        name="cart",
        title="Assemble the toy cart",
        components=(
            Component(
                name="chassis",
                colour=RED,
                at_mm=(0, 46, 0),
                make=lambda: [block(170, 8, 66), block(120, 5, 20, at=(0, 6, 0), colour=GREY)],
            ),
            Component(
                name="front axle",
                colour=STEEL,
                at_mm=(54, 38, 0),
                after=(0,),
                look_alike=axle_rear,
                make=lambda: [rod(4, 112, axis="z")],
            ),
            Component(
                name="rear axle",
                colour=STEEL,
                at_mm=(-54, 38, 0),
                after=(0,),
                look_alike=axle_front,
                make=lambda: [rod(4, 132, axis="z")],
            ),
            Component(
                name="front left wheel",
                colour=BLACK,
                at_mm=(54, 38, 56),
                after=(1,),
                look_alike=5,
                make=_wheel(21, 12, YELLOW),
            ),
            Component(
                name="front right wheel",
                colour=BLACK,
                at_mm=(54, 38, -56),
                after=(1,),
                look_alike=6,
                make=_wheel(21, 12, YELLOW),
            ),
            Component(
                name="rear left wheel",
                colour=BLACK,
                at_mm=(-54, 38, 64),
                after=(2,),
                look_alike=3,
                make=_wheel(28, 15, YELLOW),
            ),
            Component(
                name="rear right wheel",
                colour=BLACK,
                at_mm=(-54, 38, -64),
                after=(2,),
                look_alike=4,
                make=_wheel(28, 15, YELLOW),
            ),
            Component(
                name="seat",
                colour=BLUE,
                at_mm=(-30, 72, 0),
                after=(0,),
                needs_driver=True,
                make=lambda: [
                    block(44, 14, 48, at=(0, -12, 0)),
                    block(10, 46, 48, at=(-20, 8, 0), turn=(0, 0, 10)),
                ],
            ),
            Component(
                name="engine",
                colour=GREEN,
                at_mm=(48, 66, 0),
                after=(0,),
                needs_driver=True,
                make=lambda: [
                    block(46, 24, 44),
                    rod(7, 14, at=(-10, 18, 10), colour=STEEL),
                    rod(7, 14, at=(-10, 18, -10), colour=STEEL),
                ],
            ),
            Component(
                name="steering column",
                colour=STEEL,
                at_mm=(8, 74, 0),
                turn_deg=(0, 0, 25),
                after=(0,),
                make=lambda: [rod(3.5, 52), rod(6, 6, at=(0, -24, 0), colour=BLACK)],
            ),
            Component(
                name="steering wheel",
                colour=BLACK,
                at_mm=(-3.5, 98, 0),
                turn_deg=(0, 0, 25),
                after=(9,),
                make=lambda: [hoop(19, 3.2), block(36, 3, 5, colour=STEEL)],
            ),
            Component(
                name="bumper",
                colour=ORANGE,
                at_mm=(92, 46, 0),
                after=(0,),
                needs_driver=True,
                make=lambda: [block(10, 16, 92), block(8, 6, 40, at=(2, 11, 0), colour=GREY)],
            ),
            Component(
                name="spoiler",
                colour=PURPLE,
                at_mm=(-78, 74, 0),
                after=(0,),
                make=lambda: [
                    block(26, 5, 96, at=(0, 20, 0), turn=(0, 0, 12)),
                    block(5, 40, 6, at=(0, -2, 22)),
                    block(5, 40, 6, at=(0, -2, -22)),
                ],
            ),
        ),
    )


def _gearbox() -> Task:
    return Task(
        name="gearbox",
        title="Assemble the gear train",
        components=(
            Component(
                name="base plate",
                colour=BLUE,
                at_mm=(0, 45, 0),
                make=lambda: [block(176, 8, 112)],
            ),
            Component(
                name="left shaft",
                colour=STEEL,
                at_mm=(-50, 68, 0),
                after=(0,),
                look_alike=3,
                make=lambda: [rod(4.5, 40), rod(8, 4, at=(0, -17, 0))],
            ),
            Component(
                name="middle shaft",
                colour=STEEL,
                at_mm=(4, 74, 0),
                after=(0,),
                look_alike=1,
                make=lambda: [rod(4.5, 52), rod(8, 4, at=(0, -23, 0))],
            ),
            Component(
                name="right shaft",
                colour=BRASS,
                at_mm=(50, 68, 0),
                after=(0,),
                look_alike=1,
                make=lambda: [rod(4.5, 40), rod(8, 4, at=(0, -17, 0))],
            ),
            Component(
                name="large gear",
                colour=YELLOW,
                at_mm=(-50, 60, 0),
                after=(1,),
                make=lambda: [gear(31, 18, 9), rod(11, 12, colour=ORANGE)],
            ),
            Component(
                name="middle gear",
                colour=RED,
                at_mm=(4, 60, 0),
                after=(2,),
                look_alike=6,
                make=lambda: [gear(23, 14, 9), rod(9, 12, colour=STEEL)],
            ),
            Component(
                name="right gear",
                colour=ORANGE,
                at_mm=(50, 60, 0),
                after=(3,),
                look_alike=5,
                make=lambda: [gear(23, 14, 9), rod(9, 12, colour=BLACK)],
            ),
            Component(
                name="left spacer",
                colour=WHITE,
                at_mm=(-50, 75, 0),
                after=(4,),
                look_alike=8,
                make=lambda: [ring(9, 5, 16)],
            ),
            Component(
                name="right spacer",
                colour=WHITE,
                at_mm=(50, 77, 0),
                after=(6,),
                look_alike=7,
                make=lambda: [ring(9, 5, 20)],
            ),
            Component(
                name="pinion",
                colour=GREEN,
                at_mm=(4, 76, 0),
                after=(5,),
                make=lambda: [gear(15, 10, 12)],
            ),
            Component(
                name="bridge bar",
                colour=GREY,
                at_mm=(0, 92, 0),
                after=(7, 8),
                needs_driver=True,
                make=lambda: [block(128, 7, 20), rod(6, 9, at=(54, 2, 0))],
            ),
            Component(
                name="crank",
                colour=BLACK,
                at_mm=(-50, 102, 0),
                after=(10,),
                make=lambda: [
                    block(50, 6, 10, at=(-14, 2, 0)),
                    rod(6, 26, at=(-34, 16, 0), colour=RED),
                    rod(8, 14, colour=STEEL),
                ],
            ),
            Component(
                name="front left post",
                colour=TEAL,
                at_mm=(-78, 68, 44),
                after=(0,),
                look_alike=13,
                needs_driver=True,
                make=lambda: [block(12, 38, 12)],
            ),
            Component(
                name="front right post",
                colour=TEAL,
                at_mm=(78, 62, 44),
                after=(0,),
                look_alike=12,
                needs_driver=True,
                make=lambda: [block(12, 26, 12)],
            ),
        ),
    )


def _lamp() -> Task:
    return Task(
        name="lamp",
        title="Assemble the desk lamp",
        components=(
            Component(
                name="foot",
                colour=TEAL,
                at_mm=(0, 46, 0),
                make=lambda: [cone(52, 40, 12), rod(10, 10, at=(0, 10, 0), colour=STEEL)],
            ),
            Component(
                name="switch box",
                colour=WHITE,
                at_mm=(60, 50, 14),
                after=(0,),
                needs_driver=True,
                make=lambda: [block(34, 18, 26), block(12, 6, 10, at=(0, 11, 0), colour=RED)],
            ),
            Component(
                name="lower post",
                colour=STEEL,
                at_mm=(0, 88, 0),
                after=(0,),
                look_alike=3,
                make=lambda: [rod(6, 64)],
            ),
            Component(
                name="upper arm",
                colour=STEEL,
                at_mm=(-26, 134, 0),
                turn_deg=(0, 0, 55),
                after=(4,),
                look_alike=2,
                make=lambda: [rod(6, 54)],
            ),
            Component(
                name="joint",
                colour=ORANGE,
                at_mm=(0, 122, 0),
                after=(2,),
                needs_driver=True,
                make=lambda: [ball(13), rod(5, 34, axis="z", colour=BLACK)],
            ),
            Component(
                name="shade",
                colour=RED,
                at_mm=(-62, 142, 0),
                turn_deg=(0, 0, -20),
                after=(3,),
                make=lambda: [cone(36, 16, 36), rod(8, 8, at=(0, 20, 0), colour=BLACK)],
            ),
            Component(
                name="cable clip",
                colour=BLACK,
                at_mm=(0, 78, 8),
                after=(2,),
                look_alike=7,
                make=lambda: [ring(11, 6, 9)],
            ),
            Component(
                name="collar",
                colour=GREY,
                at_mm=(0, 100, 0),
                after=(2,),
                look_alike=6,
                make=lambda: [ring(12, 6, 12)],
            ),
        ),
    )


TASKS: dict[str, Task] = {task.name: task for task in (_cart(), _gearbox(), _lamp())}


def find_task(name: str) -> Task:
    """Return the task of this name.

    Raises:
        ConfigError: No such task; the message names the known ones.
    """
    if name not in TASKS:
        raise ConfigError(f"no task is called {name!r}; known tasks: {', '.join(sorted(TASKS))}")
    return TASKS[name]


def turntable() -> list[Solid]:
    """What every assembly stands on: a disc that turns, and a post."""
    return [
        rod(58, 10, at=(0, 5, 0), colour=GREY, shine=0.2, sections=28),
        block(46, 32, 30, at=(0, 26, 0), colour=(0.10, 0.10, 0.11)),
    ]


def screwdriver() -> list[Solid]:
    """Upright, its tip at the origin."""
    return [
        rod(3, 70, at=(0, 35, 0), sections=8),
        rod(11, 62, at=(0, 100, 0), colour=ORANGE, sections=10),
        rod(12, 8, at=(0, 72, 0), colour=BLACK, sections=10),
    ]


def hammer() -> list[Solid]:
    """A small hammer, lying along x; never used."""
    return [
        rod(8, 150, axis="x", colour=(0.45, 0.24, 0.10), shine=0.1, sections=8),
        rod(12, 70, axis="z", at=(75, 2, 0), colour=STEEL),
    ]


def mug() -> list[Solid]:
    """A mug, its foot at the origin."""
    return [
        cone(34, 37, 80, at=(0, 40, 0), colour=WHITE, shine=0.6),
        rod(32, 2, at=(0, 80.5, 0), colour=(0.08, 0.04, 0.02)),
        hoop(20, 5, axis="z", at=(42, 42, 0), colour=WHITE),
    ]


def tape() -> list[Solid]:
    """A roll of tape, lying."""
    return [ring(34, 24, 20, at=(0, 10, 0), colour=(0.60, 0.52, 0.30))]
