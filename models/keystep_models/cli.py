"""`keystep psr`, `procedure`, `extract`, `train`, `evaluate` and `features`."""

from __future__ import annotations

import typer

from keystep_models.commands import evaluate_command
from keystep_models.commands.ablation_command import ablation
from keystep_models.commands.evaluate_baselines import baselines
from keystep_models.commands.evaluate_guidance import guidance
from keystep_models.commands.evaluate_mistakes import mistakes
from keystep_models.commands.evaluate_occlusion import occlusion
from keystep_models.commands.extract_command import extract
from keystep_models.commands.features_command import convert as convert_features
from keystep_models.commands.procedure_commands import check, convert
from keystep_models.commands.psr_clips import clips
from keystep_models.commands.psr_detect import detect
from keystep_models.commands.psr_run import run
from keystep_models.commands.psr_score import score
from keystep_models.commands.train_detector_command import detector
from keystep_models.commands.train_export_command import export
from keystep_models.commands.train_steps_command import steps
from keystep_models.commands.train_storm_command import storm


def register(app: typer.Typer) -> None:
    """Add the models' subcommands to the `keystep` command."""
    psr = typer.Typer(no_args_is_help=True, help="Recognise steps from detections, and measure it.")
    psr.command("detect")(detect)
    psr.command("run")(run)
    psr.command("score")(score)
    psr.command("clips")(clips)
    app.add_typer(psr, name="psr")
    procedure = typer.Typer(no_args_is_help=True, help="Procedures: check and convert them.")
    procedure.command("check")(check)
    procedure.command("convert")(convert)
    app.add_typer(procedure, name="procedure")
    app.command("extract")(extract)
    train = typer.Typer(no_args_is_help=True, help="Train models (needs the [train] extra).")
    train.callback()(_group)
    train.command("steps")(steps)
    train.command("export")(export)
    train.command("storm")(storm)
    train.command("detector")(detector)
    app.add_typer(train, name="train")
    evaluate = typer.Typer(no_args_is_help=True, help="Measure features against labels.")
    for name in ("ksl", "phase", "tau", "summary"):
        evaluate.command(name)(getattr(evaluate_command, name))
    evaluate.command("ablation")(ablation)
    evaluate.command("guidance")(guidance)
    evaluate.command("occlusion")(occlusion)
    evaluate.command("baselines")(baselines)
    evaluate.command("mistakes")(mistakes)
    app.add_typer(evaluate, name="evaluate")
    features = typer.Typer(no_args_is_help=True, help="Feature folders of data sets.")
    features.callback()(_features)
    features.command("convert")(convert_features)
    app.add_typer(features, name="features")


def _group() -> None:
    """Train models (needs the [train] extra)."""


def _features() -> None:
    """Feature folders of data sets."""
