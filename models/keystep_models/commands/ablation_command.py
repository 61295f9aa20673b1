"""`keystep evaluate ablation`: the STEPs paper's ablations on recordings of one's own."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keystep_capture.errors import ConfigError
from keystep_models.commands.evaluate_command import FeaturesOption
from keystep_models.commands.psr_options import make_console
from keystep_models.commands.steps_options import (
    ChunksOption,
    ProgressChoice,
    ProgressOption,
    check_drawing,
    training_extra,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from keystep_models.training.ablation import AblationPlan


def ablation(
    table: Annotated[
        str, typer.Argument(help="figure5, table4, 5, 6, 7, 8, 10, 11, 12, 14, or all.")
    ],
    features: FeaturesOption,
    out: Annotated[
        Path, typer.Option(help="Results; runs are kept in it and shared between tables.")
    ] = Path("keystep-ablation"),
    seeds: Annotated[int, typer.Option(min=2, help="Runs of each row.")] = 5,
    data: Annotated[
        str, typer.Option(help="What the recordings are, for titles.")
    ] = "simulated sessions",
    steps: Annotated[int, typer.Option(min=1, help="Training steps of the base settings.")] = 300,
    chunks: ChunksOption = 128,
    sigma: Annotated[float, typer.Option(help="Half-width of the window in time, s.")] = 2.0,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, a thread each.")] = 2,
    progress: ProgressOption = ProgressChoice.AUTO,
) -> None:
    """The paper's ablations: every row trained with several seeds, differences paired by seed.

    Stopped and called again, it goes on where it was.
    """
    with training_extra():
        from keystep_models.training.ablation import AblationPlan, run_ablation

    check_drawing()
    if chunks is None or chunks < 16:
        raise ConfigError(f"--chunks must be 16 or more, got {chunks}")
    if sigma <= 0:
        raise ConfigError(f"--sigma must be above 0, got {sigma}")
    plan = AblationPlan(
        features=features, out=out, seeds=seeds, data=data, steps=steps, chunk_count=chunks,
        sigma_seconds=sigma, processes=jobs,
    )  # fmt: skip
    run_ablation(table, plan, _teller(progress, plan))


def _teller(choice: ProgressChoice, plan: AblationPlan) -> Callable[[dict[str, Any]], None]:
    from keystep_models.commands.steps_options import progress_teller

    if choice in (ProgressChoice.JSON, ProgressChoice.NONE):
        return progress_teller(choice)
    console = make_console()
    began = time.monotonic()

    def tell(event: dict[str, Any]) -> None:
        if event["stage"] == "table":
            console.print(Path(event["markdown"]).read_text(encoding="utf-8"), markup=False)
            console.print(f"{event['markdown']}, .json, .png", markup=False)
            return
        if event["stage"] != "run":
            return
        words = f"{event['table']}: {event['done']} of {event['of']} runs"
        left_s = (time.monotonic() - began) / event["done"] * (event["of"] - event["done"])
        end = "\n"
        if sys.stderr.isatty():
            words, end = f"\r\x1b[K{words}, about {left_s / 60:.0f} min left", ""
            end = "\n" if event["done"] == event["of"] else ""
        sys.stderr.write(words + end)
        sys.stderr.flush()

    return tell
