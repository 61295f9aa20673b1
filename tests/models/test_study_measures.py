"""Methods over people and seeds: figures and their errors, on numbers done by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from keystep_capture.errors import ShapeError
from keystep_models.measures import baselines_report, occlusion_report
from keystep_models.measures.psr import GroundTruthStep, ReportedStep
from keystep_models.measures.study import (
    RunScore,
    capped_delay,
    delay_change,
    delay_change_in_common,
    earlier_share,
    figure,
    mean_delay,
    mean_of,
    median_delay,
    paired,
    score_run,
)


def run(f1: float = 0.5, delays: Mapping[int, int] | None = None, true_count: int = 4) -> RunScore:
    return RunScore(
        f1=f1, pos=f1, precision=f1, recall=f1, delays=delays or {}, true_count=true_count
    )


def test_delays_are_kept_by_true_step() -> None:
    truth = [GroundTruthStep(10, 0), GroundTruthStep(20, 3), GroundTruthStep(30, 6)]
    score = score_run(truth, [ReportedStep(15, 0), ReportedStep(29, 6), ReportedStep(44, 6)])
    assert dict(score.delays) == {0: 5, 2: 14}  # the report at 29 is too early
    assert (score.true_count, score.f1) == (3, pytest.approx(2 * 2 / 6))


def test_errors_are_those_of_means_over_seeds_and_over_people() -> None:
    table = [[run(0.2), run(0.4), run(0.9)], [run(0.4), run(0.6), run(0.5)]]
    found = figure(table, mean_of("f1"))
    assert found.mean == pytest.approx(0.5)
    assert found.seed_error == pytest.approx(0.0, abs=1e-12)
    people = [0.3, 0.5, 0.7]  # each person's mean over seeds
    assert found.person_error == pytest.approx(math.sqrt(sum((p - 0.5) ** 2 for p in people) / 6))
    assert found.text(2) == "0.50 ± 0.00 ± 0.12"


def test_one_seed_or_person_has_no_error_and_nothing_measured_is_no_number() -> None:
    alone = figure([[run(0.2)]], mean_of("f1"))
    assert (alone.seed_error, alone.person_error) == (None, None)
    assert alone.text(1) == "0.2 ± - ± -"
    nothing = figure([[run(), run()]], mean_delay)
    assert nothing.text(1) == "-"
    for wrong in ([], [[]], [[run()], [run(), run()]]):
        with pytest.raises(ShapeError, match="as many runs"):
            figure(wrong, mean_delay)


def test_a_step_that_is_never_told_costs_the_cap() -> None:
    runs = [run(delays={0: 10, 1: 500}), run(delays={2: 30})]
    assert mean_delay(runs) == 180.0
    assert median_delay(runs) == 30.0
    assert capped_delay(300)(runs) == (10 + 300 + 30 + 5 * 300) / 8


def test_delays_are_compared_over_all_and_over_the_steps_that_both_told() -> None:
    own, branch = run(delays={0: 10, 1: 90}), run(delays={0: 20, 2: 30})
    assert delay_change([(own, branch)]) == pytest.approx(100.0)  # 50 against 25
    assert delay_change_in_common([(own, branch)]) == pytest.approx(-50.0)  # 10 against 20
    assert earlier_share([(own, branch)]) == 0.5  # step 0 earlier, 1 alone, of 4
    assert math.isnan(delay_change([(own, run(delays={0: 0}))]))
    assert math.isnan(delay_change_in_common([(own, run(delays={3: 5}))]))


def test_a_method_without_seeds_stands_beside_every_seed() -> None:
    one, two, other = run(0.1), run(0.2), run(0.3)
    assert paired([[one], [two]], [[other]]) == [[(one, other)], [(two, other)]]
    with pytest.raises(ShapeError, match="1 or 3 seeds"):
        paired([[one], [two]], [[other]] * 3)
    with pytest.raises(ShapeError, match="same people"):
        paired([[one, two]], [[other]])


def test_the_occlusion_report_compares_with_branch_1() -> None:
    tables = {
        "b3": [[run(0.5, {0: 20, 1: 40}), run(0.7, {0: 40})]],
        "shared": [[run(0.6, {0: 10, 1: 20}), run(0.8, {0: 20})]] * 2,
    }
    titles = {"b3": "branch 1", "shared": "fusion"}
    rows = [
        row
        for rate in (0.6, 0.0)
        for row in occlusion_report.occlusion_rows(
            rate, tables, titles, reference="b3", rate_hz=10.0
        )
    ]
    report = occlusion_report.OcclusionReport(rows=tuple(rows), settings={"seeds": 2})
    assert report.rates == [0.0, 0.6]
    fusion = report.row(0.6, "shared").figures
    assert fusion["delay_change_in_common"].mean == pytest.approx(-50.0)
    assert fusion["mean_delay_s"].mean == pytest.approx(50 / 3 / 10)
    assert "delay_change" not in report.row(0.0, "b3").figures
    text = occlusion_report.as_markdown(report, "Title")
    assert "| F1 | 0 % hidden | 60 % hidden |" in text
    assert "| fusion | 0.700 ± 0.000 ± 0.100 | 0.700 ± 0.000 ± 0.100 |" in text
    assert "| fusion | -50.0 ± 0.0 ± 0.0 |" in text
    document = occlusion_report.as_document(report)
    assert document["rows"][0]["f1"]["seed_error"] is None  # branch 1 has one training
    assert document["published_delay_changes_percent"]["IndustReal"] == -26.1


def test_baselines_are_told_apart_beyond_two_standard_errors() -> None:
    tables = {
        "standard": [[run(0.60), run(0.62)], [run(0.62), run(0.64)]],
        "far": [[run(0.30), run(0.34)], [run(0.30), run(0.34)]],
        "near": [[run(0.70), run(0.52)], [run(0.60), run(0.74)]],
    }
    rows = baselines_report.baseline_rows(tables, 10.0)
    assert [row.name for row in rows] == ["standard", "far", "near"]
    assert [row.verdict("f1") for row in rows[1:]] == ["worse", "open"]
    text = baselines_report.as_markdown(rows, "Title")
    assert "-0.300 ± 0.010 ± 0.010: worse" in text
    (_, far, _) = baselines_report.as_document(rows, {})["rows"]
    assert far["differences"]["f1"]["verdict"] == "worse"
