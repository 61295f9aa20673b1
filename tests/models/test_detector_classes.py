"""A detector's classes become a procedure's by what they stand for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from keystep_capture.errors import ConfigError
from keystep_models.detector.classes import ClassMap, adopt_classes
from keystep_models.psr.logic import Detection
from keystep_models.psr.procedure import builtin_procedure

_PROCEDURE = builtin_procedure("industreal-assy")
_DIGITS = ["".join(map(str, s)) for s in _PROCEDURE.states if s is not None]


def _spec(make_detector, classes, **told):
    output = np.zeros((1, 4 + len(classes), 30), np.float32)
    return make_detector({"output0": output}, layout="yolov8", classes=classes, **told).spec


def test_names_of_digits_in_any_order_find_their_states(make_detector):
    spec = _spec(make_detector, ["error_state", *reversed(_DIGITS), "background"])
    mapped = ClassMap.of(spec, _PROCEDURE).procedure_ids
    states = [_PROCEDURE.states[class_id] for class_id in mapped]
    assert states == list(spec.states)
    assert (mapped[0], mapped[-1]) == (len(_PROCEDURE.states) - 1, 0)


def test_detections_keep_their_order_and_boxes(make_detector):
    spec = _spec(make_detector, [_DIGITS[3], _DIGITS[0]])
    found = [Detection(1, 0.5, (1.0, 2.0, 3.0, 4.0)), Detection(0, 0.25)]
    mapped = ClassMap.of(spec, _PROCEDURE).apply(found)
    assert [_PROCEDURE.states[d.class_id] for d in mapped] == [spec.states[1], spec.states[0]]
    assert mapped[0].box == (1.0, 2.0, 3.0, 4.0)


def test_other_names_need_states_in_the_manifest(make_detector):
    with pytest.raises(ConfigError, match="give `states` in its manifest"):
        ClassMap.of(_spec(make_detector, ["frame", "wheel"]), _PROCEDURE)
    spec = _spec(make_detector, ["frame", "wheel"], states=_DIGITS[:2])
    assert ClassMap.of(spec, _PROCEDURE).procedure_ids == (1, 2)


def test_a_class_that_the_procedure_lacks_is_named(make_detector):
    with pytest.raises(ConfigError, match="00000000001"):
        ClassMap.of(_spec(make_detector, [_DIGITS[0], "00000000001"]), _PROCEDURE)
    with pytest.raises(ConfigError, match="different tasks"):
        ClassMap.of(_spec(make_detector, ["101"]), _PROCEDURE)
    without_error = replace(_PROCEDURE, states=_PROCEDURE.states[:-1])
    with pytest.raises(ConfigError, match="'error_state'"):
        ClassMap.of(_spec(make_detector, [_DIGITS[0], "error_state"]), without_error)
    without_background = replace(_PROCEDURE, states=_PROCEDURE.states[1:])
    with pytest.raises(ConfigError, match="'background'"):
        ClassMap.of(_spec(make_detector, [_DIGITS[0], "background"]), without_background)


def test_a_procedure_without_classes_adopts_the_detectors(make_detector):
    spec = _spec(make_detector, ["background", _DIGITS[0], "error_state"])
    silent = replace(_PROCEDURE, states=())
    with pytest.raises(ConfigError, match="detector_states"):
        ClassMap.of(spec, silent)
    adopted = adopt_classes(spec, silent)
    assert ClassMap.of(spec, adopted).procedure_ids == (0, 1, 2)
    with pytest.raises(ConfigError, match="says itself"):
        adopt_classes(spec, _PROCEDURE)
