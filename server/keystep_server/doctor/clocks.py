"""This machine's clocks: how fine the monotonic one is, and whether NTP keeps the other."""

from __future__ import annotations

import ctypes
import time

from keystep_capture.findings import Finding

COARSE_NS = 1_000_000
_STA_UNSYNC = 0x40
_REMEDY = "switch on NTP (timedatectl set-ntp true, or chrony); latencies do not depend on it"


class _Timex(ctypes.Structure):
    """The head of Linux' struct timex; the rest is room for whatever follows."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 32),
    ]


def check_clocks() -> list[Finding]:
    """The monotonic clock, which latencies rest on, and the wall clock, which dates sessions."""
    return [_monotonic(), _wall()]


def _monotonic() -> Finding:
    step_ns = min(_step_ns() for _ in range(100))
    fine = step_ns < COARSE_NS
    return Finding(
        area="clock",
        name="monotonic",
        level="ok" if fine else "warning",
        detail=f"moves in steps of {step_ns} ns or less",
        remedy="" if fine else "latencies are that coarse: run the server on another machine",
    )


def _step_ns() -> int:
    start_ns = time.monotonic_ns()
    while (now_ns := time.monotonic_ns()) == start_ns:
        pass
    return now_ns - start_ns


def _wall() -> Finding:
    state = _ntp_state()
    if state is None:
        detail = "whether NTP keeps the wall clock cannot be seen here"
        return Finding(area="clock", name="ntp", level="warning", detail=detail, remedy=_REMEDY)
    synchronised, largest_error_ms = state
    if not synchronised:
        detail = "the wall clock is not kept by NTP: sessions may be dated wrongly"
        return Finding(area="clock", name="ntp", level="warning", detail=detail, remedy=_REMEDY)
    detail = f"the wall clock is kept by NTP, to {largest_error_ms:.0f} ms at worst"
    return Finding(area="clock", name="ntp", level="ok", detail=detail)


def _ntp_state() -> tuple[bool, float] | None:
    """What the kernel knows: synchronised, largest error in ms; None where it cannot be asked."""
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):  # not Linux
        return None
    state = _Timex()  # modes 0: it only reads
    if adjtimex(ctypes.byref(state)) < 0:
        return None
    return not state.status & _STA_UNSYNC, state.maxerror / 1e3
