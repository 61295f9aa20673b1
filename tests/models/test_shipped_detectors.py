"""The detectors that come with Keystep: they load, their files agree, and they see."""

from __future__ import annotations

import itertools

import av
import pytest

from keystep_capture.samples import find_sample
from keystep_models.detector.detector import Detector
from keystep_models.detector.shipped import shipped_manifests
from keystep_models.psr.procedure_files import read_states


def test_the_cart_is_shipped():
    assert "cart" in [path.parent.name for path in shipped_manifests()]


@pytest.mark.parametrize("path", shipped_manifests(), ids=lambda path: path.parent.name)
def test_a_shipped_detector_says_whose_and_what_it_is(path):
    detector = Detector.load(path)
    assert len(detector.id) == 64
    assert detector.model.manifest.licence == "Apache-2.0"
    assert (path.parent / "LICENCE.md").is_file()
    assert read_states(path.parent / "states.json") == detector.spec.states


def test_the_carts_detector_sees_the_simulated_sample():
    [path] = [path for path in shipped_manifests() if path.parent.name == "cart"]
    detector = Detector.load(path)
    sample = find_sample("simulated-expert")  # a person it was trained on
    with av.open(str(sample.video_path)) as container:
        picture = next(itertools.islice(container.decode(video=0), 598, None))
    [found] = detector.detect(picture)
    assert detector.spec.class_names[found.class_id] == "1111111000000"
    cx, cy, w, h = found.box  # as labelled: x 79, y 70, 112 x 95
    assert (cx, cy, w, h) == pytest.approx((135, 117.5, 112, 95), abs=15)
