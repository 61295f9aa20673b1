"""BMC2 written straight from the formulas, for comparison only; slow on purpose.

Every mask and distance matrix is made in full, distances in double precision, each pair of cues by
itself. It agrees with tests/golden/steps/bmc2.json. A copy, but for line lengths, of
plain_bmc2.py from the project's shared reference vectors.
"""

import torch


def window(raw, timestamps, fps, sigma_seconds, union=True):
    """W~ [B, N, N] of 0 and 1; raw [B, N, D] of the bootstrap cues, frame indices [B, N]."""
    standard = (raw - raw.mean(-1, keepdim=True)) / raw.std(-1, keepdim=True)
    distance = torch.cdist(standard.double(), standard.double())
    seconds = timestamps.double() / fps
    near = (seconds[:, :, None] - seconds[:, None, :]).abs() <= sigma_seconds
    if not union:
        return near.double()
    batch, count = timestamps.shape
    other = ~torch.eye(count, dtype=torch.bool).repeat(batch, 1, 1)
    distance_other = torch.masked_select(distance, other).view(batch, count, count - 1)
    near_other = torch.masked_select(near, other).view(batch, count, count - 1).double()
    delta = (near_other * distance_other).sum(-1, keepdim=True) / (
        near_other.sum(-1, keepdim=True) + 1e-8
    )
    close = torch.zeros_like(near)
    close[other] = (distance_other <= delta).view(-1)
    return torch.logical_or(near, close).double()


def pair_loss(q_u, q_v, weight, gamma, margin):
    """q_u, q_v [B, N, D] unit vectors of two cues. Returns the mean over all pairs of frames."""
    distance = torch.cdist(q_u, q_v)
    positive = weight * (1 / gamma) * distance
    negative = (1 - weight) * gamma * torch.relu(margin - distance)
    return (positive + negative).mean()


def loss(
    projected,
    raw,
    timestamps,
    num_frames,
    fps,
    anchor,
    bootstrap,
    sigma_seconds,
    margin=2.0,
    union=True,
):
    """projected, raw: cue -> [B, N, D]. Returns the total and the named terms."""
    weight = window(
        torch.cat([raw[cue] for cue in bootstrap], -1), timestamps, fps, sigma_seconds, union
    )
    position = timestamps.double() / num_frames[:, None]
    gamma = torch.cdist(position[..., None], position[..., None]) ** 2 + 1
    terms = {
        f"{anchor}-{anchor}": pair_loss(projected[anchor], projected[anchor], weight, gamma, margin)
    }
    for cue in projected:
        if cue != anchor:
            terms[f"{cue}-{cue}"] = pair_loss(projected[cue], projected[cue], weight, gamma, margin)
            terms[f"{anchor}-{cue}"] = pair_loss(
                projected[anchor], projected[cue], weight, gamma, margin
            )
            terms[f"{cue}-{anchor}"] = pair_loss(
                projected[cue], projected[anchor], weight, gamma, margin
            )
    return sum(terms.values()), terms
