"""Supervised contrastive loss.

Source: Khosla et al., "Supervised contrastive learning", NeurIPS 2020, equation 2.
"""

from __future__ import annotations

import torch
from torch import Tensor


def supervised_contrastive_loss(
    projected: Tensor, classes: Tensor, *, temperature: float = 0.07
) -> Tensor:
    """Mean over the anchors that share their class with another.

    Args:
        projected: Float [B, P], rows of length one.
        classes: Int [B].
        temperature: Divides similarities.

    Returns:
        The loss, float []; 0 where no two share a class.
    """
    logits = projected @ projected.T / temperature
    itself = torch.eye(len(classes), dtype=torch.bool, device=projected.device)
    logits = logits.masked_fill(itself, float("-inf"))
    log_share = logits - torch.logsumexp(logits, dim=1, keepdim=True)
    positive = (classes[:, None] == classes[None]) & ~itself
    counts = positive.sum(1)
    per_anchor = -log_share.masked_fill(~positive, 0.0).sum(1) / counts.clamp(min=1)
    anchors = (counts > 0).to(projected.dtype)
    return (per_anchor * anchors).sum() / anchors.sum().clamp(min=1.0)
