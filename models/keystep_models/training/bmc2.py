"""The BMC2 loss: bootstrapped multi-cue contrastive learning (STEPs, section 3.3, equations 3-6).

The gradient is worked out together with the loss, video by video and in blocks of rows, so that
no more than a few (frames x frames) arrays of one video exist at a time. Three facts save work:

- the distances of the pairs (u, v) and (v, u) are each other's transpose, as are their gradients;
- with symmetrised weights the gradient of (u, u) needs one product instead of two;
- the window depends on raw features only and is shared by all pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from keystep_models.training.bmc2_window import Window, bootstrapped_window, sigma_window

WindowKind: TypeAlias = Literal["sigma", "sampled", "union_negatives", "union"]
PairWeights: TypeAlias = Mapping[tuple[str, str], float]

_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Bmc2Loss:
    """The loss of a batch.

    Attributes:
        total: Sum of the terms times their weights, a scalar with a gradient.
        terms: Mean over batch and all pairs of frames for each pair of cues, named "rgb-flow"
            (anchor cue first); values only, without a gradient.
        window: The window of the negatives, bool [B, N, N]; row i is the anchor's.
    """

    total: Tensor
    terms: dict[str, Tensor]
    window: Tensor


def bmc2_loss(
    projected: Mapping[str, Tensor],
    raw: Mapping[str, Tensor],
    timestamps: Tensor,
    num_frames: Tensor,
    fps: float | Tensor,
    *,
    anchor: str,
    bootstrap: str | Sequence[str],
    sigma_seconds: float = 10.0,
    margin: float = 2.0,
    window: WindowKind = "union",
    pair_weights: PairWeights | None = None,
) -> Bmc2Loss:
    """The BMC2 loss of a batch of videos.

    Args:
        projected: Cue to projected features, float [B, N, D], unit norm.
        raw: Cue to raw features, float [B, N, D_cue]; only the bootstrap cues are read.
        timestamps: Frame indices of the samples, [B, N].
        num_frames: Frames of each whole video, [B]: time is normalised by it.
        fps: Frames a second, one for all or [B].
        anchor: The cue whose pairs with every other cue are formed.
        bootstrap: The cue or cues whose raw features widen the window.
        sigma_seconds: Half-width of the temporal window, s.
        margin: Distance up to which negatives are pushed apart (zeta).
        window: "sigma" the temporal one; "sampled" the bootstrapped one; "union" both, for
            positives and negatives; "union_negatives" both for the negatives, the temporal one
            for the positives (table 10).
        pair_weights: (cue, cue) to lambda; by default 1 for each cue with itself and for the
            anchor with each other cue, in both directions.

    Raises:
        ValueError: Shapes, cues or options do not fit together.
    """
    weights = _default_weights(projected, anchor) if pair_weights is None else dict(pair_weights)
    bootstrap_cues = (bootstrap,) if isinstance(bootstrap, str) else tuple(bootstrap)
    _check(projected, raw, timestamps, num_frames, anchor, bootstrap_cues, window, weights)
    windows = _windows(raw, timestamps, fps, bootstrap_cues, sigma_seconds, window)
    cues = tuple(projected)
    with_gradient = torch.is_grad_enabled() and any(q.requires_grad for q in projected.values())
    job = _Job(
        cues=cues,
        weights=weights,
        windows=windows,
        position=timestamps.double() / num_frames.double()[:, None],
        margin=margin,
        with_gradient=with_gradient,
    )
    total, terms = _Bmc2.apply(job, *(projected[cue] for cue in cues))
    names = [f"{u}-{v}" for u, v in weights]
    negatives = torch.stack([w.negatives for w in windows])
    return Bmc2Loss(
        total=total, terms=dict(zip(names, terms.unbind(), strict=True)), window=negatives
    )


def _default_weights(cues: Mapping[str, Tensor], anchor: str) -> dict[tuple[str, str], float]:
    weights = {(cue, cue): 1.0 for cue in cues}
    for cue in cues:
        if cue != anchor:
            weights[anchor, cue] = weights[cue, anchor] = 1.0
    return weights


def _check(
    projected: Mapping[str, Tensor],
    raw: Mapping[str, Tensor],
    timestamps: Tensor,
    num_frames: Tensor,
    anchor: str,
    bootstrap: tuple[str, ...],
    window: str,
    weights: Mapping[tuple[str, str], float],
) -> None:
    if window not in get_args(WindowKind):
        raise ValueError(f"window is {window!r}, expected one of {', '.join(get_args(WindowKind))}")
    if anchor not in projected:
        raise ValueError(f"anchor cue {anchor!r} has no features; there are {', '.join(projected)}")
    if not bootstrap and window != "sigma":
        raise ValueError(f"window {window!r} needs a bootstrap cue")
    if missing := [cue for cue in bootstrap if cue not in raw]:
        raise ValueError(
            f"no raw features of bootstrap cue {missing[0]!r}; there are {', '.join(raw)}"
        )
    if unknown := {cue for pair in weights for cue in pair} - set(projected):
        raise ValueError(f"pair_weights names {sorted(unknown)[0]!r}, which has no features")
    if timestamps.ndim != 2:
        raise ValueError(
            f"timestamps have shape {tuple(timestamps.shape)}, expected (batch, frames)"
        )
    batch, count = timestamps.shape
    if tuple(num_frames.shape) != (batch,):
        raise ValueError(f"num_frames has shape {tuple(num_frames.shape)}, expected ({batch},)")
    for cue, features in (*projected.items(), *((cue, raw[cue]) for cue in bootstrap)):
        if features.ndim != 3 or tuple(features.shape[:2]) != (batch, count):
            raise ValueError(
                f"features of {cue!r} have shape {tuple(features.shape)}, "
                f"expected ({batch}, {count}, size)"
            )


def _windows(
    raw: Mapping[str, Tensor],
    timestamps: Tensor,
    fps: float | Tensor,
    bootstrap: tuple[str, ...],
    sigma_seconds: float,
    kind: WindowKind,
) -> list[Window]:
    """One video's window after the other: its distances are dropped before the next one's."""
    rates = torch.as_tensor(fps, dtype=torch.float64).expand(timestamps.shape[0])
    windows = []
    for video, rate in enumerate(rates):
        near = sigma_window(timestamps[video].double() / rate, sigma_seconds)
        if kind == "sigma":
            windows.append(Window(positives=near, negatives=near))
            continue
        features = [raw[cue][video].detach() for cue in bootstrap]
        joined = features[0] if len(features) == 1 else torch.cat(features, dim=-1)
        sampled = bootstrapped_window(joined, near)
        both = sampled if kind == "sampled" else near | sampled
        windows.append(
            Window(positives=near if kind == "union_negatives" else both, negatives=both)
        )
    return windows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What the loss needs beside the features."""

    cues: tuple[str, ...]
    weights: dict[tuple[str, str], float]
    windows: list[Window]
    position: Tensor
    margin: float
    with_gradient: bool


class _Bmc2(torch.autograd.Function):
    """Total and terms; the gradient is known when the forward pass ends."""

    @staticmethod
    def forward(ctx: Any, job: _Job, *projected: Tensor) -> tuple[Tensor, Tensor]:
        features = dict(zip(job.cues, projected, strict=True))
        grads = {cue: torch.zeros_like(q) for cue, q in features.items() if job.with_gradient}
        sums = dict.fromkeys(job.weights, 0.0)
        batch, count = job.position.shape
        scale = 1.0 / (batch * count * count)
        for video in range(batch):
            costs = _Costs.of(job.windows[video], job.position[video], projected[0].dtype)
            own = {cue: q[video].detach() for cue, q in features.items()}
            into = {cue: grad[video] for cue, grad in grads.items()}
            for u, v in _unordered(job.weights):
                forth, back = job.weights.get((u, v), 0.0), job.weights.get((v, u), 0.0)
                if u == v:
                    sums[u, u] += _same_cue(costs, own[u], job.margin, forth * scale, into.get(u))
                    continue
                sum_uv, sum_vu = _two_cues(
                    costs, own[u], own[v], job.margin, (forth * scale, back * scale),
                    (into[u], into[v]) if into else None,
                )  # fmt: skip
                for pair, value in (((u, v), sum_uv), ((v, u), sum_vu)):
                    if pair in sums:
                        sums[pair] += value
        terms = projected[0].new_tensor([value * scale for value in sums.values()])
        total = sum(value * scale * job.weights[pair] for pair, value in sums.items())
        ctx.save_for_backward(*grads.values())
        ctx.mark_non_differentiable(terms)
        return projected[0].new_tensor(total), terms

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(outputs[0] * grad for grad in ctx.saved_tensors))


def _unordered(weights: Mapping[tuple[str, str], float]) -> list[tuple[str, str]]:
    """Each pair of cues once, whatever its direction."""
    pairs: list[tuple[str, str]] = []
    for u, v in weights:
        if (v, u) not in pairs:
            pairs.append((u, v))
    return pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class _Costs:
    """What a unit of distance costs for every pair of frames of one video, float [N, N].

    Attributes:
        pull: W / gamma, of the distance.
        push: (1 - W) gamma, of what the distance lacks to the margin.
        pull_sum, push_sum: The same plus their transposes.
    """

    pull: Tensor
    push: Tensor
    pull_sum: Tensor
    push_sum: Tensor

    @classmethod
    def of(cls, window: Window, position: Tensor, dtype: torch.dtype) -> _Costs:
        """From one video's window and normalised times [N]."""
        place = position.to(dtype)
        gamma = (place[:, None] - place[None, :]).square_().add_(1.0)
        push = gamma.masked_fill(window.negatives, 0.0)
        pull = gamma.reciprocal_().mul_(window.positives)
        return cls(pull=pull, push=push, pull_sum=pull + pull.T, push_sum=push + push.T)


def _extended(q: Tensor) -> tuple[Tensor, Tensor]:
    """Left and right factors [N, D + 2] whose product is the squared distance of each pair."""
    square = q.square().sum(-1, keepdim=True)
    ones = torch.ones_like(square)
    return torch.cat([q, square, ones], -1), torch.cat([q * -2.0, ones, square], -1).T


def _same_cue(costs: _Costs, q: Tensor, margin: float, weight: float, grad: Tensor | None) -> float:
    """Sum over pairs of one cue with itself; adds its gradient times `weight` to `grad`."""
    left, right = _extended(q)
    total = 0.0
    for start in range(0, len(q), _ROWS):
        rows = slice(start, start + _ROWS)
        distance = (left[rows] @ right).clamp_min_(0.0).sqrt_()
        distance.diagonal(start).zero_()
        lack = (margin - distance).clamp_min_(0.0)
        pull, push = costs.pull_sum[rows], costs.push_sum[rows]
        total += 0.5 * (_dot(pull, distance) + _dot(push, lack))
        if grad is not None:
            force = _force(pull, push, distance, lack)
            reach = force.sum(-1, keepdim=True)
            grad[rows] += weight * (reach * q[rows] - force @ q)
    return total


def _two_cues(
    costs: _Costs,
    q_u: Tensor,
    q_v: Tensor,
    margin: float,
    weights: tuple[float, float],
    grads: tuple[Tensor, Tensor] | None,
) -> tuple[float, float]:
    """Sums over pairs (u, v) and (v, u); adds their gradients times `weights` to `grads`."""
    left, right = _extended(q_u)[0], _extended(q_v)[1]
    forth, back = weights
    sum_uv = sum_vu = 0.0
    for start in range(0, len(q_u), _ROWS):
        rows = slice(start, start + _ROWS)
        distance = (left[rows] @ right).clamp_min_(0.0).sqrt_()
        lack = (margin - distance).clamp_min_(0.0)
        pull, push = costs.pull[rows], costs.push[rows]
        pull_sum, push_sum = costs.pull_sum[rows], costs.push_sum[rows]
        both = _dot(pull_sum, distance) + _dot(push_sum, lack)
        one = _dot(pull, distance) + _dot(push, lack)
        sum_uv += one
        sum_vu += both - one
        if grads is None:
            continue
        if forth == back:
            force = _force(pull_sum, push_sum, distance, lack).mul_(forth)
        else:
            force = _force(
                torch.add(pull_sum * back, pull, alpha=forth - back),
                torch.add(push_sum * back, push, alpha=forth - back),
                distance,
                lack,
            )
        grads[0][rows] += force.sum(-1, keepdim=True) * q_u[rows] - force @ q_v
        grads[1].add_(force.sum(0)[:, None] * q_v - force.T @ q_u[rows])
    return sum_uv, sum_vu


def _force(pull: Tensor, push: Tensor, distance: Tensor, lack: Tensor) -> Tensor:
    """Derivative of the cost by the distance, over the distance; 0 where that is 0 (as cdist)."""
    force = torch.where(lack > 0, pull - push, pull)
    return force.div_(distance).masked_fill_(distance == 0, 0.0)


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.flatten(), b.flatten()))
