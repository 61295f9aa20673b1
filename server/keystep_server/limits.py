"""What one server process may use of its machine."""

from __future__ import annotations

import os
import resource

from keystep_capture.errors import ConfigError

DEFAULT_SHARE = 0.5


def limit_memory(limit_mb: int | None) -> int:
    """Give this process a hard limit of private memory; the limit in bytes, 0 for none.

    The limit is RLIMIT_DATA: heap, threads' stacks and private maps. RLIMIT_AS would count address
    space that ONNX Runtime's and CUDA's allocators reserve but never use.

    Args:
        limit_mb: MiB; None: half of the machine's memory; 0: no limit.

    Raises:
        ConfigError: The process was started under a lower limit.
    """
    if limit_mb == 0:
        return 0
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = int(machine * DEFAULT_SHARE) if limit_mb is None else limit_mb << 20
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY and hard < limit:
        if limit_mb is not None:
            raise ConfigError(
                f"memory_limit_mb is {limit_mb}, but this process was started with a limit of "
                f"{hard >> 20} MiB (ulimit -d)"
            )
        limit = hard
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return limit


def raise_file_limit() -> None:
    """Let this process open as many files and connections as the system lets it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
