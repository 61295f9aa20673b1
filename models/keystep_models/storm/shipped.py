"""The storm bundles that come with Keystep, each a folder beside this file."""

from __future__ import annotations

from pathlib import Path

from keystep_models.storm.bundle import DOCUMENT


def shipped_bundles() -> list[Path]:
    """Their documents, by name of the folder."""
    return sorted(Path(__file__).parent.glob(f"*/{DOCUMENT}"))
