import json

import pytest

from keystep_capture.errors import ConfigError
from keystep_models.psr.clips import ClipPrediction
from keystep_models.psr.logic import Detection, StepCompletion
from keystep_models.psr.methods import (
    METHODS,
    MethodOptions,
    Recogniser,
    find_method,
    run_method,
)
from keystep_models.psr.procedure import builtin_procedure

ASSEMBLY = builtin_procedure("industreal-assy")
SEEN = [[Detection(1, 0.9)]] * 3 + [[Detection(13, 1.0)]] * 20
CLIPS = [None] * 3 + [ClipPrediction.of([0.0] + [0.9] * 10)] * 20


@pytest.mark.parametrize("name", METHODS)
def test_every_method_completes_steps_and_goes_on_from_a_snapshot(name: str) -> None:
    method, options = METHODS[name], MethodOptions(threshold=2.0)
    whole = run_method(method.make(ASSEMBLY, options), SEEN, CLIPS)
    assert whole.steps
    first, second = method.make(ASSEMBLY, options), method.make(ASSEMBLY, options)
    steps = [done for k in range(4) for done in first.step(k, SEEN[k], CLIPS[k])]
    second.restore(json.loads(json.dumps(first.snapshot())))
    steps += [done for k in range(4, 23) for done in second.step(k, SEEN[k], CLIPS[k])]
    assert steps == whole.steps


def test_methods_have_thresholds_of_their_own() -> None:
    def first_frame(name: str, fusion: str = "shared") -> int:
        options = MethodOptions(fusion=fusion)  # type: ignore[arg-type]
        run = run_method(METHODS[name].make(ASSEMBLY, options), SEEN, CLIPS)
        return run.steps[0].frame_idx

    assert first_frame("b3") == 3 + 8  # the ninth 1.0 exceeds 8
    assert first_frame("temporal") == 3 + 6  # the seventh 0.9 exceeds 6
    assert first_frame("storm") == 3 + 3  # 1.9 a frame towards 6
    assert first_frame("storm", "soft") == 3 + 6  # 0.95 a frame towards 6


def test_retracted_steps_leave_the_list() -> None:
    early = StepCompletion(0, 3, 0.6, 1, "completed")
    late = StepCompletion(2, 6, 0.9, 2, "completed")
    by_frame = {0: [early], 2: [late]}
    now = [0]

    def step(frame_idx: int, *_: object) -> list[StepCompletion]:
        now[0] = frame_idx
        return by_frame.get(frame_idx, [])

    recogniser = Recogniser(
        step=step,
        snapshot=dict,
        restore=lambda _: None,
        retracted=lambda: [early] if now[0] == 1 else [],
    )
    run = run_method(recogniser, [[]] * 3, [None] * 3)
    assert (run.steps, run.retracted) == ([late], [early])


def test_unknown_methods_are_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="no method 'b4'; there are b1, b2, b3, temporal, storm"):
        find_method("b4")
