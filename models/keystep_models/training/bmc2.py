"""The BMC2 loss: bootstrapped multi-cue contrastive learning (STEPs, section 3.3, equations 3-6).

The gradient is worked out together with the loss, video by video and in blocks of rows, so that
no more than a few (frames x frames) arrays of one video exist at a time. What saves work:

- the distances of the pairs (u, v) and (v, u) are each other's transpose, as are their gradients;
- a cue's pairs with itself are symmetric once their costs are: half of them are enough;
- unit vectors are never farther apart than the published margin, so a pair costs a constant plus
  its signed cost times its distance; blocks where that is not so are corrected;
- the window depends on raw features only and is shared by all pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, get_args

import torch
from torch import Tensor

from keystep_models.steps.settings import WindowKind
from keystep_models.training.bmc2_window import Window, bootstrapped_window, sigma_window

PairWeights: TypeAlias = Mapping[tuple[str, str], float]

_ROWS = 128


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
    valid: Mapping[str, Tensor] | None = None,
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
        valid: Cue to bool [B, N], false where a video lacks the cue: those frames are in no pair
            with it, and widen no window if it is a bootstrap cue. A cue that is not named is
            there everywhere.

    Raises:
        ValueError: Shapes, cues or options do not fit together.
    """
    weights = _default_weights(projected, anchor) if pair_weights is None else dict(pair_weights)
    bootstrap_cues = (bootstrap,) if isinstance(bootstrap, str) else tuple(bootstrap)
    _check(projected, raw, timestamps, num_frames, anchor, bootstrap_cues, window, weights)
    there = {} if valid is None else dict(valid)
    _check_valid(there, timestamps)
    windows = _windows(raw, timestamps, fps, bootstrap_cues, sigma_seconds, window, there)
    cues = tuple(projected)
    places = [
        {cue: _places(there.get(cue), video) for cue in cues} for video in range(len(timestamps))
    ]
    with_gradient = torch.is_grad_enabled() and any(q.requires_grad for q in projected.values())
    job = _Job(
        cues=cues,
        weights=weights,
        windows=windows,
        position=timestamps.double() / num_frames.double()[:, None],
        margin=margin,
        with_gradient=with_gradient,
        places=places,
        pair_counts={pair: _pair_count(pair, places, timestamps.shape[1]) for pair in weights},
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


def _check_valid(valid: Mapping[str, Tensor], timestamps: Tensor) -> None:
    for cue, there in valid.items():
        if there.shape != timestamps.shape or there.dtype != torch.bool:
            raise ValueError(
                f"valid of {cue!r} has shape {tuple(there.shape)} and type {there.dtype}, "
                f"expected bool {tuple(timestamps.shape)}"
            )


def _places(valid: Tensor | None, video: int) -> Tensor | None:
    """Indices of the frames that have a cue; None where all do."""
    if valid is None or bool(valid[video].all()):
        return None
    return valid[video].nonzero()[:, 0]


def _pair_count(
    pair: tuple[str, str], places: Sequence[Mapping[str, Tensor | None]], count: int
) -> int:
    total = 0
    for of_video in places:
        first, second = (of_video[cue] for cue in pair)
        total += (count if first is None else len(first)) * (
            count if second is None else len(second)
        )
    return max(total, 1)


def _windows(
    raw: Mapping[str, Tensor],
    timestamps: Tensor,
    fps: float | Tensor,
    bootstrap: tuple[str, ...],
    sigma_seconds: float,
    kind: WindowKind,
    valid: Mapping[str, Tensor],
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
        known = [valid[cue][video] for cue in bootstrap if cue in valid]
        sampled = bootstrapped_window(
            joined, near, torch.stack(known).all(dim=0) if known else None
        )
        both = sampled if kind == "sampled" else near | sampled
        windows.append(
            Window(positives=near if kind == "union_negatives" else both, negatives=both)
        )
    return windows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What the loss needs beside the features.

    Attributes:
        places: For each video and cue: indices of the frames that have it; None: all.
        pair_counts: Pairs of frames that both have their cue, in the whole batch; at least 1.
    """

    cues: tuple[str, ...]
    weights: dict[tuple[str, str], float]
    windows: list[Window]
    position: Tensor
    margin: float
    with_gradient: bool
    places: list[dict[str, Tensor | None]]
    pair_counts: dict[tuple[str, str], int]


class _Bmc2(torch.autograd.Function):
    """Total and terms; the gradient is known when the forward pass ends."""

    @staticmethod
    def forward(ctx: Any, job: _Job, *projected: Tensor) -> tuple[Tensor, Tensor]:
        features = dict(zip(job.cues, projected, strict=True))
        grads = {cue: torch.zeros_like(q) for cue, q in features.items() if job.with_gradient}
        sums = dict.fromkeys(job.weights, 0.0)
        shares = {pair: weight / job.pair_counts[pair] for pair, weight in job.weights.items()}
        for video, places in enumerate(job.places):
            costs = _Costs.of(job.windows[video], job.position[video], projected[0].dtype)
            own = {cue: _Side.of(q[video].detach(), places[cue]) for cue, q in features.items()}
            for u, v in _unordered(job.weights):
                if not (len(own[u].left) and len(own[v].left)):
                    continue
                part = costs.at(places[u], places[v])
                forth, back = shares[u, v], shares.get((v, u), 0.0)
                if u == v:
                    sums[u, u] += _same_cue(part, own[u], job.margin, forth, job.with_gradient)
                    continue
                sum_uv, sum_vu = _two_cues(
                    part, own[u], own[v], job.margin, (forth, back), job.with_gradient
                )
                sums[u, v] += sum_uv
                if (v, u) in sums:
                    sums[v, u] += sum_vu
            for cue, grad in grads.items():
                own[cue].add_gradient(grad[video])
        total = sum(sums[pair] * share for pair, share in shares.items())
        terms = [value / job.pair_counts[pair] for pair, value in sums.items()]
        ctx.save_for_backward(*grads.values())
        values = projected[0].new_tensor(terms)
        ctx.mark_non_differentiable(values)
        return projected[0].new_tensor(total), values

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
        signed: W / gamma where a pair is pulled together, -(1 - W) gamma where it is pushed
            apart: no pair is both, since the positives' window lies within the negatives'.
        both: `signed` plus its transpose.
        push_sum: Sum of (1 - W) gamma.
        mirrored_push_sum: The same of the mirrored pairs; another where rows and columns are.
    """

    signed: Tensor
    both: Tensor
    push_sum: float
    mirrored_push_sum: float

    @classmethod
    def of(cls, window: Window, position: Tensor, dtype: torch.dtype) -> _Costs:
        """From one video's window and normalised times [N]."""
        place = position.to(dtype)
        gamma = (place[:, None] - place[None, :]).square_().add_(1.0)
        signed = torch.addcmul(gamma, gamma, window.negatives.to(dtype), value=-1.0).neg_()
        push_sum = _push_sum(signed)
        signed.add_(gamma.reciprocal_().mul_(window.positives.to(dtype)))
        return cls(
            signed=signed,
            both=gamma.copy_(signed.T).add_(signed),  # a third of the time of signed + signed.T
            push_sum=push_sum,
            mirrored_push_sum=push_sum,
        )

    def at(self, rows: Tensor | None, columns: Tensor | None) -> _Costs:
        """Those of some frames only."""
        if rows is None and columns is None:
            return self
        every = torch.arange(len(self.signed), device=self.signed.device)
        i = (every if rows is None else rows)[:, None]
        j = (every if columns is None else columns)[None, :]
        signed, both = self.signed[i, j], self.both[i, j]
        return _Costs(
            signed=signed,
            both=both,
            push_sum=_push_sum(signed),
            mirrored_push_sum=_push_sum(both - signed),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """One cue's features of one video, with what their gradient is made of.

    Attributes:
        places: Where the features lie in the video; None: everywhere.
        left, right: Factors [M, D + 2] whose product is the squared distance of each pair.
        extended: The features with a column of ones, [M, D + 1].
        pulls: Sum over partners of force over distance times their `extended`, [M, D + 1].
    """

    places: Tensor | None
    left: Tensor
    right: Tensor
    extended: Tensor
    pulls: Tensor

    @classmethod
    def of(cls, q: Tensor, places: Tensor | None) -> _Side:
        """Of one cue's features [N, D]."""
        if places is not None:
            q = q[places]
        square = q.square().sum(-1, keepdim=True)
        ones = torch.ones_like(square)
        extended = torch.cat([q, ones], -1)
        return cls(
            places=places,
            left=torch.cat([q, square, ones], -1),
            right=torch.cat([q * -2.0, ones, square], -1),
            extended=extended,
            pulls=torch.zeros_like(extended),
        )

    def add_gradient(self, grad: Tensor) -> None:
        """Add to the gradient of the cue's features [N, D]."""
        own = self.pulls[:, -1:] * self.extended[:, :-1] - self.pulls[:, :-1]
        if self.places is None:
            grad += own
        else:
            grad[self.places] += own


def _same_cue(
    costs: _Costs, side: _Side, margin: float, share: float, with_gradient: bool
) -> float:
    """Sum over pairs of one cue with itself; `share` of its gradient goes into the side.

    Everything is symmetric: of the blocks beside the diagonal only those above it are made.
    """
    total = 0.0
    for start in range(0, len(side.left), _ROWS):
        rows, columns = slice(start, start + _ROWS), slice(start, None)
        square = side.left[rows] @ side.right[columns].T
        square.diagonal().zero_()
        inverse, beyond = _inverse_distances(square, margin)
        force = costs.both[rows, columns] * inverse
        own = slice(0, len(force))
        total += _dot(force, square) - 0.5 * _dot(force[:, own], square[:, own])
        if beyond is not None:
            signed = costs.signed[rows, columns], costs.signed[columns, rows].T
            lost = sum(_lost_beyond(each, square, inverse, margin, beyond) for each in signed)
            half = sum(
                _lost_beyond(each[:, own], square[:, own], inverse[:, own], margin, beyond[:, own])
                for each in signed
            )
            total += lost - 0.5 * half
            pulled = signed[0].clamp_min(0.0) + signed[1].clamp_min(0.0)
            force = torch.where(beyond, pulled * inverse, force)
        if with_gradient:
            _pull(side.pulls[rows], force, side.extended[columns], share)
            after = slice(start + len(force), None)
            _pull(side.pulls[after], force[:, len(force) :].T, side.extended[rows], share)
    return total + margin * costs.push_sum


def _two_cues(
    costs: _Costs,
    u: _Side,
    v: _Side,
    margin: float,
    shares: tuple[float, float],
    with_gradient: bool,
) -> tuple[float, float]:
    """Sums over pairs (u, v) and (v, u); `shares` of their gradients go into both sides."""
    forth, back = shares
    sum_uv = sum_both = 0.0
    for start in range(0, len(u.left), _ROWS):
        rows = slice(start, start + _ROWS)
        square = u.left[rows] @ v.right.T
        inverse, beyond = _inverse_distances(square, margin)
        signed, both = costs.signed[rows], costs.both[rows]
        distance = square * inverse
        sum_uv += _dot(signed, distance)
        sum_both += _dot(both, distance)
        force = both * back if back else torch.zeros_like(both)
        if forth != back:
            force.add_(signed, alpha=forth - back)
        force.mul_(inverse)
        if beyond is not None:
            mirrored = both - signed
            lost = _lost_beyond(signed, square, inverse, margin, beyond)
            sum_uv += lost
            sum_both += lost + _lost_beyond(mirrored, square, inverse, margin, beyond)
            pulled = forth * signed.clamp_min(0.0) + back * mirrored.clamp_min(0.0)
            force = torch.where(beyond, pulled * inverse, force)
        if with_gradient:
            _pull(u.pulls[rows], force, v.extended, 1.0)
            _pull(v.pulls, force.T, u.extended[rows], 1.0)
    sum_vu = sum_both - sum_uv
    return sum_uv + margin * costs.push_sum, sum_vu + margin * costs.mirrored_push_sum


def _inverse_distances(square: Tensor, margin: float) -> tuple[Tensor, Tensor | None]:
    """1 / distance, 0 where that is 0 (as cdist's gradient); and where the margin is reached.

    `square` loses what rounding left below 0. Where no pair is that far, as unit vectors with
    the published margin are not, the second is None, and pairs cost `signed` times distance.
    """
    least, most = (float(bound) for bound in torch.aminmax(square))
    if least <= 0.0:
        square.clamp_min_(0.0)
    inverse = square.rsqrt()
    if least <= 0.0:
        inverse.masked_fill_(square == 0, 0.0)
    if most < margin * margin:
        return inverse, None
    return inverse, square >= margin * margin


def _lost_beyond(
    signed: Tensor, square: Tensor, inverse: Tensor, margin: float, beyond: Tensor
) -> float:
    """What `signed` times distance takes off too much where the margin is reached."""
    excess = (square * inverse - margin).mul_(beyond)
    return -float((signed.clamp_max(0.0) * excess).sum())


def _push_sum(signed: Tensor) -> float:
    return -float(signed.clamp_max(0.0).sum(-1).sum(dtype=torch.float64))


def _pull(pulls: Tensor, force: Tensor, partners: Tensor, share: float) -> None:
    pulls.addmm_(force, partners, alpha=share)


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.flatten(), b.flatten()))
