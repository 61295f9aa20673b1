import contextlib
import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keystep_capture.errors import DataError
from keystep_models.psr.detections import read_detections
from keystep_models.psr.logic import Detection

HEADER = "clip,framenr,bb_class,bb_conf,bb_x,bb_y,bb_w,bb_h\n"
GOLDEN = Path(__file__).parents[1] / "golden" / "industreal"


def written(folder: Path, body: str, header: str = HEADER) -> Path:
    path = folder / "a.csv"
    path.write_text(header + body, encoding="utf-8")
    return path


def test_rows_become_detections_per_frame_in_file_order(tmp_path: Path) -> None:
    path = written(tmp_path, "a,1,13,0.5,10,20,30,40\na,1,4,0.25,1,2,3,4\na,3,0\na,4,0,,,,,\n")
    frames = read_detections(path, 6)
    both = [Detection(13, 0.5, (10.0, 20.0, 30.0, 40.0)), Detection(4, 0.25, (1.0, 2.0, 3.0, 4.0))]
    assert frames == [[], both, [], [], [], []]
    assert len(read_detections(path)) == 5


def test_published_files_read_compressed() -> None:
    frames = read_detections(GOLDEN / "08_assy_2_4_pred.csv.gz", 3443)
    assert len(frames) == 3443
    assert sum(map(len, frames)) == 548
    assert max(map(len, frames)) == 2


def test_an_empty_recording_has_no_frames(tmp_path: Path) -> None:
    assert read_detections(written(tmp_path, "")) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("a,1,13,0.5\n", "line 2: expected 8 values"),
        ("a,0,1\na,1,13,0.5,1,2,3,4,5\n", "line 3: expected 8 values"),
        ("a,x,13\n", "line 2, framenr: expected a whole number, got 'x'"),
        ("a,-1,13\n", "whole number from 0 to 2591999, got '-1'"),
        ("a,99999999999,13\n", "whole number from 0 to"),
        (f"a,{'9' * 5000},13\n", r"expected a whole number, got '9{56}\.\.\.$"),
        ("a,\x1b[31m,13\n", r"got '\\x1b\[31m'"),
        ("a,1,13,high,1,2,3,4\n", "line 2, bb_conf: expected a number, got 'high'"),
        ("a,6,13\n", "line 2: expected frames below 6, got frame 6"),
        ("a\n", "expected 8 values"),
    ],
)
def test_malformed_rows_are_refused_with_their_line(
    tmp_path: Path, body: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_detections(written(tmp_path, body), 6)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected the columns clip,framenr"):
        read_detections(written(tmp_path, "", header="a,b,c\n"))
    with pytest.raises(DataError, match="cannot read"):
        read_detections(tmp_path / "missing.csv")
    fake = tmp_path / "b.csv.gz"
    fake.write_text(HEADER, encoding="utf-8")
    with pytest.raises(DataError, match="cannot read"):
        read_detections(fake)


@given(cut=st.integers(0, 2000), flipped=st.integers(0, 2000))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_archives_are_refused_or_read(tmp_path: Path, cut: int, flipped: int) -> None:
    body = "".join(f"a,{k},13,0.5,1,2,3,{k * 37 % 101}\n" for k in range(200))
    damaged = bytearray(gzip.compress((HEADER + body).encode()))[: cut or None]
    damaged[flipped % len(damaged)] ^= 0x55
    path = tmp_path / "damaged.csv.gz"
    path.write_bytes(damaged)
    with contextlib.suppress(DataError):
        assert len(read_detections(path)) <= 200
