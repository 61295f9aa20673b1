import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystep_capture.errors import ConfigError, DataError
from keystep_models.measures.edit_distance import damerau_levenshtein
from keystep_models.measures.psr import (
    GroundTruthStep,
    PublishedScore,
    ReportedStep,
    procedure_order_similarity,
    score_industreal,
    score_plain,
    score_storm,
    summarise_plain,
    summarise_published,
)

GOLDEN = Path(__file__).parents[1] / "golden"
SIMULATED = json.loads((GOLDEN / "psr" / "recordings.json").read_text(encoding="utf-8"))
REAL = json.loads((GOLDEN / "industreal" / "expected.json").read_text(encoding="utf-8"))
METHODS = ("b1", "b2", "b3")
reports = st.lists(st.builds(ReportedStep, st.integers(0, 60), st.integers(0, 2)), max_size=6)
truths = st.lists(st.builds(GroundTruthStep, st.integers(1, 60), st.integers(0, 2)), max_size=5)


def published(score: PublishedScore) -> dict[str, float]:
    return {
        "perception_FPs": score.perception_fp_count,
        "perception_FNs": score.perception_fn_count,
        "system_FNs": score.system_fn_count,
        "system_FPs": score.system_fp_count,
        "system_TPs": score.system_tp_count,
        "f1": score.f1,
        "pos": score.pos,
        "avg_delay": score.mean_delay_frames,
    }


def real_steps(name: str, method: str) -> tuple[list[GroundTruthStep], list[ReportedStep]]:
    truth = [
        GroundTruthStep(step["frame"], step["id"], step["not_before"])
        for step in REAL[name]["ground_truth_from_states"]
    ]
    steps = REAL[name]["expected"][method]["steps"]
    return truth, [ReportedStep(step["frame"], step["id"]) for step in steps]


@pytest.mark.parametrize("method", [*METHODS, "temporal_b3", "storm"])
@pytest.mark.parametrize("number", range(6))
def test_simulated_recordings_measure_as_published(number: int, method: str) -> None:
    recording = SIMULATED[number]
    truth = [GroundTruthStep(*step) for step in recording["ground_truth"]]
    steps = [
        ReportedStep(frame, step_id) for frame, step_id, _ in recording["expected"][method]["steps"]
    ]
    window = recording["window_frames"]
    if method in METHODS:
        score = score_industreal(truth, steps)
    else:
        score = score_storm(truth, steps, window_frames=window)
    assert published(score) == pytest.approx(recording["expected"][method]["metrics"], abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", REAL)
def test_real_recordings_measure_as_published(name: str, method: str) -> None:
    score = published(score_industreal(*real_steps(name, method)))
    assert score == pytest.approx(REAL[name]["expected"][method]["metrics"], abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", REAL)
def test_real_recordings_measure_as_expected_in_the_plain_manner(name: str, method: str) -> None:
    score = score_plain(*real_steps(name, method))
    expected = dict(REAL[name]["expected"][method]["plain"])
    assert sorted(score.delays_frames) == sorted(expected.pop("delays"))
    for measure, value in expected.items():
        assert getattr(score, measure) == pytest.approx(value, abs=1e-12)


def best_pairing(truth: list[GroundTruthStep], steps: list[ReportedStep]) -> tuple[int, float]:
    """Pairs and total delay of the best pairing, by trying every one."""
    slots = [*range(len(steps)), *[None] * len(truth)]
    best = (0, 0.0)
    for chosen in itertools.permutations(slots, len(truth)):
        pairs = [(t, steps[idx]) for t, idx in zip(truth, chosen, strict=True) if idx is not None]
        if all(s.step_id == t.step_id and s.frame_idx > t.last_old_frame_idx for t, s in pairs):
            delay = sum(max(0, s.frame_idx - t.frame_idx) for t, s in pairs)
            best = min(best, (-len(pairs), delay))
    return -best[0], best[1]


@given(
    truth=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 1)), max_size=3),
    gap=st.integers(1, 6),
    steps=reports.map(lambda steps: steps[:3]),
)
@settings(max_examples=150)
def test_plain_pairs_are_as_many_and_as_early_as_any_pairing_allows(
    truth: list[tuple[int, int]], gap: int, steps: list[ReportedStep]
) -> None:
    true_steps = [GroundTruthStep(frame, step_id, frame - gap) for frame, step_id in truth]
    delays = score_plain(true_steps, steps).delays_frames
    assert (len(delays), sum(delays)) == best_pairing(true_steps, steps)


@given(truth=truths, steps=reports)
def test_every_score_lies_in_its_range(
    truth: list[GroundTruthStep], steps: list[ReportedStep]
) -> None:
    plain = score_plain(truth, steps)
    for value in (plain.f1, plain.pos, plain.precision, plain.recall):
        assert 0.0 <= value <= 1.0
    for score in (score_industreal(truth, steps), score_storm(truth, steps)):
        assert 0.0 <= score.f1 <= 1.0
        assert 0.0 <= score.pos <= 1.0
        assert score.system_tp_count + score.system_fp_count == len(steps)


@given(truth=truths.filter(bool))
def test_reporting_the_truth_is_perfect_in_the_plain_manner(truth: list[GroundTruthStep]) -> None:
    ordered = sorted(truth, key=lambda step: step.frame_idx)
    score = score_plain(ordered, ordered)
    assert (score.f1, score.precision, score.recall) == (1.0, 1.0, 1.0)
    assert score.delays_frames == (0.0,) * len(truth)


def test_simultaneous_truth_takes_the_reported_order() -> None:
    truth = [GroundTruthStep(5, 0), GroundTruthStep(5, 1), GroundTruthStep(9, 2)]
    steps = [ReportedStep(6, 1), ReportedStep(7, 0), ReportedStep(9, 2)]
    assert score_plain(truth, steps).pos == 1.0
    assert score_industreal(truth, steps).pos == pytest.approx(2 / 3)


def test_a_prediction_before_the_new_state_was_possible_is_late_for_nothing() -> None:
    truth = [GroundTruthStep(50, 3, 20)]
    assert score_plain(truth, [ReportedStep(20, 3)]).f1 == 0.0
    assert score_plain(truth, [ReportedStep(21, 3)]).delays_frames == (0.0,)
    assert score_plain(truth, [ReportedStep(54, 3)]).delays_frames == (4.0,)


def test_nothing_true_and_nothing_reported() -> None:
    assert score_plain([], []).f1 == 1.0
    assert score_plain([], [ReportedStep(1, 1)]).pos == 0.0
    assert score_industreal([GroundTruthStep(1, 1)], []).mean_delay_frames == 100.0
    assert score_storm([GroundTruthStep(1, 1)], []).mean_delay_frames == 0.0


def test_a_limit_at_or_after_the_step_is_refused() -> None:
    with pytest.raises(DataError, match="not_before_idx below frame_idx"):
        score_plain([GroundTruthStep(5, 1, 5)], [])


def test_summaries_average_recordings_and_pool_delays() -> None:
    truth = [GroundTruthStep(10, 1), GroundTruthStep(20, 2)]
    late, half = [ReportedStep(11, 1), ReportedStep(27, 2)], [ReportedStep(12, 1)]
    plain = summarise_plain([score_plain(truth, late), score_plain(truth, half)])
    assert (plain.recording_count, plain.recall, plain.precision) == (2, 0.75, 1.0)
    assert (plain.median_delay_frames, plain.mean_delay_frames) == (2.0, pytest.approx(10 / 3))
    industreal = summarise_published([score_industreal(truth, late), score_industreal(truth, half)])
    assert industreal.mean_delay_frames == 3.0
    assert math.isnan(summarise_plain([score_plain(truth, [])]).median_delay_frames)
    for summarise in (summarise_plain, summarise_published):
        with pytest.raises(ConfigError, match="at least one recording"):
            summarise([])


def plain_distance(source: tuple[int, ...], target: tuple[int, ...]) -> int:
    """Cheapest path over single edits, searched without any table: slow and obvious."""
    alphabet = sorted({*source, *target})
    costs, frontier = {source: 0}, [source]
    while frontier:
        here = min(frontier, key=costs.__getitem__)
        frontier.remove(here)
        if here == target:
            return costs[here]
        for there, price in edits(here, alphabet, len(source) + len(target)):
            if costs[here] + price < costs.get(there, 99):
                costs[there] = costs[here] + price
                frontier.append(there)
    raise AssertionError


def edits(word: tuple[int, ...], alphabet: list[int], longest: int) -> list[Any]:
    cuts = range(len(word) + 1)
    deleted = [(word[:k] + word[k + 1 :], 1) for k in cuts[:-1]]
    swapped = [(word[:k] + word[k : k + 2][::-1] + word[k + 2 :], 1) for k in cuts[:-2]]
    inserted = [((*word[:k], x, *word[k:]), 1) for k in cuts for x in alphabet]
    return deleted + swapped + (inserted if len(word) < longest else [])


words = st.lists(st.integers(0, 2), max_size=3).map(tuple)


@given(source=words, target=words)
@settings(max_examples=60)
def test_the_distance_is_the_cheapest_chain_of_edits(
    source: tuple[int, ...], target: tuple[int, ...]
) -> None:
    assert damerau_levenshtein(source, target) == plain_distance(source, target)


def test_distant_elements_swap_with_an_insertion_between() -> None:
    assert damerau_levenshtein([1, 2], [2, 3, 1]) == 2
    assert procedure_order_similarity([1, 2], [2, 3, 1]) == 0.0
    assert procedure_order_similarity([1, 2, 3, 4], [2, 1, 3, 4]) == 0.75
