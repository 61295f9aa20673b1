"""Parts that speak only while another is missing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep_capture.errors import ConfigError, DataError
from keystep_models.guidance.emissions import EmissionModel, EmissionSettings, PartRows
from keystep_models.guidance.filter_settings import FilterSettings
from keystep_models.guidance.stand_ins import StandIns
from keystep_models.guidance.step_timing import ExpertSegment

SETTINGS = EmissionSettings(stand_ins={"whole": "gaze"})
FILTERING = FilterSettings(blind_s=1.0)  # at 10 Hz five ticks of silence
ROW = np.ones(4, np.float32)


def model(*parts: str) -> EmissionModel:
    rows = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    segments = [
        ExpertSegment(step_id=1, start_tick=2, end_tick=15),
        ExpertSegment(step_id=2, start_tick=20, end_tick=35),
    ]
    there = PartRows(rows=rows, valid=np.ones(40, np.bool_))
    return EmissionModel.fit(dict.fromkeys(parts, there), segments, SETTINGS)


def spoken(stand_ins: StandIns, gaze: list[bool]) -> list[str]:
    found = []
    for there in gaze:
        parts = stand_ins.speaking({"gaze": ROW if there else None, "whole": ROW})
        found.append("".join(name[0] for name, part in parts.items() if part is not None))
    return found


def test_it_speaks_after_half_the_time_that_makes_blind_and_no_longer_than_needed() -> None:
    stand_ins = StandIns(model("gaze", "whole"), SETTINGS, FILTERING)
    gaze = [True, *[False] * 6, True, False]
    assert spoken(stand_ins, gaze) == ["g", "", "", "", "", "w", "w", "g", ""]


def test_ticks_that_were_left_out_count() -> None:
    stand_ins = StandIns(model("gaze", "whole"), SETTINGS, FILTERING)
    assert stand_ins.speaking({"gaze": None, "whole": ROW}, elapsed=7)["whole"] is ROW


def test_where_the_other_has_no_prototypes_it_always_speaks() -> None:
    stand_ins = StandIns(model("whole"), SETTINGS, FILTERING)
    assert spoken(stand_ins, [True, False]) == ["gw", "w"]


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 30))
def test_a_session_goes_on_from_its_snapshot(gaze: list[bool], cut: int) -> None:
    whole = StandIns(model("gaze", "whole"), SETTINGS, FILTERING)
    first = StandIns(model("gaze", "whole"), SETTINGS, FILTERING)
    second = StandIns(model("gaze", "whole"), SETTINGS, FILTERING)
    before = spoken(first, gaze[:cut])
    second.restore(first.snapshot())
    assert before + spoken(second, gaze[cut:]) == spoken(whole, gaze)


@pytest.mark.parametrize("snapshot", [[], [1, 2], ["x"], [True]])
def test_what_is_no_snapshot_is_refused(snapshot: list[int]) -> None:
    with pytest.raises(DataError, match="expected 1 counts"):
        StandIns(model("gaze", "whole"), SETTINGS, FILTERING).restore(snapshot)


def test_settings_are_kept_and_a_chain_is_refused() -> None:
    assert EmissionSettings.from_document(SETTINGS.as_document()) == SETTINGS
    assert "stand_ins" not in EmissionSettings().as_document()
    with pytest.raises(ConfigError, match="stood in for"):
        EmissionSettings(stand_ins={"a": "b", "b": "c"})
