"""What holds for all tests."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# A busy machine is slow; that alone is no failure.
settings.register_profile("keystep", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("keystep")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores Ctrl-C and so would every program that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
