"""Key-step localisation (KSL): how well clusters of frames match labelled key steps.

STEPs, section 4.1: clusters are assigned to key steps one to one so that they overlap most
(Hungarian algorithm); recall, precision and intersection over union follow from the overlaps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from keystep_capture.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Localisation:
    """How well key steps were localised; all from 0 to 1."""

    recall: float
    precision: float
    iou: float
    f1: float


def localize(
    labels: npt.ArrayLike,
    clusters: npt.ArrayLike,
    num_keysteps: int,
    num_clusters: int,
    *,
    per_keystep: bool = True,
    background: bool = True,
) -> Localisation:
    """Match clusters with key steps and measure the match.

    Args:
        labels: Key step of each frame, int [T]; 0 is background, key steps from 1.
        clusters: Cluster of each frame, int [T], from 0.
        num_keysteps: Key steps there are, background not counted.
        num_clusters: Clusters there are.
        per_keystep: Average over matched key steps that occur ("per key step"), or pool the
            counts of all matched pairs ("overall").
        background: Whether background is matched like a key step, or left out.

    Returns:
        The measures; 0 where nothing could be matched.

    Raises:
        DataError: Lengths differ, there are no frames, or a number is out of range.
    """
    label, cluster = _checked(labels, clusters, num_keysteps, num_clusters)
    overlap = np.zeros((num_keysteps + 1, num_clusters), np.int64)
    np.add.at(overlap, (label, cluster), 1)
    truth, predicted = overlap.sum(axis=1), overlap.sum(axis=0)
    if not background:
        overlap, truth = overlap[1:], truth[1:]
    rows, columns = linear_sum_assignment(overlap / len(label), maximize=True)
    hits = overlap[rows, columns].astype(float)
    truth, predicted = truth[rows].astype(float), predicted[columns].astype(float)
    if per_keystep:
        occurs = truth > 0
        hits, truth, predicted = hits[occurs], truth[occurs], predicted[occurs]
        if not len(hits):
            return _localisation(0.0, 0.0, 0.0)
        return _localisation(
            float(np.mean(_ratio(hits, truth))),
            float(np.mean(_ratio(hits, predicted))),
            float(np.mean(_ratio(hits, truth + predicted - hits))),
        )
    hit, union = hits.sum(keepdims=True), (truth + predicted - hits).sum(keepdims=True)
    return _localisation(
        float(_ratio(hit, truth.sum(keepdims=True))[0]),
        float(_ratio(hit, predicted.sum(keepdims=True))[0]),
        float(_ratio(hit, union)[0]),
    )


def _checked(
    labels: npt.ArrayLike, clusters: npt.ArrayLike, num_keysteps: int, num_clusters: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    found = []
    for name, values, count in (
        ("labels", labels, num_keysteps + 1),
        ("clusters", clusters, num_clusters),
    ):
        array = np.asarray(values)
        if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
            raise DataError(
                f"{name} have shape {array.shape} and type {array.dtype}, "
                "expected whole numbers, one for each frame"
            )
        if array.min() < 0 or array.max() >= count:
            raise DataError(
                f"{name} hold {array.max()} and {array.min()}, expected 0 to {count - 1}"
            )
        found.append(array.astype(np.int64))
    if len(found[0]) != len(found[1]):
        raise DataError(f"{len(found[0])} labels but {len(found[1])} clusters, expected as many")
    return found[0], found[1]


def _ratio(
    part: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Part of whole; 0 of nothing."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _localisation(recall: float, precision: float, iou: float) -> Localisation:
    both = recall + precision
    f1 = 2 * recall * precision / both if both else 0.0
    return Localisation(recall=recall, precision=precision, iou=iou, f1=f1)
