"""Bundled samples: real data small enough to ship, for demos, tests and the simulated headset."""

from keystep_capture.samples.catalogue import SAMPLES, Sample, find_sample
from keystep_capture.samples.detections import DetectionRow, load_detection_rows
from keystep_capture.samples.labels import LabelledStep, load_labels
from keystep_capture.samples.sensors import (
    GazeCamera,
    SensorRow,
    load_gaze_camera,
    load_sensor_rows,
)
from keystep_capture.samples.truth import ExpectedStep, SampleTruth, TruthStep, load_truth

__all__ = [
    "SAMPLES",
    "DetectionRow",
    "ExpectedStep",
    "GazeCamera",
    "LabelledStep",
    "Sample",
    "SampleTruth",
    "SensorRow",
    "TruthStep",
    "find_sample",
    "load_detection_rows",
    "load_gaze_camera",
    "load_labels",
    "load_sensor_rows",
    "load_truth",
]
