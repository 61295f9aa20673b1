"""A simulated HoloLens 2 that speaks hl2ss, for demos and tests without a headset.

Its video, head poses and gaze pixels come from real recordings; what those lack is invented, and
`keystep_capture/samples/data/README.md` says what. Everything of `Room` (depth, tracking cameras,
IMU, eye tracker, hands, their calibration) and the microphone's tone are simulated: plausible, and
measured on no device. `Faults` are ways to fail on request. `RecordedHeadset` invents nothing: it
plays a recording, as it is.
"""

from keystep_hololens.simulator.clock import DeviceClock
from keystep_hololens.simulator.faults import Faults
from keystep_hololens.simulator.headset import SimulatedHeadset
from keystep_hololens.simulator.recorded_headset import RecordedHeadset
from keystep_hololens.simulator.rig import Rig
from keystep_hololens.simulator.room import Room
from keystep_hololens.simulator.sensors import SensorSource
from keystep_hololens.simulator.unity import AppKind, UnityApp
from keystep_hololens.simulator.video import VideoSource
from keystep_hololens.simulator.voice import VoiceControl

__all__ = [
    "AppKind",
    "DeviceClock",
    "Faults",
    "RecordedHeadset",
    "Rig",
    "Room",
    "SensorSource",
    "SimulatedHeadset",
    "UnityApp",
    "VideoSource",
    "VoiceControl",
]
