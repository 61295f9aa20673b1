"""Random numbers by name: every use has its own generator, so adding one changes no other."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(*names: int | str) -> np.random.Generator:
    """Return the generator of a purpose, the same one each time for the same names.

    Args:
        names: The seed first, then what the numbers are for: `generator(7, "person", 2)`.
    """
    digest = hashlib.sha256(repr(names).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
