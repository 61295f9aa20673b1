"""What key-step localisation gives without any learning: random and uniform clusters.

STEPs, section I.2. The third baseline, raw features, is `ksl_protocol.localize_videos` on them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError


def random_clusters(frame_count: int, cluster_count: int, seed: int) -> NDArray[np.int64]:
    """A cluster for each frame, drawn evenly; int64 (frame_count,)."""
    _check(cluster_count)
    return np.random.default_rng(seed).integers(cluster_count, size=frame_count)


def uniform_clusters(frame_count: int, cluster_count: int) -> NDArray[np.int64]:
    """A video cut into equally long pieces, each a cluster; int64 (frame_count,)."""
    _check(cluster_count)
    return np.arange(frame_count, dtype=np.int64) * cluster_count // max(frame_count, 1)


def _check(cluster_count: int) -> None:
    if cluster_count < 1:
        raise ConfigError(f"cluster_count must be 1 or more, got {cluster_count}")
