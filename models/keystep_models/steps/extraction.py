"""Key-step extraction: cluster a session's frames and keep each cluster's best moments.

Source: Shah et al., "STEPs", ICCV 2023, algorithm 1 and section 3.4. T is the number of frames,
D of features, K of clusters. The stages are public, so that another clustering (FINCH, say) can
take k-means' place: `cluster_frames` -> `segment_clusters` -> `select_segments`.
"""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped, unused-ignore]

from keystep_capture.errors import ConfigError, ShapeError

# k-means starts from this many k-means++ draws and keeps the tightest result.
KMEANS_STARTS = 10
MISSING = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyStepSegment:
    """A stretch of one cluster, with the frame that shows it best.

    Frames of other clusters may lie between its first and last frame, never more than `gamma_s`
    of them in a row.
    """

    start_idx: int  # first frame of the segment
    end_idx: int  # last frame, inclusive
    exemplar_idx: int  # the frame nearest the cluster's centre
    start_s: float  # times of these three frames
    end_s: float
    exemplar_s: float
    cluster: int  # clusters are numbered by first appearance
    frame_count: int  # frames of the cluster kept in this segment
    distance: float  # of the exemplar to the cluster's centre, in feature units
    confidence: float  # 0..1, see `FrameClusters.margins`


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FrameClusters:
    """Every frame's cluster.

    Attributes:
        labels: Cluster of each frame, (T,) int64; -1 where the frame's features are missing.
        distances: Distance to the own cluster's centre, (T,) float64; infinite where missing.
        margins: Simplified silhouette 1 - a / b of each frame, (T,) float64 in 0..1, with a the
            distance to the own centre and b to the nearest other one: 1 on the centre, 0 when
            another cluster fits as well, 0 when there is no other cluster, 0 where missing.
            It says how clearly the frame belongs to its cluster; it is no probability that the
            cluster is a key step.
    """

    labels: NDArray[np.int64]
    distances: NDArray[np.float64]
    margins: NDArray[np.float64]


def extract_key_steps(
    features: NDArray[np.float32],
    times_s: NDArray[np.float64],
    *,
    valid: NDArray[np.bool_] | None = None,
    cluster_count: int = 7,
    alpha: float = 0.1,
    gamma_s: float = 2.0,
    min_duration_s: float = 0.0,
    top_n: int | None = None,
    seed: int = 0,
) -> list[KeyStepSegment]:
    """Extract key steps from one session's adapted features.

    Args:
        features: One row per frame, shape (T, D), float32.
        times_s: Time of each frame in seconds, shape (T,), never decreasing.
        valid: False where a frame's features are missing (its row is not read), shape (T,).
        cluster_count: K of the paper. With fewer valid frames than that, each is a cluster.
        alpha: Fraction of each cluster's frames to reject as background, the farthest first.
        gamma_s: A cluster's neighbouring frames farther apart than this start a new segment.
        min_duration_s: Drop segments shorter than this. The paper keeps all (0); 0.5 takes the
            single frames out of a clip of some seconds.
        top_n: Keep only the n segments whose exemplars lie nearest their centres.
        seed: Of k-means++; the same seed gives the same key steps.

    Returns:
        Key steps in order of their exemplars; none for a session without valid frames.

    Raises:
        ShapeError: An array is not as described, a valid row is not finite, or times run back.
        ConfigError: A number is out of its range.
    """
    _check_times(times_s, len(features))
    _check_segmentation(alpha, gamma_s)
    _check_selection(min_duration_s, top_n)
    clusters = cluster_frames(features, valid=valid, cluster_count=cluster_count, seed=seed)
    segments = segment_clusters(clusters, times_s, alpha=alpha, gamma_s=gamma_s)
    return select_segments(segments, min_duration_s=min_duration_s, top_n=top_n)


def cluster_frames(
    features: NDArray[np.float32],
    *,
    valid: NDArray[np.bool_] | None = None,
    cluster_count: int = 7,
    seed: int = 0,
) -> FrameClusters:
    """Cluster frames by k-means: k-means++, 10 starts, one thread, so that it repeats exactly.

    Arguments and errors as for `extract_key_steps`.
    """
    if cluster_count < 1:
        raise ConfigError(f"cluster_count must be 1 or more, got {cluster_count}")
    present = checked_valid(features, valid)
    used = int(present.sum())
    if not used:
        return _with_distances(present, np.zeros(0, np.int64), np.zeros((0, 1)))
    rows = np.asarray(features, np.float32)[present]
    return _with_distances(present, *_kmeans(rows, min(cluster_count, used), seed))


def frame_clusters(features: NDArray[np.float32], labels: NDArray[np.int64]) -> FrameClusters:
    """Distances and margins of frames that any clustering has labelled.

    Args:
        features: float32 (T, D); rows whose label is -1 are not read.
        labels: Cluster of each frame, int (T,), from 0; -1 where the features are missing.

    Raises:
        ShapeError: The arrays do not fit together.
    """
    if labels.shape != (len(features),):
        raise ShapeError(f"expected labels of shape {(len(features),)}, got {labels.shape}")
    present = labels != MISSING
    names, own = np.unique(labels[present], return_inverse=True)
    rows = np.asarray(features[present], np.float64)
    centres = [rows[own == number].mean(axis=0) for number in range(len(names))]
    to_centres = [np.linalg.norm(rows - centre, axis=1) for centre in centres]
    table = np.stack(to_centres, axis=1) if centres else np.zeros((0, 1))
    return _with_distances(present, own.astype(np.int64), table)


def _with_distances(
    present: NDArray[np.bool_], own: NDArray[np.int64], to_centres: NDArray[np.float64]
) -> FrameClusters:
    """From labels (N,) and distances to every centre (N, K) of the frames that are present."""
    labels = np.full(len(present), MISSING, np.int64)
    distances, margins = np.full(len(present), np.inf), np.zeros(len(present))
    labels[present] = own
    distances[present], margins[present] = _own_distance_and_margin(own, to_centres)
    return FrameClusters(
        labels=_numbered_by_appearance(labels), distances=distances, margins=margins
    )


def segment_clusters(
    clusters: FrameClusters,
    times_s: NDArray[np.float64],
    *,
    alpha: float = 0.1,
    gamma_s: float = 2.0,
) -> list[KeyStepSegment]:
    """Reject each cluster's background and split the rest where time jumps.

    A cluster of n frames loses the floor(alpha * n) farthest from its centre; of equally far
    ones the latest go first.

    `clusters` may come from any clustering; the other arguments and the errors are those of
    `extract_key_steps`. Returns all segments, in order of their exemplars.
    """
    _check_segmentation(alpha, gamma_s)
    _check_times(times_s, len(clusters.labels))
    segments = []
    for cluster in np.unique(clusters.labels[clusters.labels != MISSING]):
        members = np.flatnonzero(clusters.labels == cluster)
        kept = members[_foreground(clusters.distances[members], alpha)]
        for run in _split_at_gaps(kept, times_s, gamma_s):
            segments.append(_describe(run, int(cluster), clusters, times_s))
    return sorted(segments, key=lambda segment: segment.exemplar_idx)


def select_segments(
    segments: Sequence[KeyStepSegment], *, min_duration_s: float = 0.0, top_n: int | None = None
) -> list[KeyStepSegment]:
    """Keep segments of at least `min_duration_s`, and of those the `top_n` nearest a centre.

    The order is kept. Errors as for `extract_key_steps`.
    """
    _check_selection(min_duration_s, top_n)
    kept = [each for each in segments if each.end_s - each.start_s >= min_duration_s]
    if top_n is None:
        return kept
    nearest = sorted(kept, key=lambda segment: (segment.distance, segment.exemplar_idx))[:top_n]
    return sorted(nearest, key=lambda segment: segment.exemplar_idx)


def _kmeans(
    rows: NDArray[np.float32], cluster_count: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return labels (N,) and distances to every centre (N, K)."""
    model = KMeans(cluster_count, init="k-means++", n_init=KMEANS_STARTS, random_state=seed)
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # Repeated frames (a still camera) make fewer distinct points than clusters: fine here,
        # the superfluous clusters stay empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = model.fit_predict(rows)
        to_centres = model.transform(rows)
    return labels.astype(np.int64), to_centres.astype(np.float64)


def _own_distance_and_margin(
    labels: NDArray[np.int64], to_centres: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    frames = np.arange(len(labels))
    own = to_centres[frames, labels]
    if to_centres.shape[1] == 1:
        return own, np.zeros_like(own)
    others = to_centres.copy()
    others[frames, labels] = np.inf
    nearest = others.min(axis=1)
    fraction = np.divide(own, nearest, out=np.ones_like(own), where=nearest > 0)
    return own, np.clip(1.0 - fraction, 0.0, 1.0)


def _numbered_by_appearance(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    numbers: dict[int, int] = {MISSING: MISSING}
    for label in labels.tolist():
        numbers.setdefault(label, len(numbers) - 1)
    return np.array([numbers[label] for label in labels.tolist()], np.int64)


def _foreground(distances: NDArray[np.float64], alpha: float) -> NDArray[np.int64]:
    """Return the positions of the frames to keep, in order of time."""
    # The small addend undoes the rounding of, say, 0.1 * 30; one frame always stays.
    rejected = min(int(alpha * len(distances) + 1e-9), len(distances) - 1)
    nearest_first = np.argsort(distances, kind="stable")
    return np.sort(nearest_first[: len(distances) - rejected])


def _split_at_gaps(
    frames: NDArray[np.int64], times_s: NDArray[np.float64], gamma_s: float
) -> Iterator[NDArray[np.int64]]:
    cuts = np.flatnonzero(np.diff(times_s[frames]) > gamma_s) + 1
    bounds = [0, *cuts.tolist(), len(frames)]
    return (frames[start:end] for start, end in itertools.pairwise(bounds))


def _describe(
    frames: NDArray[np.int64],
    cluster: int,
    clusters: FrameClusters,
    times_s: NDArray[np.float64],
) -> KeyStepSegment:
    exemplar = int(frames[np.argmin(clusters.distances[frames])])
    start, end = int(frames[0]), int(frames[-1])
    return KeyStepSegment(
        start_idx=start,
        end_idx=end,
        exemplar_idx=exemplar,
        start_s=float(times_s[start]),
        end_s=float(times_s[end]),
        exemplar_s=float(times_s[exemplar]),
        cluster=cluster,
        frame_count=len(frames),
        distance=float(clusters.distances[exemplar]),
        confidence=float(clusters.margins[frames].mean()),
    )


def checked_valid(
    features: NDArray[np.float32], valid: NDArray[np.bool_] | None
) -> NDArray[np.bool_]:
    """Where features are there, bool (T,); errors as for `extract_key_steps`."""
    if features.ndim != 2 or features.shape[1] < 1 or features.dtype != np.float32:
        raise ShapeError(
            f"expected features of shape (T, D), float32; got {features.shape}, {features.dtype}"
        )
    present = np.ones(len(features), np.bool_) if valid is None else valid
    if present.shape != (len(features),) or present.dtype != np.bool_:
        raise ShapeError(
            f"expected valid of shape {(len(features),)}, bool; got {present.shape}, "
            f"{present.dtype}"
        )
    broken = np.flatnonzero(present & ~np.isfinite(features).all(axis=1))
    if len(broken):
        raise ShapeError(
            f"expected finite features; {len(broken)} frames are not, the first is frame "
            f"{broken[0]}: mark missing frames in `valid`"
        )
    return present


def _check_times(times_s: NDArray[np.float64], frame_count: int) -> None:
    if times_s.shape != (frame_count,):
        raise ShapeError(f"expected times_s of shape {(frame_count,)}, got {times_s.shape}")
    if not np.isfinite(times_s).all() or (np.diff(times_s) < 0).any():
        raise ShapeError("expected times_s finite and never decreasing")


def _check_segmentation(alpha: float, gamma_s: float) -> None:
    if not 0.0 <= alpha < 1.0:
        raise ConfigError(f"alpha must be at least 0 and below 1, got {alpha}")
    if not gamma_s > 0.0:
        raise ConfigError(f"gamma_s must be above 0, got {gamma_s}")


def _check_selection(min_duration_s: float, top_n: int | None) -> None:
    if not min_duration_s >= 0.0:
        raise ConfigError(f"min_duration_s must be 0 or more, got {min_duration_s}")
    if top_n is not None and top_n < 1:
        raise ConfigError(f"top_n must be 1 or more, or None for all; got {top_n}")
