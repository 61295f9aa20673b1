import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystep_capture.errors import ConfigError
from keystep_capture.simulation.people import make_person
from keystep_capture.simulation.plan import draw_order, make_plan
from keystep_capture.simulation.seeding import generator
from keystep_capture.simulation.session import SessionSpec
from keystep_capture.simulation.tasks import TASKS, find_task

tasks = st.sampled_from(sorted(TASKS)).map(find_task)
seeds = st.integers(0, 10_000)


def test_tasks_have_8_to_17_components_with_look_alikes() -> None:
    for task in TASKS.values():
        assert 8 <= len(task.components) <= 17
        assert sum(c.look_alike is not None for c in task.components) >= 2


@given(task=tasks, seed=seeds, noise=st.floats(0, 5))
def test_every_order_keeps_what_must_come_first(task, seed, noise) -> None:
    order = draw_order(task, noise, generator(seed, "order"))
    assert sorted(order) == list(range(len(task.components)))
    for idx, component in enumerate(task.components):
        assert all(order.index(before) < order.index(idx) for before in component.after)


@settings(max_examples=40, deadline=None)
@given(task=tasks, seed=seeds, who=st.integers(0, 30), scale=st.floats(0, 5))
def test_a_plan_moves_one_part_at_a_time_and_only_where_it_fits(task, seed, who, scale) -> None:
    plan = make_plan(task, make_person(seed, who), seed, mistake_scale=scale)
    place: dict[int, int] = {}
    ended_s = 0.0
    for action in plan.actions:
        assert ended_s <= action.start_s <= action.reach_s < action.grasp_s < action.lift_s
        assert action.lift_s < action.arrive_s
        assert action.complete_s <= action.end_s
        ended_s = action.end_s
        if action.kind == "remove":
            assert place.pop(action.component) == action.part
            continue
        assert action.component not in place
        assert action.part not in place.values()
        right = {c for c, part in place.items() if c == part}
        assert set(task.components[action.component].after) <= right
        place[action.component] = action.part
    assert ended_s < plan.duration_s


def test_the_expert_makes_no_mistakes_in_the_usual_order() -> None:
    for seed in range(5):
        plan = make_plan(find_task("cart"), make_person(seed, 0), seed)
        assert [action.component for action in plan.actions] == list(range(13))
        assert {action.kind for action in plan.actions} == {"install"}


def test_mistakes_grow_with_their_scale_and_vanish_at_zero() -> None:
    counts = []
    for scale in (0.0, 1.0, 4.0):
        plans = [
            make_plan(find_task("gearbox"), make_person(3, who), 3, mistake_scale=scale)
            for who in range(1, 31)
        ]
        counts.append(sum(a.kind == "misinstall" for plan in plans for a in plan.actions))
    assert counts[0] == 0 < counts[1] < counts[2]


def test_sessions_last_some_minutes_and_people_differ() -> None:
    lengths = [make_plan(find_task("cart"), make_person(1, who), 1).duration_s for who in range(40)]
    assert 100 < np.median(lengths) < 260
    assert np.std(lengths) > 20


@pytest.mark.parametrize(
    "wrong",
    [{"task": "bicycle"}, {"profile": "huge"}, {"occlusion_rate": 1.5}, {"mistake_scale": -1.0}],
)
def test_settings_out_of_range_are_named(wrong) -> None:
    with pytest.raises(ConfigError, match=r"known|expected"):
        SessionSpec(**({"task": "cart", "seed": 1, "person": 0} | wrong))
