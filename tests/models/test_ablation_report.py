"""How an ablation's runs become rows, differences and verdicts, and what it is compared with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep_capture.errors import ConfigError, DataError
from keystep_models.measures.ablation_floors import floors, frequent_keysteps
from keystep_models.measures.ablation_report import (
    AblationResult,
    Estimate,
    ablation_rows,
    as_document,
    as_markdown,
    floor_rows,
    verdict,
)
from keystep_models.measures.ablation_tables import AblationTable, find_tables, published_floor


def encoders() -> AblationTable:
    (table,) = find_tables("table8", base_chunks=128, recording_count=4)
    return table


def result(**f1: list[float]) -> AblationResult:
    scores = {
        name: [{"all": {"f1": value, "iou": value / 2}} for value in values]
        for name, values in f1.items()
    }
    return AblationResult(
        table=encoders(),
        rows=ablation_rows(encoders(), scores),
        floors=floor_rows({7: {"uniform": [{"f1": 0.3, "iou": 0.2}]}}),
        settings={},
    )


def test_differences_are_paired_by_seed() -> None:
    found = result(TCN=[0.1, 0.3, 0.5], LSTM=[0.3, 0.5, 0.7], transformer=[0.2, 0.4, 0.6])
    rows = {row.name: row for row in found.rows}
    assert rows["TCN"].f1.error == pytest.approx(100 * 0.2 / np.sqrt(3))
    for name, sign in (("TCN", -1), ("LSTM", 1)):
        difference = rows[name].difference
        assert difference is not None
        assert difference.mean == pytest.approx(sign * 10)
        assert difference.error == pytest.approx(0, abs=1e-9)
    assert (rows["TCN"].verdict, rows["LSTM"].verdict) == ("as published", "opposite")


@given(
    mean=st.floats(-20, 20),
    error=st.floats(0.1, 10),
    theirs=st.floats(1, 50),
    base=st.floats(1, 50),
)
def test_a_verdict_needs_two_standard_errors_and_the_papers_sign(
    mean: float, error: float, theirs: float, base: float
) -> None:
    found = verdict(Estimate(mean=mean, error=error), (theirs, None), (base, None))
    if abs(mean) <= 2 * error or theirs == base:
        assert found == "open"
    else:
        assert (found == "as published") == ((mean > 0) == (theirs > base))


def test_rows_without_published_figures_have_no_verdict() -> None:
    known = Estimate(mean=5.0, error=1.0)
    assert verdict(known, None, (36.4, 18.0)) == "-"
    assert verdict(known, (None, 3.0), (36.4, 18.0)) == "-"
    assert verdict(None, (1.0, 1.0), (36.4, 18.0)) == "-"


def test_the_text_shows_ours_baselines_and_the_papers() -> None:
    found = result(TCN=[0.2, 0.3], LSTM=[0.2, 0.3], transformer=[0.4, 0.41])
    text = as_markdown(found, "Table 8 (made up)")
    assert "| *uniform* | 30.0 | 20.0 |  | 16.2 / 6.7 |" in text
    assert "| transformer | 40.5 ± 0.5 | 20.2 ± 0.2 | reference | 36.4 / 18.0 |" in text
    assert "| 32.5 / 14.8 | -3.9 |" in text
    assert as_document(found)["rows"][0]["name"] == "TCN"


def test_the_probe_is_a_ceiling_where_looks_tell_the_step_and_time_does_not() -> None:
    rng = np.random.default_rng(0)
    centres = 3.0 * np.eye(4, 12)
    labels = [np.repeat(rng.permutation(4), 60) for _ in range(4)]
    features = [(centres[own] + rng.normal(size=(240, 12))).astype("f4") for own in labels]
    found = {
        name: float(np.mean([draw["f1"] for draw in draws]))
        for name, draws in floors(features, labels, keysteps=3, clusters=4, rate_hz=5.0).items()
    }
    assert found["linear probe, with labels"] > 0.9
    assert found["random"] < found["uniform"] < found["linear probe, with labels"]
    assert "linear probe, with labels" not in floors(
        features[:2], labels[:2], keysteps=3, clusters=4, rate_hz=5.0
    )


def test_a_probe_without_any_key_step_is_told() -> None:
    nothing = [np.zeros(20, np.int64)] * 3
    with pytest.raises(DataError, match="frames of a key step"):
        floors([np.ones((20, 3), "f4")] * 3, nothing, keysteps=2, clusters=3, rate_hz=5.0)


def test_frequent_keysteps_leave_background_out() -> None:
    assert frequent_keysteps([np.array([0, 0, 0, 2, 2, 1]), np.array([3, 3, 3])], 2) == [3, 2]


def test_tables_are_found_by_name_and_others_are_told() -> None:
    assert find_tables("Table12", base_chunks=128, recording_count=4)[0].key == "12"
    assert len(find_tables("all", base_chunks=128, recording_count=4)) == 10
    with pytest.raises(ConfigError, match="no ablation is called 'table3'"):
        find_tables("table3", base_chunks=128, recording_count=4)
    assert published_floor("uniform", 10) == (13.2, None)
    assert published_floor("uniform", 8) is None
