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
_WHOLE_PICTURE = "appearance"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Method:
    """A row of the table; one guide per seed of the encoders, or one."""

    name: str
    guides: Sequence[Guide]
    sessions: Sequence[Sequence[Session]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """What is the same for every expert.

    Attributes:
        features: Feature folder.
        everyone: Its recordings, with the parts of `cues` and of the whole picture.
        cues: What the filter sees.
        tested: People to test on; nobody: everyone but the expert.
        prefix: Labels that count as steps begin so.
        tempo_seeds: 0: as recorded.
        stride: Every how many ticks one is taken.
        tolerance_s: How late a report may be.
        clusters: Extracted key steps, k-means of so many; None: reviewed ones.
    """

    features: Path
    everyone: Mapping[str, Session]
    cues: tuple[str, ...]
    tested: tuple[str, ...]
    prefix: str
    tempo_seeds: int
    stride: int
    tolerance_s: float
    clusters: int | None

    @property
    def rate_hz(self) -> float:
        """Ticks a second of the features."""
        from keystep_models.steps.feature_folder import read_video

        return read_video(self.features / next(iter(self.everyone))).rate_hz

    def chosen(self, expert: str) -> list[str]:
        """Whom an expert is tested on."""
        names = [name for name in self.tested or self.everyone if name != expert]
        if missing := [name for name in names if name not in self.everyone]:
            raise ConfigError(f"cannot test on {missing[0]!r}; it is no recording's name")
        if not names:
            raise ConfigError(f"nobody is left to test {expert} on; name others with --only")
        return names

    def played(self, expert: str, parts: Mapping[str, Any]) -> list[list[Session]]:
        """The tested sessions, a list per seed of the tempo."""
        from keystep_models.measures.guidance_report import thinned, with_tempo

        made = []
        for seed in range(max(self.tempo_seeds, 1)):
            sessions = [
                replace(one, parts={**one.parts, **parts.get(one.name, {})})
                for one in (self.everyone[name] for name in self.chosen(expert))
            ]
            if self.tempo_seeds:
                sessions = [with_tempo(one, seed, self.rate_hz) for one in sessions]
            made.append([thinned(one, self.stride) for one in sessions])
        return made

    def learned(self, expert: str) -> Session:
        """The expert's session; labels that do not count as steps are none."""
        import numpy as np

        from keystep_models.steps.feature_folder import read_keystep_names

        if expert not in self.everyone:
            raise ConfigError(
                f"no recording {expert!r} in {self.features}; there are {sorted(self.everyone)}"
            )
        own = self.everyone[expert]
        if not self.prefix:
            return own
        names = enumerate(read_keystep_names(self.features), start=1)
        kept = [number for number, name in names if name.startswith(self.prefix)]
        return replace(own, labels=np.where(np.isin(own.labels, kept), own.labels, 0))


def guidance(
    features: Annotated[Path, typer.Option(help="Feature folder with labels (docs/steps.md).")],
    expert: Annotated[
        str, typer.Option(help="The one recording that is learned from; a,b: one after the other.")
    ],
    cues: Annotated[
        str | None,
        typer.Option(help="Cues that are seen; by default gaze_appearance, else appearance."),
    ] = None,
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
    steps: Annotated[
        str, typer.Option(help="Only labels that begin so are steps; by default all.")
    ] = "",
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
    from keystep_models.measures.guidance_table import print_table

    experts = [name.strip() for name in expert.split(",") if name.strip()]
    if not experts:
        raise ConfigError("--expert names nobody; expected a recording's name")
    if len(experts) != 1 and (model or train or extracted or pictures):
        raise ConfigError("--model, --train, --extracted and --pictures are for one --expert")
    wanted, everyone = _sessions(features, None if cues is None else split_cues(cues))
    trial = _Trial(
        features=features, everyone=everyone, cues=wanted,
        tested=tuple(name.strip() for name in only.split(",") if name.strip()), prefix=steps,
        tempo_seeds=seeds if tempo else 0, stride=stride, tolerance_s=tolerance,
        clusters=clusters if extracted else None,
    )  # fmt: skip
    rows: dict[str, list[list[Trace]]] = {}
    for name in experts:
        trial.learned(name)
        runs = _runs(features, name, wanted, model or [], train, seeds)
        encoded = [_encoded(features, run, wanted) for run in runs]
        for method, traces in _rows(trial, name, encoded).items():
            rows.setdefault(method, []).extend(traces)
    title = f"Guidance from one recording, {'extracted' if extracted else 'reviewed'} key steps"
    if len(experts) > 1:
        title += f", {len(experts)} experts in turn"
    title += f", {', '.join(wanted)}, {tolerance:g} s tolerance"
    print_table(make_console(), title + (", tempo 0.6 to 1.6" if tempo else ""), rows)
    if json_file is not None:
        _write(json_file, rows, _known(trial, experts[0]))
    if pictures is not None:
        _draw(pictures, next(iter(rows.values()))[0], trial, experts[0])


def _known(trial: _Trial, expert: str) -> list[int]:
    """Labels of the expert's steps in order."""
    from keystep_models.measures.guidance_report import true_segments

    return list(dict.fromkeys(s.step_id for s in true_segments(trial.learned(expert))))


def _rows(
    trial: _Trial, expert: str, encoded: list[dict[str, Any]]
) -> dict[str, list[list[Trace]]]:
    """Every method's runs over the people that one expert is tested on."""
    from keystep_models.measures.guidance_report import uniform_trace

    known, tolerance_s = _known(trial, expert), trial.tolerance_s
    rows: dict[str, list[list[Trace]]] = {}
    for method in _methods(trial, expert, encoded):
        rows.setdefault(method.name, []).extend(
            [guide.follow(session, known, tolerance_s) for session in sessions]
            for guide in method.guides
            for sessions in method.sessions
        )
    rows["uniform, told the session's length"] = [
        [uniform_trace(session, known, known, tolerance_s) for session in sessions]
        for sessions in trial.played(expert, {})
    ]
    return rows


def _methods(trial: _Trial, expert: str, encoded: list[dict[str, Any]]) -> Iterator[_Method]:
    from keystep_models.bundles.from_recording import raw_emissions
    from keystep_models.cues.gaze_crop import CUE as GAZE_APPEARANCE
    from keystep_models.guidance.emissions import EmissionSettings
    from keystep_models.guidance.filter_settings import FilterSettings
    from keystep_models.measures.guidance_report import Guide, labels_of, thinned, true_segments

    own, stride, cues = trial.learned(expert), trial.stride, trial.cues
    segments, names = true_segments(own), None
    if trial.clusters is not None:
        segments = _extracted_segments(trial.features, expert, cues, trial.clusters)
        names = labels_of(segments, own)
    filtering = FilterSettings(tick_rate_hz=trial.rate_hz / stride)
    # As bundles are: the whole picture stands in for what is around a gaze point that is missing.
    alone = cues == (GAZE_APPEARANCE,) and _WHOLE_PICTURE in own.parts
    seen = (*cues, _WHOLE_PICTURE) if alone else cues
    usual = raw_emissions(seen) if alone else EmissionSettings()
    sparser = replace(usual, strength=usual.strength * stride)
    slow = [replace(s, start_tick=s.start_tick // stride, end_tick=s.end_tick // stride)
            for s in segments]  # fmt: skip

    def guide(parts: Sequence[str], *, plain: bool = False, session: Session = own) -> Guide:
        emissions = replace(sparser, shrinkage=1.0, part_shrinkages={}) if plain else sparser
        return Guide(
            thinned(session, stride), _apart(slow), parts=parts, emissions=emissions,
            filtering=replace(filtering, level_share=0.0) if plain else filtering, names=names,
        )  # fmt: skip

    sessions = trial.played(expert, {})
    yield _Method(name="key-step filter", guides=[guide(seen)], sessions=sessions)
    whole = (_WHOLE_PICTURE,)
    beside = whole != cues and _WHOLE_PICTURE in own.parts
    if beside:
        yield _Method(
            name="the same, whole picture", guides=[guide(whole)], sessions=sessions
        )  # fmt: skip
    yield _Method(
        name="plain distances of the same cues", guides=[guide(cues, plain=True)],
        sessions=sessions,
    )  # fmt: skip
    if beside:
        yield _Method(
            name="plain distances, whole picture", guides=[guide(whole, plain=True)],
            sessions=sessions,
        )  # fmt: skip
    for title, parts in (
        ("the same, STEPs embeddings", [f"{_PREFIX}{cue}" for cue in cues]),
        ("the same, raw and STEPs", [*cues, *(f"{_PREFIX}{cue}" for cue in cues)]),
    ):
        for run, parts_of in enumerate(encoded):
            session = replace(own, parts={**own.parts, **parts_of[expert]})
            yield _Method(
                name=f"{title}, run {run}", guides=[guide(parts, session=session)],
                sessions=trial.played(expert, parts_of),
            )  # fmt: skip
    yield _Method(name="clock and order", guides=[guide(())], sessions=sessions)


def _apart(segments: Any) -> list[Any]:
    """Stretches that still do not overlap after thinning."""
    found: list[Any] = []
    for segment in sorted(segments, key=lambda s: s.start_tick):
        start = max(segment.start_tick, found[-1].end_tick + 1 if found else 0)
        if segment.end_tick >= start:
            found.append(replace(segment, start_tick=start))
    return found


def _sessions(
    folder: Path, cues: tuple[str, ...] | None
) -> tuple[tuple[str, ...], dict[str, Session]]:
    """The cues that are seen, and every recording with those and the whole picture's."""
    from keystep_models.cues.gaze_crop import CUE as GAZE_APPEARANCE
    from keystep_models.guidance.emissions import PartRows
    from keystep_models.measures.guidance_report import Session
    from keystep_models.steps.feature_folder import read_folder

    videos = read_folder(folder)
    if cues is None:
        at_gaze = all(GAZE_APPEARANCE in video.cues for video in videos)
        cues = (GAZE_APPEARANCE if at_gaze else _WHOLE_PICTURE,)
    found = {}
    for video in videos:
        if video.labels is None:
            raise DataError(f"{folder / video.name}: expected labels.npy, a key step per frame")
        if lost := [cue for cue in cues if cue not in video.cues]:
            raise DataError(f"{folder / video.name}: has no cue {lost[0]!r}")
        parts = {
            cue: PartRows(rows=video.cues[cue].features, valid=video.cues[cue].valid)
            for cue in dict.fromkeys((*cues, _WHOLE_PICTURE))
            if cue in video.cues
        }
        found[video.name] = Session(
            name=video.name, parts=parts, labels=video.labels, times_s=video.times_s
        )
    return cues, found


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


def _draw(folder: Path, traces: Sequence[Trace], trial: _Trial, expert: str) -> None:
    import cv2

    from keystep_models.measures.guidance_picture import draw_trace
    from keystep_models.steps.feature_folder import read_keystep_names

    titles = dict(enumerate(read_keystep_names(trial.features), start=1))
    order = _known(trial, expert)
    if trial.clusters is not None:
        found = _extracted_segments(trial.features, expert, trial.cues, trial.clusters)
        order = [segment.step_id for segment in found]
    folder.mkdir(parents=True, exist_ok=True)
    for trace in sorted(traces, key=lambda t: t.score.f1)[:3]:
        image = draw_trace(trace, order, titles, tolerance_s=trial.tolerance_s)
        cv2.imwrite(str(folder / f"{trace.session.name}.png"), image)
