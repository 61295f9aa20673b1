"""The same boxes in every exporter's layout; hostile values; clear refusals."""

from __future__ import annotations

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from keystep_capture.errors import ModelError
from keystep_models.detector.suppression import suppress

_NAMES = ["one", "two", "three"]
# Corners in the input of 64 x 96 (96 x 64 pixels), score, class. Surest first, none overlap.
_TRUE = [(10, 12, 30, 40, 0.9, 2), (50, 5, 90, 25, 0.75, 0), (60, 30, 70, 60, 0.5, 1)]
_PICTURE = av.VideoFrame.from_ndarray(np.zeros((128, 192, 3), np.uint8), "rgb24")  # twice as large


def _rows(extra=(), objectness=False):
    rows = np.zeros((9, (5 if objectness else 4) + len(_NAMES)), np.float32)
    for row, (x1, y1, x2, y2, score, class_id) in zip(rows, [*_TRUE, *extra], strict=False):
        row[:4] = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
        if objectness:
            row[4], row[5 + class_id] = 0.95, score / 0.95
        else:
            row[4 + class_id] = score
    return rows[None]


def _padded(width, values):
    rows = np.zeros((5, width), np.float32)
    for row, value in zip(rows, values, strict=False):
        row[: len(value)] = value
    return rows


_LAYOUTS = {
    "yolov8": {"output0": _rows().transpose(0, 2, 1).copy()},
    "yolov8 transposed": {"output0": _rows()},
    "yolov5": {"output0": _rows(objectness=True)},
    "end2end": {"output0": _padded(6, _TRUE)[None]},
    "yolov7": {"output0": _padded(7, [(0, *t[:4], t[5], t[4]) for t in _TRUE])},
    "EfficientNMS": {
        "num_dets": np.array([[3]], np.int32),
        "det_boxes": _padded(4, [t[:4] for t in _TRUE])[None],
        "det_scores": _padded(1, [t[4:5] for t in _TRUE])[None, :, 0],
        "det_classes": np.array([[2, 0, 1, 0, 0]], np.int32),
    },
    "boxes, labels, scores": {
        "boxes": _padded(4, [t[:4] for t in _TRUE]),
        "labels": np.array([2, 0, 1, 0, 0], np.int64),
        "scores": _padded(1, [t[4:5] for t in _TRUE])[:, 0],
    },
}


def _check(detections):
    assert [d.class_id for d in detections] == [2, 0, 1]
    np.testing.assert_allclose([d.confidence for d in detections], [0.9, 0.75, 0.5], rtol=1e-3)
    boxes = [(d.box[0] - d.box[2] / 2, d.box[1] - d.box[3] / 2) for d in detections]
    np.testing.assert_allclose(boxes, [(2 * t[0], 2 * t[1]) for t in _TRUE], atol=1e-3)
    np.testing.assert_allclose(
        [d.box[2:] for d in detections],
        [(2 * (t[2] - t[0]), 2 * (t[3] - t[1])) for t in _TRUE],
        atol=1e-3,
    )


@pytest.mark.parametrize("layout", _LAYOUTS)
def test_every_layout_is_recognised_and_gives_the_same_boxes(make_detector, layout):
    detector = make_detector(_LAYOUTS[layout], classes=_NAMES)
    _check(detector.detect(_PICTURE))


def test_detr_boxes_are_relative_and_its_last_logit_may_be_no_object(make_detector):
    boxes = _rows()[0, :5, :4] / [96, 64, 96, 64]
    logits = np.full((5, 4), -9.0, np.float32)
    for row, true in zip(logits, _TRUE, strict=False):
        row[true[5]] = np.log(true[4] / (1 - true[4]))
    logits[3:, 3] = 9.0
    outputs = {"dets": boxes.astype(np.float32)[None], "labels": logits[None]}
    detector = make_detector(outputs, classes=_NAMES, activation="sigmoid")
    _check(detector.detect(_PICTURE))
    with pytest.raises(ModelError, match="sigmoid or softmax"):
        make_detector(outputs, classes=_NAMES)


def test_a_softmax_counts_no_object(make_detector):
    logits = np.log(np.array([[[0.1, 0.6, 0.1, 0.2], [0.2, 0.1, 0.1, 0.6]]], np.float32))
    outputs = {"pred_logits": logits, "pred_boxes": np.full((1, 2, 4), 0.5, np.float32)}
    detector = make_detector(outputs, classes=_NAMES, activation="softmax", confidence=0.15)
    found = [(d.class_id, round(d.confidence, 3)) for d in detector.detect(_PICTURE)]
    assert found == [(1, 0.6), (0, 0.2)]


def test_free_dimensions_are_recognised_by_the_others(make_detector):
    rows = {"output0": _rows().transpose(0, 2, 1).copy()}
    detector = make_detector(rows, {"output0": (1, 7, "boxes")}, classes=_NAMES)
    _check(detector.detect(_PICTURE))


def test_overlapping_boxes_of_a_class_leave_the_surest(make_detector):
    near = [(11, 12, 31, 41, 0.6, 2), (10, 13, 30, 40, 0.4, 0)]
    rows = {"output0": _rows(near).transpose(0, 2, 1).copy()}
    by_class = make_detector(rows, classes=_NAMES).detect(_PICTURE)
    across = make_detector(rows, classes=_NAMES, across_classes=True).detect(_PICTURE)
    assert [d.class_id for d in by_class] == [2, 0, 1, 0]
    assert [d.class_id for d in across] == [2, 0, 1]


def test_what_could_be_two_layouts_asks_for_one(make_detector):
    rows = {"output0": np.zeros((1, 5, 6), np.float32)}  # 4 + 2 classes, or end to end
    with pytest.raises(ModelError, match="it may be yolov8 or end2end"):
        make_detector(rows, classes=["a", "b"])
    detector = make_detector(rows, classes=["a", "b"], layout="end2end")
    assert detector.detect(_PICTURE) == []


def test_classes_that_do_not_fit_the_outputs_are_named(make_detector):
    with pytest.raises(ModelError, match=r"with 9 classes.*\[1, 7, 9\]"):
        make_detector(_LAYOUTS["yolov8"], classes=[f"c{i}" for i in range(9)])
    with pytest.raises(ModelError, match="outputs of layout end2end"):
        make_detector(_LAYOUTS["yolov8"], classes=_NAMES, layout="end2end")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"classes": []}, "length >= 1"),
        ({"classes": ["a", "a", "b"]}, "occurs twice"),
        ({"classes": _NAMES, "states": ["10", None]}, "a state for each of 3 classes"),
        ({"classes": _NAMES, "states": ["10", "1", None]}, "different numbers"),
        ({"classes": _NAMES, "states": ["1x", "10", None]}, "digits 0 and 1"),
        ({"classes": _NAMES, "scale": 0.0}, "`scale`"),
        ({"classes": _NAMES, "confidence": 1.5}, "<= 1.0"),
        ({"classes": _NAMES, "treshold": 0.5}, "treshold"),
        ({"classes": _NAMES, "layout": "yolov99"}, "yolov99"),
        ({"classes": _NAMES, "outputs": {"boxes": "nothing"}}, "'nothing'"),
    ],
)
def test_a_manifest_that_is_not_as_documented_is_refused(make_detector, told, message):
    with pytest.raises(ModelError, match=message):
        make_detector(_LAYOUTS["yolov8"], **told)


def test_another_kind_of_model_is_no_detector(make_detector):
    with pytest.raises(ModelError, match="is no detector"):
        make_detector(_LAYOUTS["yolov8"], kind="embedding", classes=_NAMES)


_HOSTILE = st.one_of(
    st.sampled_from([np.nan, np.inf, -np.inf, -1.0, 0.0, 0.5, 1.0, 2.0, 3.4e38, -3.4e38, 1e-38]),
    st.floats(width=32),
)


def _assert_sane(detections):
    assert len(detections) <= 100
    assert len(set(detections)) == len(detections)
    for each in detections:
        cx, cy, w, h = each.box
        assert 0 <= each.class_id < len(_NAMES)
        assert 0.25 <= each.confidence <= 1
        assert w > 0
        assert h > 0
        assert min(cx - w / 2, cy - h / 2) >= -1e-9
        assert cx + w / 2 <= 192 + 1e-9
        assert cy + h / 2 <= 128 + 1e-9


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), layout=st.sampled_from(sorted(_LAYOUTS)))
def test_hostile_outputs_give_sane_detections(make_detector, data, layout):
    detector = make_detector(_LAYOUTS[layout], classes=_NAMES)
    _, placement = detector.prepare(_PICTURE)
    hostile = {}
    for name, array in _LAYOUTS[layout].items():
        if array.dtype == np.float32:
            hostile[name] = data.draw(arrays(np.float32, array.shape, elements=_HOSTILE))
        else:
            limits = np.iinfo(array.dtype)
            whole = st.integers(int(limits.min), int(limits.max))
            hostile[name] = data.draw(arrays(array.dtype, array.shape, elements=whole))
    _assert_sane(detector.read(hostile, placement))


def test_a_hundred_thousand_boxes_are_read(make_detector):
    rng = np.random.default_rng(1)
    detector = make_detector(_LAYOUTS["yolov8"], {"output0": (1, 7, "n")}, classes=_NAMES)
    _, placement = detector.prepare(_PICTURE)
    output = rng.uniform(0, 1, (1, 7, 100_000)).astype(np.float32)
    output[:, :4] *= 64
    _assert_sane(detector.read({"output0": output}, placement))
    empty = np.zeros((1, 7, 0), np.float32)
    assert detector.read({"output0": empty}, placement) == []


def test_outputs_of_another_shape_are_an_error_of_the_model(make_detector):
    detector = make_detector(_LAYOUTS["yolov8"], {"output0": (1, "a", "n")}, classes=_NAMES,
                             layout="yolov8")  # fmt: skip
    _, placement = detector.prepare(_PICTURE)
    for shape in [(1, 9, 9), (2, 7, 9), (7,), (1, 0, 0)]:
        with pytest.raises(ModelError, match="not its layout's"):
            detector.read({"output0": np.zeros(shape, np.float32)}, placement)


_BOXES = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 12), st.integers(1, 12))


@given(
    found=st.lists(st.tuples(_BOXES, st.integers(0, 4), st.integers(0, 1)), max_size=14),
    iou=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    across=st.booleans(),
)
def test_suppression_is_what_the_plain_loop_does(found, iou, across):
    boxes = np.array([(x, y, x + w, y + h) for (x, y, w, h), _, _ in found], float).reshape(-1, 4)
    scores = np.array([s / 4 for _, s, _ in found])
    class_ids = np.array([c for _, _, c in found], np.int64)
    kept = suppress(boxes, scores, class_ids, iou=iou, max_count=9, across_classes=across)
    expected = []
    for i in sorted(range(len(found)), key=lambda i: (-scores[i], i)):
        rivals = [j for j in expected if across or class_ids[j] == class_ids[i]]
        if all(_overlap(boxes[i], boxes[j]) <= iou for j in rivals):
            expected.append(i)
    assert kept.tolist() == expected[:9]


def _overlap(one, other):
    w = min(one[2], other[2]) - max(one[0], other[0])
    h = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(w, 0) * max(h, 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return shared / (sum(areas) - shared)
