"""Trains and measures what an ablation compares; every run is kept and shared between tables.

    RUNS/ID/model.pt, curves.json, settings.json     one training (see `train_steps`)
    RUNS/ID/scores.json                              what was measured on it

ID stands for the settings and for the features and labels themselves. A run that was stopped goes
on from its last checkpoint. Each run computes with one thread, so that it repeats whatever the
number of processes.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from keystep_capture.errors import DataError, StateError
from keystep_models.measures.ablation_tables import ANCHOR, Variant
from keystep_models.measures.baselines import uniform_clusters
from keystep_models.measures.ksl import localize
from keystep_models.measures.ksl_protocol import localize_videos
from keystep_models.steps.adapted import JoinedFeatures, join_cues
from keystep_models.steps.feature_folder import (
    VideoFeatures,
    keystep_count,
    read_folder,
    write_json,
)
from keystep_models.steps.settings import TrainingSettings
from keystep_models.steps.temporal_sampling import evaluation_frames
from keystep_models.training.steps_model import StepsModel, adapt_video
from keystep_models.training.train_steps import run_identity, train_steps

CLUSTERINGS = 3
"""Clusterings that a run's measures are averaged over."""
STRIDE = 2

Scores = dict[str, dict[str, float]]
"""Part of the recordings to measures: "all", and where not all were trained on, "own" and "others";
"own raw" and "own uniform" are those baselines on the recordings trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A training with all that is measured on it.

    Attributes:
        settings: Of the training.
        recordings: Names of the recordings trained on.
        wanted: (cues joined, K) of each measurement.
    """

    settings: TrainingSettings
    recordings: tuple[str, ...]
    wanted: tuple[tuple[tuple[str, ...], int], ...]


def variant_settings(
    base: TrainingSettings, variant: Variant, *, steps: int, recording_count: int, seed: int
) -> TrainingSettings:
    """A variant's settings of training.

    Args:
        base: What all variants share.
        variant: What differs.
        steps: Training steps of the base; as many, whatever the number of recordings.
        recording_count: Recordings trained on.
        seed: Of the run.
    """
    batches = -(-max(base.batch_size, recording_count) // base.batch_size)  # of an epoch
    epochs = max(1, round(steps * variant.longer / batches))
    return replace(
        base,
        **variant.changes,
        epochs=epochs,
        drop_epochs=(max(1, round(variant.drop_share * epochs)),),
        seed=seed,
    )


def drawn_recordings(names: Sequence[str], count: int, seed: int) -> tuple[str, ...]:
    """Which recordings a seed trains on; fewer are always part of more."""
    if not 0 < count < len(names):
        return tuple(names)
    order = np.random.default_rng([seed, len(names)]).permutation(len(names))
    return tuple(sorted(names[place] for place in order[:count]))


def data_digest(videos: Sequence[VideoFeatures]) -> str:
    """Tells one set of features and labels from another; every 50th frame is looked at."""
    digest = hashlib.sha256()
    for video in videos:
        digest.update(video.name.encode())
        if video.labels is not None:
            digest.update(video.labels.tobytes())
        for name in sorted(video.cues):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(video.cues[name].features[::50]).tobytes())
    return digest.hexdigest()


def run_jobs(
    folder: Path,
    runs: Path,
    jobs: Sequence[Job],
    *,
    processes: int = 1,
    on_progress: Callable[[int, int, Job], None] | None = None,
) -> list[dict[str, Scores]]:
    """Train and measure; what is there already is read.

    Args:
        folder: Feature folder, with labels.
        runs: Where runs are kept.
        jobs: What to do; equal trainings are done once.
        processes: Runs at a time; one is done in this process.
        on_progress: Told the number of finished jobs, of all, and the one that has ended.

    Returns:
        For each job: measurement ("appearance|7") to scores.

    Raises:
        KeystepError: A run failed; what was finished stays.
    """
    runs.mkdir(parents=True, exist_ok=True)
    found: dict[int, dict[str, Scores]] = {}
    tell = on_progress or (lambda done, of, job: None)
    if processes == 1:
        store = RunStore(folder, runs)
        with _one_thread():
            for place, job in enumerate(jobs):
                found[place] = store.scores(job)
                tell(len(found), len(jobs), job)
        return list(found.values())
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=_begin_worker, initargs=(folder, runs)
    ) as pool:
        waiting: dict[Future[dict[str, Scores]], int] = {
            pool.submit(_work, job): place for place, job in enumerate(jobs)
        }
        try:
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    place = waiting.pop(future)
                    found[place] = future.result()
                    tell(len(found), len(jobs), jobs[place])
        except BaseException as error:  # Ctrl-C too: do not wait for runs of minutes
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise StateError(
                    "a process that trained was ended from outside (memory?); "
                    "repeat the command to go on, with fewer --jobs"
                ) from error
            raise
    return [found[place] for place in range(len(jobs))]


class RunStore:
    """Runs on one data set, each trained and measured when it is first asked for."""

    def __init__(self, folder: Path, runs: Path) -> None:
        """Open a feature folder.

        Raises:
            DataError: It is not as documented, or has no labels.
        """
        self._runs = runs
        self._videos = {video.name: video for video in read_folder(folder)}
        self._keysteps = keystep_count(folder, list(self._videos.values()))
        self._digest = data_digest(list(self._videos.values()))

    def run_folder(self, job: Job) -> Path:
        """Where a job's training is kept."""
        videos = [self._videos[name] for name in job.recordings]
        identity = run_identity(videos, job.settings) + self._digest
        return self._runs / hashlib.sha256(identity.encode()).hexdigest()[:16]

    def scores(self, job: Job) -> dict[str, Scores]:
        """Train if need be, measure what is not measured yet."""
        folder = self.run_folder(job)
        known = _read_scores(folder / "scores.json")
        missing = [each for each in job.wanted if measurement_name(*each) not in known]
        if missing:
            model = self._trained(job, folder)
            adapted = [adapt_video(model, v, stride=STRIDE) for v in self._videos.values()]
            for cues, clusters in missing:
                joined = [join_cues(each, cues) for _, each in adapted]
                labels = [
                    _labels(video)[frames]
                    for video, (frames, _) in zip(self._videos.values(), adapted, strict=True)
                ]
                known[measurement_name(cues, clusters)] = self._measure(
                    joined, labels, clusters, job.recordings
                )
            write_json(folder / "scores.json", known)
        return {measurement_name(*each): known[measurement_name(*each)] for each in job.wanted}

    def _trained(self, job: Job, folder: Path) -> StepsModel:
        if (folder / "model.pt").exists():
            return StepsModel.load(folder / "model.pt")
        videos = [self._videos[name] for name in job.recordings]
        model = train_steps(videos, job.settings, folder)
        (folder / "checkpoint.pt").unlink(
            missing_ok=True
        )  # three times the model's size, for hundreds of runs
        return model

    def _measure(
        self,
        joined: Sequence[JoinedFeatures],
        labels: Sequence[NDArray[np.int64]],
        clusters: int,
        trained_on: tuple[str, ...],
    ) -> Scores:
        def of(features: Sequence[JoinedFeatures], places: Sequence[int]) -> dict[str, float]:
            return mean_scores(
                [features[place].features[features[place].valid] for place in places],
                [labels[place][features[place].valid] for place in places],
                self._keysteps,
                clusters,
            )

        names = list(self._videos)
        own = [place for place, name in enumerate(names) if name in trained_on]
        others = [place for place in range(len(names)) if place not in own]
        found = {"all": of(joined, range(len(names)))}
        if others:
            raw = [raw_features(video) for video in self._videos.values()]
            truth = np.concatenate([labels[place] for place in own])
            pieces = [uniform_clusters(len(labels[place]), clusters) for place in own]
            uniform = localize(truth, np.concatenate(pieces), self._keysteps, clusters)
            found |= {
                "own": of(joined, own),
                "own raw": of(raw, own),
                "own uniform": asdict(uniform),
                "others": of(joined, others),
            }
        return found


def mean_scores(
    features: Sequence[NDArray[np.float32]],
    labels: Sequence[NDArray[np.int64]],
    keysteps: int,
    clusters: int,
) -> dict[str, float]:
    """Key-step localisation, all recordings' frames together, averaged over clusterings."""
    each = [
        asdict(
            localize_videos(
                features, labels, num_keysteps=keysteps, num_clusters=clusters, seed=seed
            )
        )
        for seed in range(CLUSTERINGS)
    ]
    return {name: float(np.mean([scores[name] for scores in each])) for name in each[0]}


def raw_features(video: VideoFeatures) -> JoinedFeatures:
    """Raw features of the anchor cue in the frames that are measured, each of length 1.

    Raises:
        DataError: The video lacks the cue in more than half of its frames.
    """
    frames = evaluation_frames(video.frame_count, STRIDE)
    own = {name: cue for name, cue in video.cues.items() if name == ANCHOR}
    there = {name: (cue.features[frames], cue.valid[frames]) for name, cue in own.items()}
    return join_cues(there, (ANCHOR,))


def measurement_name(cues: Sequence[str], clusters: int) -> str:
    """How `scores.json` names a measurement."""
    return f"{'+'.join(cues)}|{clusters}"


def _labels(video: VideoFeatures) -> NDArray[np.int64]:
    if video.labels is None:
        raise DataError(f"{video.name}: expected labels.npy, a key step per frame")
    return video.labels


def _read_scores(path: Path) -> dict[str, Scores]:
    if not path.exists():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Scores])
    except msgspec.DecodeError as error:
        raise DataError(f"{path}: not what was written here ({error}); delete it") from error


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_store: Any = None


def _begin_worker(folder: Path, runs: Path) -> None:
    global _store  # one per process: features are opened once
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked ends this one
    torch.set_num_threads(1)
    _store = RunStore(folder, runs)


def _work(job: Job) -> dict[str, Scores]:
    found: dict[str, Scores] = _store.scores(job)
    return found
