"""`keystep evaluate guidance`: one expert's recording, and how well it guides other people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keystep_capture.errors import ConfigError, DataError
from keystep_models.commands.psr_options import make_console
from keystep_models.commands.steps_options import split_cues, training_extra

if TYPE_CHECKING:
    from keystep_models.measures.guidance_report import Guide, Session, Trace

_PREFIX = "steps."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Method:
    """A row of the table; one guide per seed of the encoders, or one."""

    name: str
    guides: Sequence[Guide]
    sessions: Sequence[Sequence[Session]]


def guidance(
    features: Annotated[Path, typer.Option(help="Feature folder with labels (docs/steps.md).")],
    expert: Annotated[str, typer.Option(help="The one recording that is learned from.")],
    cues: Annotated[str, typer.Option(help="Cues whose features are seen.")] = "appearance",
    model: Annotated[
        list[Path] | None,
        typer.Option(help="Encoders trained on the expert alone; several: a run per seed."),
    ] = None,
    train: Annotated[
        Path | None, typer.Option(help="Train those encoders here, --seeds of them, and use them.")
    ] = None,
    extracted: Annotated[
        bool, typer.Option(help="Key steps as extract finds them, instead of reviewed ones.")
    ] = False,
    clusters: Annotated[int, typer.Option(help="K of --extracted; 0 chooses it.")] = 7,
    tempo: Annotated[
        bool, typer.Option(help="Play every stretch and gap 0.6 to 1.6 times as fast, per seed.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Of --tempo and --train.")] = 5,
    stride: Annotated[int, typer.Option(min=1, help="Every how many ticks one is taken.")] = 2,
    tolerance: Annotated[float, typer.Option(min=0, help="How late a report may be, s.")] = 10.0,
    only: Annotated[str, typer.Option(help="People to test on; all others by default.")] = "",
    pictures: Annotated[Path | None, typer.Option(help="Draw the worst sessions here.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all scores.")] = None,
) -> None:
    """Guidance from one recording: completions of other people's steps, beside what knows less."""
    from keystep_models.measures import guidance_report as report
    from keystep_models.steps.feature_folder import read_keystep_names

    wanted = split_cues(cues)
    everyone = _sessions(features, wanted)
    if expert not in everyone:
        raise ConfigError(f"no recording {expert!r} in {features}; there are {sorted(everyone)}")
    runs = _runs(features, expert, wanted, model or [], train, seeds)
    encoded = [_encoded(features, run, wanted) for run in runs]
    own = everyone[expert]
    segments = (
        _extracted_segments(features, expert, wanted, clusters)
        if extracted
        else report.true_segments(own)
    )
    known = list(dict.fromkeys(s.step_id for s in report.true_segments(own)))
    names = report.labels_of(segments, own) if extracted else None
    rate_hz = _rate(features, expert)
    chosen = only.split(",") if only else [name for name in everyone if name != expert]
    if missing := [name for name in chosen if name not in everyone or name == expert]:
        raise ConfigError(f"cannot test on {missing[0]!r}; it is no other recording's name")

    def played(parts: Mapping[str, Any]) -> list[list[Session]]:
        """The tested sessions, a list per seed."""
        made = []
        for seed in range(seeds if tempo else 1):
            sessions = [replace(everyone[n], parts={**everyone[n].parts, **parts.get(n, {})})
                        for n in chosen]  # fmt: skip
            if tempo:
                sessions = [report.with_tempo(s, seed, rate_hz) for s in sessions]
            made.append([report.thinned(session, stride) for session in sessions])
        return made

    methods = list(_methods(own, segments, names, wanted, encoded, expert, rate_hz, stride, played))
    rows: dict[str, list[list[Trace]]] = {}
    for method in methods:
        rows[method.name] = [
            [guide.follow(session, known, tolerance) for session in sessions]
            for guide in method.guides
            for sessions in method.sessions
        ]
    rows["uniform, told the session's length"] = [
        [report.uniform_trace(session, known, known, tolerance) for session in sessions]
        for sessions in played({})
    ]
    _print(rows, tolerance, "extracted" if extracted else "reviewed", tempo)
    if json_file is not None:
        _write(json_file, rows, known)
    if pictures is not None:
        titles = dict(enumerate(read_keystep_names(features), start=1))
        order = [s.step_id for s in segments] if extracted else known
        _draw(pictures, rows[methods[0].name][0], order, titles, tolerance)


def _methods(
    own: Session, segments: Any, names: Any, cues: tuple[str, ...], encoded: list[dict[str, Any]],
    expert: str, rate_hz: float, stride: int, played: Any,
) -> Iterator[_Method]:  # fmt: skip
    from keystep_models.guidance.emissions import EmissionSettings
    from keystep_models.guidance.filter_settings import FilterSettings
    from keystep_models.measures.guidance_report import Guide, thinned

    filtering = FilterSettings(tick_rate_hz=rate_hz / stride)
    usual = EmissionSettings()
    sparser = replace(usual, strength=usual.strength * stride)
    slow = [replace(s, start_tick=s.start_tick // stride, end_tick=s.end_tick // stride)
            for s in segments]  # fmt: skip

    def make(expert_session: Session, parts: Sequence[str], emissions: EmissionSettings) -> Guide:
        return Guide(
            thinned(expert_session, stride), _apart(slow), parts=parts, emissions=emissions,
            filtering=filtering, names=names,
        )  # fmt: skip

    sessions = played({})
    yield _Method(name="key-step filter", guides=[make(own, cues, sparser)], sessions=sessions)
    plain = replace(sparser, shrinkage=1.0)
    yield _Method(
        name="the same, distances between raw features", guides=[make(own, cues, plain)],
        sessions=sessions,
    )  # fmt: skip
    if encoded:
        for title, parts in (
            ("the same, STEPs embeddings", [f"{_PREFIX}{cue}" for cue in cues]),
            ("the same, raw and STEPs", [*cues, *(f"{_PREFIX}{cue}" for cue in cues)]),
        ):
            for run, parts_of in enumerate(encoded):
                session = replace(own, parts={**own.parts, **parts_of[expert]})
                yield _Method(
                    name=f"{title}, run {run}", guides=[make(session, parts, sparser)],
                    sessions=played(parts_of),
                )  # fmt: skip
    yield _Method(name="clock and order", guides=[make(own, (), sparser)], sessions=sessions)


def _apart(segments: Any) -> list[Any]:
    """Stretches that still do not overlap after thinning."""
    found: list[Any] = []
    for segment in sorted(segments, key=lambda s: s.start_tick):
        start = max(segment.start_tick, found[-1].end_tick + 1 if found else 0)
        if segment.end_tick >= start:
            found.append(replace(segment, start_tick=start))
    return found


def _sessions(folder: Path, cues: tuple[str, ...]) -> dict[str, Session]:
    from keystep_models.guidance.emissions import PartRows
    from keystep_models.measures.guidance_report import Session
    from keystep_models.steps.feature_folder import read_folder

    found = {}
    for video in read_folder(folder):
        if video.labels is None:
            raise DataError(f"{folder / video.name}: expected labels.npy, a key step per frame")
        if lost := [cue for cue in cues if cue not in video.cues]:
            raise DataError(f"{folder / video.name}: has no cue {lost[0]!r}")
        parts = {
            cue: PartRows(rows=video.cues[cue].features, valid=video.cues[cue].valid)
            for cue in cues
        }
        found[video.name] = Session(
            name=video.name, parts=parts, labels=video.labels, times_s=video.times_s
        )
    return found


def _rate(folder: Path, name: str) -> float:
    from keystep_models.steps.feature_folder import read_video

    return read_video(folder / name).rate_hz


def _runs(
    folder: Path, expert: str, cues: tuple[str, ...], models: list[Path], train: Path | None,
    seeds: int,
) -> list[Path]:  # fmt: skip
    """Encoders given, or trained on the expert's recording alone; a run that is there is used."""
    if train is None:
        return models
    from keystep_models.steps.feature_folder import read_video
    from keystep_models.steps.settings import preset, with_changes

    with training_extra():
        from keystep_models.training.train_steps import train_steps

        for seed in range(seeds):
            settings = with_changes(preset("small"), cues=cues, causal=True, seed=seed)
            train_steps([read_video(folder / expert)], settings, train / f"seed-{seed}")
    return [*models, *(train / f"seed-{seed}" for seed in range(seeds))]


def _encoded(folder: Path, run: Path, cues: tuple[str, ...]) -> dict[str, Any]:
    """What encoders make of every recording: name to parts."""
    from keystep_models.guidance.emissions import PartRows
    from keystep_models.steps.feature_folder import read_folder

    with training_extra():
        from keystep_models.training.steps_model import StepsModel, adapt_video

        model = StepsModel.load(run / "model.pt" if run.is_dir() else run)
        if lost := [cue for cue in cues if cue not in model.sizes]:
            raise DataError(f"{run}: was not trained on cue {lost[0]!r}")
        if not model.settings.causal:
            raise DataError(f"{run}: its encoders look ahead; train with --causal")
        return {
            video.name: {
                f"{_PREFIX}{cue}": PartRows(rows=rows, valid=valid)
                for cue, (rows, valid) in adapt_video(model, video, stride=1)[1].items()
                if cue in cues
            }
            for video in read_folder(folder)
        }


def _extracted_segments(folder: Path, name: str, cues: tuple[str, ...], clusters: int) -> Any:
    """Key steps as `keystep extract` finds them in the expert's raw features."""
    from keystep_models.guidance.step_timing import ExpertSegment
    from keystep_models.steps.adapted import join_cues
    from keystep_models.steps.feature_folder import read_video
    from keystep_models.steps.key_step_files import find_key_steps
    from keystep_models.steps.settings import ExtractionSettings
    from keystep_models.steps.temporal_sampling import evaluation_frames

    video = read_video(folder / name)
    settings = ExtractionSettings(cluster_count=clusters)
    frames = evaluation_frames(video.frame_count, settings.stride)
    there = {c: (cue.features[frames], cue.valid[frames]) for c, cue in video.cues.items()}
    found = find_key_steps(video, frames, join_cues(there, cues), settings)
    segments = [
        ExpertSegment(
            step_id=place, start_tick=int(frames[s.start_idx]), end_tick=int(frames[s.end_idx])
        )
        for place, s in enumerate(sorted(found.segments, key=lambda s: s.start_idx))
    ]
    return _apart(segments)


def _print(rows: dict[str, list[list[Trace]]], tolerance: float, steps: str, tempo: bool) -> None:
    import numpy as np
    from rich.table import Table

    title = f"Guidance from one recording, {steps} key steps, {tolerance:g} s tolerance"
    table = Table(title=title + (", tempo 0.6 to 1.6" if tempo else ""), title_justify="left")
    table.add_column("method")
    for name in ("precision", "recall", "F1", "delay, median s", "mean s", "retracted", "runs"):
        table.add_column(name, justify="right")
    for name, runs in rows.items():
        columns = []
        for measure in ("precision", "recall", "f1"):
            # The spread is over people; runs of one person are averaged first.
            of = np.array([[getattr(t.score, measure) for t in run] for run in runs]).mean(axis=0)
            error = of.std(ddof=1) / np.sqrt(len(of)) if len(of) > 1 else 0.0
            columns.append(f"{of.mean():.3f} ± {error:.3f}")
        delays = [d for run in runs for t in run for d in t.score.delays_s]
        columns += [f"{np.median(delays):.1f}", f"{np.mean(delays):.1f}"] if delays else ["-", "-"]
        columns.append(f"{np.mean([t.score.retracted for run in runs for t in run]):.2f}")
        table.add_row(name, *columns, str(len(runs)))
    make_console().print(table)


def _write(path: Path, rows: dict[str, list[list[Trace]]], order: list[int]) -> None:
    from keystep_models.measures.guidance_report import inversions
    from keystep_models.steps.feature_folder import write_json

    document = {
        name: [
            {
                trace.session.name: {
                    "precision": trace.score.precision,
                    "recall": trace.score.recall,
                    "f1": trace.score.f1,
                    "delays_s": list(trace.score.delays_s),
                    "retracted": trace.score.retracted,
                    "inversions": inversions(trace.session, order),
                }
                for trace in run
            }
            for run in runs
        ]
        for name, runs in rows.items()
    }
    write_json(path, document)


def _draw(
    folder: Path, traces: Sequence[Trace], order: list[int], titles: Mapping[int, str],
    tolerance: float,
) -> None:  # fmt: skip
    import cv2

    from keystep_models.measures.guidance_picture import draw_trace

    folder.mkdir(parents=True, exist_ok=True)
    for trace in sorted(traces, key=lambda t: t.score.f1)[:3]:
        image = draw_trace(trace, order, titles, tolerance_s=tolerance)
        cv2.imwrite(str(folder / f"{trace.session.name}.png"), image)
