"""What a job's process does before it becomes `keystep extract`.

    python -m keystep_server.jobs.child PARENT NICE LOCK PROGRAM ARGUMENT...

It dies when the server does, however that ends: a restarted server begins the job anew, and two
processes must not write the same files. The lock, which the program inherits, guards those too.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Become the program; does not return.

    Args:
        arguments: As above.
    """
    parent, nice, lock, *program = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # it died before this was set
            raise SystemExit("the server has ended")
    os.nice(int(nice))
    file = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    os.set_inheritable(file, True)
    fcntl.flock(file, fcntl.LOCK_EX)
    os.execv(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
