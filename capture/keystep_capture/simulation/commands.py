"""`keystep simulate generate`: sessions to learn and measure with.

What it needs is imported when it runs: every `keystep` command loads this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keystep_capture.errors import ConfigError

if TYPE_CHECKING:
    from keystep_capture.simulation.generate import DatasetSpec

_DATA = Path("keystep-data") / "simulated"


def register(app: typer.Typer) -> None:
    """Add the group `keystep simulate` to the `keystep` command.

    What it does without a further word is the bridge's package's to say.
    """
    group = typer.Typer(invoke_without_command=True)
    group.command("generate")(generate)
    app.add_typer(group, name="simulate")


def generate(
    task: Annotated[str, typer.Option(help="cart, gearbox or lamp.")] = "cart",
    seed: Annotated[int, typer.Option(min=0, help="Decides everything, bit for bit.")] = 1,
    people: Annotated[
        int, typer.Option(min=1, max=1000, help="Sessions; person 0 is the expert.")
    ] = 1,
    first_person: Annotated[int, typer.Option(min=0, help="Number of the first person.")] = 0,
    profile: Annotated[
        str, typer.Option(help="learn (320x180, 10 Hz) or full (640x360, 30 Hz).")
    ] = "learn",
    occlusion: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of completions that hands hide.")
    ] = 0.5,
    mistakes: Annotated[
        float, typer.Option(min=0.0, max=10.0, help="Times each person's own rate; 0 for none.")
    ] = 1.0,
    limit_s: Annotated[
        float | None, typer.Option(min=1.0, help="Draw this much of each session only, seconds.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Processes.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the data set, in which generation goes on; by default one named for"
            " the settings below keystep-data/simulated."
        ),
    ] = None,
) -> None:
    """Generate simulated sessions with labels: rendered video, depth, gaze, head, hands."""
    _check_installed()
    from rich.console import Console
    from rich.progress import Progress

    from keystep_capture.simulation.generate import DatasetSpec
    from keystep_capture.simulation.generate import generate as run
    from keystep_capture.simulation.session import SessionSpec

    spec = DatasetSpec(
        session=SessionSpec(
            task=task, seed=seed, person=first_person, profile=profile,
            occlusion_rate=occlusion, mistake_scale=mistakes,
        ),
        people=people,
        limit_s=limit_s,
    )  # fmt: skip
    with Progress(console=Console(stderr=True)) as bars:
        whole = bars.add_task("sessions", total=people)
        current = bars.add_task("frames", total=None, visible=jobs == 1)

        def told(name: str, done: int, total: int) -> None:
            bars.update(current, description=name, completed=done, total=total)
            if done >= total:
                bars.advance(whole)

        folder = out or _DATA / _name_of(spec)
        folders = run(spec, folder, jobs=jobs, progress=told)
        bars.update(whole, completed=people)
    typer.echo(f"{len(folders)} simulated sessions in {folder}")


def _name_of(spec: DatasetSpec) -> str:
    """A folder's name for the settings, so that the same ones find what is there already."""
    one = spec.session
    name = f"{one.task}-{one.seed}-{one.profile}-o{one.occlusion_rate:g}-m{one.mistake_scale:g}"
    name += f"-from{one.person}" if one.person else ""
    return name + (f"-{spec.limit_s:g}s" if spec.limit_s is not None else "")


def _check_installed() -> None:
    try:
        import cv2
        import scipy  # noqa: F401
        import trimesh  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"simulation needs {error.name}: install keystep with the extra [simulate]"
        ) from error
    if not hasattr(cv2, "triangleRasterize"):
        raise ConfigError(
            f"simulation needs OpenCV 5's rasteriser, this is {cv2.__version__}: install keystep"
            " with the extra [simulate]"
        )
