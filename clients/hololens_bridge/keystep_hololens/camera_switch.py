"""Switching the headset's PV camera on and off."""

from __future__ import annotations

import asyncio
import contextlib

from keystep_capture.clock import Clock
from keystep_capture.errors import DeviceError
from keystep_hololens.hl2ss import client

PV_START_S = 10.0
PV_STOP_S = 2.0


class CameraSwitch:
    """Switches the PV camera; it takes no answer for granted."""

    def __init__(
        self,
        remote: client.RemoteConfigurationClient,
        remote_free: asyncio.Lock,
        *,
        clock: Clock,
    ) -> None:
        """Prepare; `remote_free` is held while the remote configuration port is asked."""
        self._remote, self._remote_free = remote, remote_free
        self._clock = clock
        self._found_on = False

    async def on(self) -> None:
        """Switch the camera on unless it is; returns when it is.

        Raises:
            DeviceError: The headset does not answer, or its camera did not start in time.
        """
        remote = self._remote
        async with self._remote_free:
            self._found_on = await remote.pv_status()
            if self._found_on:
                return
            await client.start_pv(remote.host, base_port=remote.base_port)
            deadline_ns = self._clock() + int(PV_START_S * 1e9)
            while not await remote.pv_status():
                if self._clock() > deadline_ns:
                    raise DeviceError(
                        f"the camera of {remote.host} did not start within {PV_START_S:g} s"
                    )
                await asyncio.sleep(0.1)
            self._found_on = True

    async def off(self) -> None:
        """Switch the camera off, if it was ever on and the headset is there."""
        if not self._found_on:
            return
        with contextlib.suppress(DeviceError):  # the headset is gone, and its camera with it
            await client.stop_pv(
                self._remote.host,
                base_port=self._remote.base_port,
                connect_timeout_s=PV_STOP_S,
            )
