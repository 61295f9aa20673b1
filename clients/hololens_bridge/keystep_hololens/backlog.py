"""What waits at the bridge for its server: told while it does, and handed over at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from keystep_capture.clock import Clock
from keystep_capture.errors import ConfigError, StateError
from keystep_capture.sender import Sender
from keystep_capture.spool import LIMIT_BYTES, Spool

TELL_EVERY_S = 5.0
BEHIND_S = 2.0
"""Less than this is no more than packets on their way."""
FINISH_S = 5.0
"""At the end the server is waited for while it takes something at least so often."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolConfig:
    """Where packets wait that the server cannot take now.

    Attributes:
        folder: Each device has a folder of its own in it.
        limit_bytes: The most that a device's may hold.

    Raises:
        ConfigError: The limit is not above 0.
    """

    folder: Path
    limit_bytes: int = LIMIT_BYTES

    def __post_init__(self) -> None:
        if self.limit_bytes <= 0:
            raise ConfigError(f"--spool-limit-gb is {self.limit_bytes / 1e9:g}, expected above 0")

    def open(self, device: str, *, clock: Clock) -> Spool:
        """A device's spool.

        Raises:
            StateError: Another bridge of this device uses it.
        """
        return Spool(self.folder / f"{device}.spool", limit_bytes=self.limit_bytes, clock=clock)


class Backlog:
    """Watches over what a sender holds back."""

    def __init__(self, sender: Sender, spool: Spool | None) -> None:
        """Start.

        Args:
            sender: Whose packets wait.
            spool: Where they do; None: in memory only.
        """
        self._sender = sender
        self._spool = spool
        self._is_behind = False

    async def tell(self) -> None:
        """Say in the log how far the server is behind, every few seconds, and when no more.

        Where nothing is spooled, nothing is caught up with either: then it says nothing.
        """
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            if self._spool is not None:
                self._tell_once()

    def _tell_once(self) -> None:
        behind = self._sender.behind()
        was_behind, self._is_behind = self._is_behind, behind.duration_ns > BEHIND_S * 1e9
        if self._is_behind:
            log.info(
                "behind: packets wait for the server",
                seconds=round(behind.duration_ns / 1e9, 1),
                mb=round(behind.byte_count / 1e6, 1),
                connected=self._sender.is_welcome,
            )
        elif was_behind:
            log.info("caught up: no packet waits for the server")

    async def hand_over(self, *, close: bool, is_hurried: Callable[[], bool]) -> None:
        """Send what is held and say so, as long as the server takes it.

        Args:
            close: Have the session closed.
            is_hurried: Whether to leave the rest; only where it stays in the spool.
        """
        while True:
            before = self._sender.behind().byte_count
            try:
                await self._sender.finish(close=close, timeout_s=FINISH_S)
                return
            except StateError as error:
                goes_on = self._spool is not None and self._sender.behind().byte_count < before
                if not goes_on or is_hurried():
                    log.warning("ending; not all was handed over", reason=str(error))
                    return

    def left(self) -> str | None:
        """What stays in the spool for the next start, in words; None: nothing."""
        spool = self._spool
        if spool is None or not spool.lives:
            return None
        return (
            f"What the server has not written down stays in {spool.folder} "
            f"({spool.size_bytes / 1e6:.1f} MB); the next start as this device sends it."
        )
