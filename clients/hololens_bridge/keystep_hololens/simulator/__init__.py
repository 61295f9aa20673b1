"""A simulated HoloLens 2 that speaks hl2ss, for demos and tests without a headset.

Its packets are made from real video, head poses and gaze pixels; what the sources lack is
invented, and `keystep_capture/samples/data/README.md` says what.
"""

from keystep_hololens.simulator.clock import DeviceClock
from keystep_hololens.simulator.headset import SimulatedHeadset
from keystep_hololens.simulator.ports import Faults
from keystep_hololens.simulator.sensors import SensorSource
from keystep_hololens.simulator.video import VideoSource

__all__ = ["DeviceClock", "Faults", "SensorSource", "SimulatedHeadset", "VideoSource"]
