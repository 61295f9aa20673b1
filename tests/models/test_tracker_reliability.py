from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from keystep_capture.errors import ConfigError, DataError
from keystep_models.psr.fit_tracker import fit, read_recordings, tune
from keystep_models.psr.tracker_model import TrackerModel
from keystep_models.psr.tracker_reliability import (
    ReliabilityBin,
    calibration_error,
    draw_reliability,
    fit_without,
    main,
    reliability,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "industreal"


@given(st.lists(st.tuples(st.floats(0.5, 1), st.booleans()), min_size=1, max_size=60))
def test_bins_hold_every_report_once_in_order_of_confidence(
    reports: list[tuple[float, bool]],
) -> None:
    bins = reliability([c for c, _ in reports], [right for _, right in reports])
    assert sum(part.count for part in bins) == len(reports)
    means = [part.confidence for part in bins]
    np.testing.assert_allclose(means, sorted(means))
    right_count = sum(part.right_share * part.count for part in bins)
    assert right_count == pytest.approx(sum(right for _, right in reports))


def test_deserved_confidence_has_no_calibration_error() -> None:
    assert calibration_error([ReliabilityBin(0.75, 0.75, 4), ReliabilityBin(1.0, 1.0, 9)]) == 0
    assert calibration_error([ReliabilityBin(0.9, 0.5, 10)]) == pytest.approx(0.4)


def test_no_reports_have_no_reliability() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        reliability([], [])


def test_better_bins_are_drawn_higher() -> None:
    high = draw_reliability([ReliabilityBin(0.8, 0.95, 9)], "")
    low = draw_reliability([ReliabilityBin(0.8, 0.6, 9)], "")
    rows = [np.argwhere((image == (170, 90, 30)).all(axis=2))[:, 0].mean() for image in (high, low)]
    assert rows[0] < rows[1] - 100


def test_every_participant_is_left_out_in_turn(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    picture = tmp_path / "reliability.png"
    result = CliRunner().invoke(app, ["--detections", str(GOLDEN), "--picture", str(picture)])
    assert result.exit_code == 0, result.output
    assert "recording_count=20" in result.output
    assert cv2.imread(str(picture)).shape[2] == 3


def test_settings_are_chosen_without_a_participant_and_a_stopped_choice_goes_on(
    tmp_path: Path,
) -> None:
    recordings = [
        r for r in read_recordings(GOLDEN, GOLDEN) if r.name in ("03_main_0_1", "10_main_0_1")
    ]
    record = tmp_path / "record.jsonl"
    models = fit_without(recordings, 2, 1, record)
    for participant, model in models.items():
        others = [r for r in recordings if r.participant != participant]
        assert model == tune(others, fit(others, TrackerModel()), 2)
    lines = record.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4
    record.write_text("\n".join(lines[:3]) + "\n", encoding="utf-8")  # stopped after three
    assert fit_without(recordings, 2, 1, record) == models
    assert sorted(record.read_text(encoding="utf-8").splitlines()) == sorted(lines)
    record.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"record\.jsonl: expected trials of an earlier run"):
        fit_without(recordings, 2, 1, record)
