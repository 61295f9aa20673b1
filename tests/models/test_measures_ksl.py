"""Key-step localisation against published values, and what must hold for any input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep_capture.errors import DataError
from keystep_models.measures.ksl import localize

CASES = json.loads((Path(__file__).parents[1] / "golden" / "steps" / "ksl.json").read_text())


@pytest.mark.parametrize("measure", list(CASES[0]["expected"]))
@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_measures_are_the_published_ones(case: dict[str, Any], measure: str) -> None:
    found = localize(
        case["labels"],
        case["clusters"],
        case["num_keysteps"],
        case["num_clusters"],
        per_keystep=measure.startswith("per_keystep"),
        background=not measure.endswith("no_background"),
    )
    values = {name: getattr(found, name) for name in ("recall", "precision", "iou", "f1")}
    assert values == pytest.approx(case["expected"][measure], abs=1e-6)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.permutations(range(6)))
def test_renamed_labels_are_a_perfect_match(labels: list[int], names: list[int]) -> None:
    clusters = np.asarray(names)[labels]
    for per_keystep in (True, False):
        found = localize(labels, clusters, 5, 6, per_keystep=per_keystep)
        assert found.f1 == found.iou == 1.0


@pytest.mark.parametrize(
    ("labels", "clusters", "message"),
    [
        ([0, 1], [0], "2 labels but 1 clusters"),
        ([], [], "expected whole numbers"),
        ([0, 3], [0, 1], "expected 0 to 2"),
        ([0, 1], [0, -1], "expected 0 to 1"),
        ([0.5, 1.0], [0, 1], "expected whole numbers"),
    ],
)
def test_bad_input_is_refused(labels: Any, clusters: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        localize(labels, clusters, 2, 2)
