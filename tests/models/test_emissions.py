"""Prototypes: what looks like the expert's step is likeliest, what is missing says nothing."""

from __future__ import annotations

import numpy as np
import pytest

from keystep_capture.errors import ConfigError, DataError, ShapeError
from keystep_models.guidance.emissions import (
    EmissionModel,
    EmissionSettings,
    PartRows,
    tick_classes,
)
from keystep_models.guidance.step_timing import ExpertSegment, StepTiming

SEGMENTS = [
    ExpertSegment(step_id=1, start_tick=20, end_tick=59),
    ExpertSegment(step_id=2, start_tick=80, end_tick=119),
]


def rows(seed: int, size: int = 20, spread: float = 1.0) -> PartRows:
    """140 ticks in which the class decides the mean, the seed the noise."""
    labels = tick_classes(SEGMENTS, StepTiming.of_segments(SEGMENTS), 140)
    means = np.random.default_rng(99).normal(size=(5, size)) * 3
    noise = np.random.default_rng(seed).normal(size=(140, size)) * spread
    return PartRows(rows=(means[labels] + noise).astype(np.float32), valid=np.ones(140, np.bool_))


def test_classes_are_steps_and_the_gaps_between_them() -> None:
    labels = tick_classes(SEGMENTS, StepTiming.of_segments(SEGMENTS), 140)
    assert labels[[0, 20, 59, 60, 80, 120]].tolist() == [2, 0, 0, 3, 1, 4]


def test_another_wearer_is_recognised() -> None:
    model = EmissionModel.fit({"a": rows(0)}, SEGMENTS)
    other, labels = rows(1), tick_classes(SEGMENTS, StepTiming.of_segments(SEGMENTS), 140)
    best = []
    for row in other.rows:
        evidence = model.evidence({"a": row})
        assert evidence is not None
        best.append(int(evidence.log_likelihoods.argmax()))
    assert np.mean(np.array(best) == labels) > 0.95


def test_discriminants_ignore_what_varies_within_a_step() -> None:
    """A direction of loud noise hides the steps from plain distances, not from discriminants."""
    labels = tick_classes(SEGMENTS, StepTiming.of_segments(SEGMENTS), 140)

    def noisy(seed: int) -> PartRows:
        made = rows(seed, spread=0.3)
        loud = np.random.default_rng(seed + 50).normal(size=140) * 60
        made.rows[:, 0] += loud.astype(np.float32)
        return made

    right = {}
    for shrinkage in (0.01, 1.0):
        settings = EmissionSettings(shrinkage=shrinkage)
        model = EmissionModel.fit({"a": noisy(0)}, SEGMENTS, settings)
        found = [model.evidence({"a": row}) for row in noisy(1).rows]
        best = [int(e.log_likelihoods.argmax()) for e in found if e is not None]
        right[shrinkage] = float(np.mean(np.array(best) == labels))
    assert right[0.01] > right[1.0] + 0.2


def test_what_the_expert_never_showed_is_strange() -> None:
    model = EmissionModel.fit({"a": rows(0)}, SEGMENTS)
    usual, unusual = model.evidence({"a": rows(2).rows[30]}), model.evidence({"a": np.full(20, 90)})
    assert usual is not None
    assert unusual is not None
    assert not usual.is_strange
    assert unusual.is_strange


def test_a_missing_part_says_nothing_and_others_go_on() -> None:
    model = EmissionModel.fit({"a": rows(0), "b": rows(3, 8)}, SEGMENTS)
    alone = EmissionModel.fit({"a": rows(0)}, SEGMENTS)
    row = rows(4).rows[25]
    with_none, only_a = model.evidence({"a": row, "b": None}), alone.evidence({"a": row})
    assert with_none is not None
    assert only_a is not None
    np.testing.assert_array_equal(with_none.log_likelihoods, only_a.log_likelihoods)
    assert model.evidence({}) is None


def test_a_part_that_some_step_lacks_is_left_out() -> None:
    partial = rows(1)
    partial.valid[80:120] = False
    assert list(EmissionModel.fit({"a": rows(0), "b": partial}, SEGMENTS).parts) == ["a"]
    with pytest.raises(DataError, match="in every step"):
        EmissionModel.fit({"b": partial}, SEGMENTS)


def test_steps_without_any_gap_can_still_end() -> None:
    segments = [
        ExpertSegment(step_id=1, start_tick=0, end_tick=69),
        ExpertSegment(step_id=2, start_tick=70, end_tick=139),
    ]
    evidence = EmissionModel.fit({"a": rows(0)}, segments).evidence({"a": rows(0).rows[3]})
    assert evidence is not None
    assert np.isfinite(evidence.log_likelihoods).all()


def test_values_that_do_not_fit_are_refused() -> None:
    model = EmissionModel.fit({"a": rows(0)}, SEGMENTS)
    with pytest.raises(ShapeError):
        model.evidence({"a": np.zeros(3)})
    with pytest.raises(ShapeError):
        model.evidence({"a": np.full(20, np.nan)})


def test_settings_travel_through_json_and_unknown_ones_are_refused() -> None:
    settings = EmissionSettings(part_strengths={"a": 0.5})
    assert EmissionSettings.from_document(settings.as_document()) == settings
    with pytest.raises(ConfigError):
        EmissionSettings.from_document({**settings.as_document(), "x": 1})


def test_a_part_may_have_a_shrinkage_of_its_own() -> None:
    parts = {"a": rows(0), "b": rows(0)}
    settings = EmissionSettings(shrinkage=0.5, part_shrinkages={"b": 1.0})
    own = EmissionModel.fit(parts, SEGMENTS, settings)
    plain = EmissionModel.fit(parts, SEGMENTS, EmissionSettings(shrinkage=1.0))
    np.testing.assert_array_equal(own.parts["b"].projection, plain.parts["b"].projection)
    assert not np.allclose(own.parts["a"].projection, plain.parts["a"].projection)
    with pytest.raises(ConfigError):
        EmissionSettings(part_shrinkages={"b": 0.0})


def test_settings_of_older_bundles_have_one_shrinkage_and_stay_as_they_were() -> None:
    older = EmissionSettings().as_document()
    del older["part_shrinkages"]
    read = EmissionSettings.from_document(older)
    assert read.part_shrinkages == {}
    assert read.as_document() == older
