"""The memory limit, on processes of their own since it cannot be taken back."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

ALLOCATE = """
import sys
from keystep_capture.errors import ConfigError
from keystep_server.limits import limit_memory
try:
    print(limit_memory(None if sys.argv[1] == "default" else int(sys.argv[1])) >> 20)
    bytearray(600 << 20)
    print("taken")
except (MemoryError, ConfigError) as error:
    print(type(error).__name__, error)
"""


def allocate_under(limit_mb: str, *, hard_mb: int | None = None) -> list[str]:
    """Set a limit, ask for 600 MiB; what happened."""

    def lower() -> None:
        if hard_mb is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (hard_mb << 20, hard_mb << 20))

    done = subprocess.run(
        [sys.executable, "-c", ALLOCATE, limit_mb],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        preexec_fn=lower,
    )
    return [line.strip() for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("limit_mb", "hard_mb", "outcome"),
    [
        ("400", None, ["400", "MemoryError"]),
        ("2000", None, ["2000", "taken"]),
        ("0", None, ["0", "taken"]),
        ("default", 400, ["400", "MemoryError"]),
    ],
)
def test_memory_is_limited_as_set(limit_mb: str, hard_mb: int | None, outcome: list[str]) -> None:
    assert allocate_under(limit_mb, hard_mb=hard_mb) == outcome


def test_a_limit_above_the_processs_own_is_refused() -> None:
    (said,) = allocate_under("2000", hard_mb=400)
    assert said.startswith("ConfigError memory_limit_mb is 2000")
    assert "ulimit -d" in said
