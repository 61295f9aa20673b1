import numpy as np
import pytest

from keystep_capture.simulation.geometry import quaternions, rotation_vectors, rotations_of
from keystep_capture.simulation.hands import JOINTS, pose_hand
from keystep_capture.simulation.layout import make_layout
from keystep_capture.simulation.looking import look
from keystep_capture.simulation.motion import RATE_HZ, choreograph, place_of
from keystep_capture.simulation.people import make_person
from keystep_capture.simulation.plan import make_plan
from keystep_capture.simulation.tasks import TASKS, find_task


def staged(task_name: str, seed: int, who: int, occlusion_rate: float = 0.5):
    task, person = find_task(task_name), make_person(seed, who)
    plan = make_plan(task, person, seed, mistake_scale=2.0)
    layout = make_layout(task, seed, person.name)
    movement = choreograph(task, plan, person, layout, seed, occlusion_rate=occlusion_rate)
    return task, plan, person, layout, movement


def test_rotations_survive_their_vectors_and_quaternions() -> None:
    vectors = np.random.default_rng(0).uniform(-1.7, 1.7, (200, 3))
    np.testing.assert_allclose(rotation_vectors(rotations_of(vectors)), vectors, atol=1e-9)
    lengths = np.linalg.norm(quaternions(rotations_of(vectors)), axis=1)
    np.testing.assert_allclose(lengths, 1.0)


def test_hands_have_the_joints_of_hololens_in_its_order() -> None:
    assert len(JOINTS) == 26
    assert JOINTS[:3] == ("Palm", "Wrist", "ThumbMetacarpal")
    assert JOINTS[6] == "IndexMetacarpal"
    assert JOINTS[10] == "IndexTip"
    assert JOINTS[25] == "LittleTip"


def test_bones_keep_their_length_and_the_left_hand_mirrors_the_right() -> None:
    grip = np.linspace(0, 1, 20)
    turn = np.repeat(np.eye(3)[None], 20, axis=0)
    right = pose_hand(np.zeros((20, 3)), turn, grip, left=False, scale=1.0)
    left = pose_hand(np.zeros((20, 3)), turn, grip, left=True, scale=1.0)
    for a, b in ((2, 3), (4, 5), (7, 8), (9, 10), (22, 23), (24, 25)):
        lengths = np.linalg.norm(right.joints[:, a] - right.joints[:, b], axis=1)
        assert np.ptp(lengths) < 1e-9
    np.testing.assert_allclose(left.joints * (-1, 1, 1), right.joints, atol=1e-12)
    # Palm down along y: the thumb of a right hand is on its left.
    assert right.joints[0, 5, 0] < right.joints[0, 1, 0]


@pytest.mark.parametrize("task_name", sorted(TASKS))
def test_nothing_pops_and_what_moves_is_held(task_name: str) -> None:
    _, _, _person, _, movement = staged(task_name, 5, 2)
    steps = np.linalg.norm(np.diff(movement.things[:, :, :3, 3], axis=1), axis=-1)
    assert steps.max() * RATE_HZ < 2.5  # m/s
    pinches = [(hand.joints[:, 5] + hand.joints[:, 10]) / 2 for hand in movement.hands]
    for thing, moved in zip(movement.things, steps, strict=True):
        moving = np.flatnonzero(moved * RATE_HZ > 0.35)  # more than the turntable or a wobble
        gaps = [np.linalg.norm(p[moving] - thing[moving, :3, 3], axis=1) for p in pinches]
        # A screwdriver is held by its handle, 10 cm from its origin.
        assert (np.minimum(*gaps) < 0.17).all()


def test_hands_move_no_faster_than_people_do() -> None:
    _, _, _, _, movement = staged("cart", 6, 3, occlusion_rate=1.0)
    for hand in movement.hands:
        speed = np.linalg.norm(np.diff(hand.joints[:, 1], axis=0), axis=1) * RATE_HZ
        assert np.percentile(speed, 99) < 1.5
        assert speed.max() < 4.0


def test_parts_lie_on_the_bench_or_sit_in_their_place() -> None:
    task, plan, _, layout, movement = staged("gearbox", 7, 1)
    for thing in (*layout.parts, *layout.decoys):
        lowest = (thing.corners.points @ thing.rest[:3, :3].T + thing.rest[:3, 3])[:, 1].min()
        assert lowest == pytest.approx(0.006, abs=1e-4) or lowest == pytest.approx(0.0, abs=1e-4)
    for action in plan.actions:
        sample = round(action.complete_s * RATE_HZ) + 1
        if action.kind != "remove":
            placed = movement.assembly[sample] @ place_of(task, action)
            np.testing.assert_allclose(movement.things[action.part, sample], placed, atol=2e-3)


def test_the_occlusion_rate_changes_the_hands_only() -> None:
    moved = [staged("cart", 8, 1, rate) for rate in (0.0, 0.4, 1.0)]
    hidden = [set(np.flatnonzero(m[4].occluded)) for m in moved]
    assert hidden[0] == set()
    assert hidden[0] < hidden[1] < hidden[2]
    for other in moved[1:]:
        np.testing.assert_array_equal(moved[0][4].things, other[4].things)
    looks = [look(m[1], m[2], m[3], m[4], 8) for m in moved]
    np.testing.assert_array_equal(looks[0].world_from_head, looks[2].world_from_head)


def test_the_eyes_reach_a_part_before_the_hand() -> None:
    _, plan, person, layout, movement = staged("cart", 9, 0)
    looking = look(plan, person, layout, movement, 9)
    for action in plan.actions:
        sample = round((action.reach_s - 0.2) * RATE_HZ)
        part = movement.things[action.part, sample, :3, 3]
        np.testing.assert_allclose(looking.target_m[sample], part, atol=1e-6)
        hand = movement.hands[action.hand].joints[sample, 10]
        assert np.linalg.norm(hand - part) > 0.03
