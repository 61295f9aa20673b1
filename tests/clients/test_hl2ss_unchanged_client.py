"""hl2ss's own, unchanged Python client drives the simulated headset.

Its licence (BSD-3 with the Commons Clause) forbids shipping it: set KEYSTEP_HL2SS_VIEWER to the
`viewer` folder of a checkout of version 1.0.37 to run this.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keystep_capture.samples import find_sample, load_sensor_rows
from keystep_hololens.hl2ss.protocol import Port, port
from keystep_hololens.simulator import SimulatedHeadset

VIEWER = os.environ.get("KEYSTEP_HL2SS_VIEWER")
pytestmark = pytest.mark.skipif(
    VIEWER is None,
    reason="KEYSTEP_HL2SS_VIEWER must name hl2ss's viewer folder; its licence forbids shipping it",
)

VIDEO_PROGRAM = """
import json, sys
viewer, host, rc_port, pv_port = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
sys.path.insert(0, viewer)
import hl2ss, hl2ss_lnm
found = {"streams": []}
rc = hl2ss_lnm.ipc_rc(host, rc_port)
rc.open()
found["version"] = [int(n) for n in rc.ee_get_application_version()]
found["pv_before"] = bool(rc.pv_get_subsystem_status())
offset, now, utc = rc.ts_get_utc_offset(), rc.ts_get_current_time(0), rc.ts_get_current_time(1)
found["utc_agrees"] = abs(utc - offset - now) < 10_000_000
rc.pv_set_focus(3, 0, 0, 1000, 1)
rc.si_set_sampling_delay(-333333)
hl2ss_lnm.start_subsystem_pv(host, pv_port)
rc.pv_wait_for_subsystem(True)
rc.close()
calibration = hl2ss_lnm.download_calibration_pv(host, pv_port, width=640, height=360, framerate=30)
found["centre"] = [float(n) for n in calibration.principal_point]
for mode in (hl2ss.StreamMode.MODE_1, hl2ss.StreamMode.MODE_0):
    rx = hl2ss_lnm.rx_pv(host, pv_port, mode=mode, width=640, height=360, framerate=30,
                         profile=hl2ss.VideoProfile.H264_MAIN, decoded_format="bgr24")
    rx.open()
    shapes, times, poses = [], [], []
    for _ in range(20):
        packet = rx.get_next_packet()
        shapes.append(list(packet.payload.image.shape))
        times.append(int(packet.timestamp))
        poses.append(packet.pose is not None and bool(hl2ss.is_valid_pose(packet.pose)))
    rx.close()
    found["streams"].append({"shapes": shapes, "times": times, "poses": poses})
hl2ss_lnm.stop_subsystem_pv(host, pv_port)
print(json.dumps(found))
"""

SENSOR_PROGRAM = """
import json, sys
viewer, host, si_port = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.path.insert(0, viewer)
import hl2ss, hl2ss_lnm
rx = hl2ss_lnm.rx_si(host, si_port)
rx.open()
for n in range(600):
    packet = rx.get_next_packet()
rx.close()
si = packet.payload
print(json.dumps({"forward": [float(x) for x in si.head_pose.forward],
                  "time": int(packet.timestamp), "head_valid": bool(si.head_pose_valid),
                  "hand_valid": bool(si.hand_left_valid or si.hand_right_valid)}))
"""


async def run_program(program: str, *arguments: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        str(VIEWER),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(output)
    return found


async def test_the_unchanged_client_reads_constants_and_two_video_streams() -> None:
    async with SimulatedHeadset.of_sample(find_sample("pour-coffee"), loop=True) as headset:
        ports = [
            port(k, headset.base_port) for k in (Port.REMOTE_CONFIGURATION, Port.PERSONAL_VIDEO)
        ]
        found = await run_program(VIDEO_PROGRAM, headset.host, *map(str, ports))
    assert found["version"] == [1, 0, 37, 0]
    assert found["pv_before"] is False
    assert found["utc_agrees"] is True
    assert found["centre"] == [320.0, 180.0]
    for stream in found["streams"]:
        assert stream["shapes"] == [[360, 640, 3]] * 20
        assert stream["times"] == sorted(set(stream["times"]))
        assert not any(stream["poses"])


async def test_the_unchanged_client_reads_spatial_input() -> None:
    sample = find_sample("industreal-03")
    async with SimulatedHeadset.of_sample(sample, time_scale=1000) as headset:
        si_port = port(Port.SPATIAL_INPUT, headset.base_port)
        found = await run_program(SENSOR_PROGRAM, headset.host, str(si_port))
        assert headset.playback_origin_hns is not None
        assert found["time"] == headset.playback_origin_hns + 599 * 1_000_000
    row = load_sensor_rows(sample.sensors_path or Path())[599]
    np.testing.assert_allclose(found["forward"], row.world_from_head_luf[:3, 2], atol=1e-6)
    assert (found["head_valid"], found["hand_valid"]) == (True, False)
