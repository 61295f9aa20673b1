"""The detectors that come with Keystep, each a folder beside this file."""

from __future__ import annotations

from pathlib import Path

from keystep_models.detector.detector import MANIFEST


def shipped_manifests() -> list[Path]:
    """Their manifests, by name of the folder."""
    return sorted(Path(__file__).parent.glob(f"*/{MANIFEST}"))
