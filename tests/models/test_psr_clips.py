import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keystep_capture.errors import DataError
from keystep_models.psr.clips import ClipPrediction, read_clips

HEADER = "framenr,component_0,component_1\n"
probabilities = st.floats(0, 1)
frames = st.lists(
    st.none() | st.tuples(probabilities, probabilities).map(ClipPrediction.of), max_size=8
)


def written(folder: Path, text: str, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def as_csv(clips: list[ClipPrediction | None]) -> str:
    rows = [
        ",".join([str(idx), *(repr(v) for v in (clip.confidences if clip else ()))])
        for idx, clip in enumerate(clips)
    ]
    return HEADER + "".join(row + "\n" for row in rows)


def as_json(clips: list[ClipPrediction | None]) -> str:
    return json.dumps(
        [[[int(p) for p in c.predicted], list(c.confidences)] if c else [[], []] for c in clips]
    )


@given(clips=frames)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_layouts_read_back_what_was_written(
    tmp_path: Path, clips: list[ClipPrediction | None]
) -> None:
    assert read_clips(written(tmp_path, as_csv(clips)), 2) == clips
    assert read_clips(written(tmp_path, as_json(clips), "a.json"), 2) == clips


def test_frames_before_the_first_row_and_after_the_last_have_no_prediction(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + "2,0.5,0.25\n3\n4,,\n")
    clip = ClipPrediction((0.5, 0.25), (True, False))
    assert read_clips(path, 2, 7) == [None, None, clip, None, None, None, None]
    assert len(read_clips(path, 2)) == 5


def test_compressed_files_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress((HEADER + "0,0.1,0.9\n").encode()))
    assert read_clips(path, 2) == [ClipPrediction((0.1, 0.9), (False, True))]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("0,0.5\n", "line 2: expected 3 values, or the frame alone, got 2"),
        ("0,0.5,1.5\n", "line 2, component_1: expected a finite number from 0 to 1, got '1.5'"),
        ("0,nan,0.5\n", "line 2, component_0: expected a finite number from 0 to 1, got 'nan'"),
        ("0,0.5,0.5\n0,0.5,0.5\n", "line 3: expected frame 1, got frame 0"),
        ("3,0.5,0.5\n5,0.5,0.5\n", "line 3: expected frame 4, got frame 5"),
        ("x,0.5,0.5\n", "line 2, framenr: expected a whole number, got 'x'"),
        ("9,0.5,0.5\n", "expected frames below 9, got frame 9"),
    ],
)
def test_malformed_rows_are_refused_with_their_line(
    tmp_path: Path, body: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_clips(written(tmp_path, HEADER + body), 2, 9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "a list with one entry per frame"),
        ([[[1, 0]]], r"frame 0: expected \[\[0 or 1"),
        ([[[1, 2], [0.5, 0.5]]], "frame 0: expected"),
        ([[[], []], [[1], [0.5]]], "frame 1: expected 2 components, got 1"),
        ([[[1, 0], [0.5, 1.5]]], "frame 0: expected confidences from 0 to 1, got 1.5"),
    ],
)
def test_malformed_json_is_refused_with_its_frame(
    tmp_path: Path, content: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_clips(written(tmp_path, json.dumps(content), "a.json"), 2)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: expected the columns framenr,component_0"):
        read_clips(written(tmp_path, "a,b\n"), 2)
    with pytest.raises(DataError, match="cannot read clip predictions"):
        read_clips(tmp_path / "missing.csv", 2)
    with pytest.raises(DataError, match="line 1: expected JSON"):
        read_clips(written(tmp_path, "[1,", "a.json"), 2)
