"""Ticks from streams of every temper; no clock is read anywhere."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep_capture.align import Tick, TickAligner
from keystep_capture.errors import ConfigError
from keystep_capture.streams import STREAMS

MS, S = 1_000_000, 1_000_000_000
Arrival = tuple[str, int]


def times(rate_hz: float, *, start_ns: int = 0, stop_ns: int = 3 * S) -> list[int]:
    """Device times of a steady stream."""
    period_ns = round(S / rate_hz)
    return list(range(start_ns, stop_ns, period_ns))


def in_time_order(**streams: Iterable[int]) -> list[Arrival]:
    return sorted(
        ((name, at_ns) for name, stamps in streams.items() for at_ns in stamps),
        key=lambda arrival: arrival[1],
    )


def aligner(*others: str, rate_hz: float = 10.0) -> TickAligner:
    return TickAligner(leading="rgb", others=others, rate_hz=rate_hz)


def feed(ticks: TickAligner, arrivals: Iterable[Arrival], *, flush: bool = True) -> list[Tick]:
    """Push arrivals whose values are their own times."""
    made = [tick for name, at_ns in arrivals for tick in ticks.push(name, at_ns, at_ns)]
    return made + (ticks.flush() if flush else [])


def shown(tick: Tick) -> dict[str, int | None]:
    return {
        name: None if sample is None else sample.device_time_ns
        for name, sample in tick.samples.items()
    }


# -- the grid ----------------------------------------------------------------------------------


def test_thirty_frames_a_second_make_ten_ticks() -> None:
    made = feed(aligner(), in_time_order(rgb=times(30)))
    assert [tick.index for tick in made] == list(range(30))
    assert all(0 <= tick.device_time_ns - tick.index * S // 10 < S / 30 for tick in made)


@given(jitter=st.lists(st.integers(-5 * MS, 5 * MS), min_size=300, max_size=300))
def test_jitter_does_not_change_the_rate_of_ticks(jitter: list[int]) -> None:
    frames = [S + round(k * S / 30) + shift for k, shift in enumerate(jitter)]
    made = feed(aligner(), in_time_order(rgb=frames))
    assert 99 <= len(made) <= 101
    gaps = [b.device_time_ns - a.device_time_ns for a, b in itertools.pairwise(made)]
    assert all(50 * MS <= gap <= 150 * MS for gap in gaps)


def test_a_stream_slower_than_the_ticks_makes_a_tick_of_each_sample() -> None:
    made = feed(aligner(), in_time_order(rgb=times(4)))
    assert [tick.device_time_ns for tick in made] == times(4)


def test_a_gap_starts_the_grid_anew() -> None:
    late_ns = 7 * S + 43 * MS
    frames = times(30, stop_ns=S) + times(30, start_ns=late_ns, stop_ns=late_ns + S)
    made = feed(aligner(), in_time_order(rgb=frames))
    after = [tick.device_time_ns for tick in made if tick.device_time_ns >= late_ns]
    assert after[0] == late_ns
    assert len(after) == 10  # no burst of ticks to catch up
    assert [tick.index for tick in made] == list(range(20))


def test_it_says_which_leading_samples_are_worth_converting() -> None:
    ticks = aligner()
    wanted = []
    for at_ns in times(30, stop_ns=S):
        wanted.append(ticks.wants(at_ns))
        assert bool(ticks.push("rgb", at_ns, None)) == wanted[-1]
    assert sum(wanted) == 10


# -- waiting -----------------------------------------------------------------------------------


def test_a_tick_waits_for_streams_that_are_a_little_behind() -> None:
    ticks = aligner("gaze")
    assert feed(ticks, [("rgb", 0), ("rgb", 100 * MS)], flush=False) == []
    (first,) = ticks.push("gaze", 10 * MS, None)
    assert shown(first) == {"rgb": 0, "gaze": None}
    (second,) = feed(ticks, [("gaze", 90 * MS), ("gaze", 110 * MS)], flush=False)
    assert shown(second) == {"rgb": 100 * MS, "gaze": 90 * MS}


@pytest.mark.parametrize("name", [name for name in STREAMS if name != "rgb"])
def test_a_stream_that_never_comes_holds_ticks_up_to_its_lateness_only(name: str) -> None:
    ticks = aligner(name)
    limit_ns = STREAMS[name].lateness_s * S
    for at_ns in times(30):
        for tick in ticks.push("rgb", at_ns, None):
            assert limit_ns <= at_ns - tick.device_time_ns < limit_ns + S / 30
            assert tick.samples[name] is None
    waiting = ticks.flush()
    assert len(waiting) <= limit_ns / (S / 10) + 1


def test_a_stream_that_stalls_is_missing_once_its_value_is_too_old() -> None:
    arrivals = in_time_order(rgb=times(30), gaze=times(60, stop_ns=S), head=times(60))
    made = feed(aligner("gaze", "head"), arrivals)
    assert len(made) == 30
    hold_ns = STREAMS["gaze"].hold_s * S
    for tick in made:
        fresh = tick.device_time_ns <= times(60, stop_ns=S)[-1] + hold_ns
        assert (tick.samples["gaze"] is not None) == fresh
        assert tick.samples["head"] is not None


def test_a_slow_stream_is_missing_between_its_samples_and_stalls_nothing() -> None:
    made = feed(aligner("gaze"), in_time_order(rgb=times(30), gaze=times(1)))
    assert len(made) == 30
    seen = [tick.device_time_ns for tick in made if tick.samples["gaze"] is not None]
    assert seen
    assert all(at_ns % S <= STREAMS["gaze"].hold_s * S for at_ns in seen)


def test_flush_gives_out_what_still_waits_and_nothing_twice() -> None:
    ticks = aligner("gaze")
    assert feed(ticks, [("rgb", 0), ("rgb", 100 * MS), ("gaze", 95 * MS)], flush=False) != []
    (last,) = ticks.flush()
    assert shown(last) == {"rgb": 100 * MS, "gaze": 95 * MS}
    assert ticks.flush() == []


# -- late samples ------------------------------------------------------------------------------


def test_a_sample_older_than_its_streams_newest_is_counted_and_not_used() -> None:
    ticks = aligner("gaze")
    made = feed(ticks, [("gaze", 10 * MS), ("gaze", 30 * MS), ("gaze", 20 * MS), ("rgb", 25 * MS)])
    assert [shown(tick) for tick in made] == [{"rgb": 25 * MS, "gaze": 10 * MS}]
    assert ticks.late_counts == {"rgb": 0, "gaze": 1}


def test_a_late_leading_sample_makes_no_tick() -> None:
    ticks = aligner()
    assert len(feed(ticks, [("rgb", S), ("rgb", S // 2), ("rgb", 2 * S)])) == 2
    assert ticks.late_counts == {"rgb": 1}


def test_streams_that_ticks_do_not_hold_are_ignored_even_late() -> None:
    ticks = aligner("gaze")
    assert feed(ticks, [("hands", S), ("hands", 0), ("lidar", 5)]) == []
    assert ticks.late_counts == {"rgb": 0, "gaze": 0}


arrivals_of_any_kind = st.lists(
    st.tuples(st.sampled_from(["rgb", "gaze", "head", "hands"]), st.integers(0, 2 * S)),
    max_size=120,
)


@given(arrivals=arrivals_of_any_kind)
def test_no_order_of_arrival_puts_the_future_into_a_tick(arrivals: list[Arrival]) -> None:
    ticks = aligner("gaze", "head", "hands")
    made = feed(ticks, arrivals)
    assert [tick.index for tick in made] == list(range(len(made)))
    previous_ns = -1
    for tick in made:
        assert tick.device_time_ns > previous_ns
        previous_ns = tick.device_time_ns
        for name, sample in tick.samples.items():
            if sample is not None:
                age_ns = tick.device_time_ns - sample.device_time_ns
                assert 0 <= age_ns <= STREAMS[name].hold_s * S
                assert sample.value == sample.device_time_ns


@given(arrivals=arrivals_of_any_kind)
def test_every_late_sample_is_counted(arrivals: list[Arrival]) -> None:
    ticks = aligner("gaze", "head", "hands")
    newest: dict[str, int] = {}
    late = dict.fromkeys(("rgb", "gaze", "head", "hands"), 0)
    for name, at_ns in arrivals:
        late[name] += at_ns < newest.get(name, at_ns)
        newest[name] = max(at_ns, newest.get(name, at_ns))
    feed(ticks, arrivals)
    assert ticks.late_counts == late


@given(delays=st.fixed_dictionaries(dict.fromkeys(["gaze", "head"], st.integers(0, 149 * MS))))
def test_delays_below_the_lateness_change_no_tick(delays: dict[str, int]) -> None:
    streams = {"rgb": times(30, stop_ns=S), "gaze": times(60, stop_ns=S), "head": times(45)}
    punctual = feed(aligner("gaze", "head"), in_time_order(**streams))
    delayed = sorted(
        in_time_order(**streams), key=lambda arrival: arrival[1] + delays.get(arrival[0], 0)
    )
    made = feed(aligner("gaze", "head"), delayed)
    assert [shown(tick) for tick in made] == [shown(tick) for tick in punctual]


# -- memory and arguments ----------------------------------------------------------------------


class Value:
    """Something whose end a weak reference tells."""


def test_samples_are_kept_only_while_a_tick_may_need_them() -> None:
    ticks, alive = aligner("gaze", "head"), weakref.WeakSet[Value]()
    for at_ns in times(30, stop_ns=60 * S):
        for name in ("rgb", "gaze", "head"):
            value = Value()
            alive.add(value)
            ticks.push(name, at_ns, value)
    del value
    assert 0 < len(alive) < 20


def test_a_stalled_leader_costs_bounded_memory() -> None:
    ticks, alive = aligner("gaze"), weakref.WeakSet[Value]()
    for at_ns in range(20_000):
        value = Value()
        alive.add(value)
        assert ticks.push("gaze", at_ns, value) == []
    assert len(alive) <= 4096
    (tick,) = ticks.push("rgb", 19_999, None)
    assert shown(tick) == {"rgb": 19_999, "gaze": 19_999}


@pytest.mark.parametrize(
    ("leading", "others", "rate_hz"),
    [("lidar", [], 10.0), ("rgb", ["gaze", "lidar"], 10.0), ("rgb", [], 0.0), ("rgb", [], -1.0)],
)
def test_unknown_streams_and_rates_are_refused(
    leading: str, others: list[str], rate_hz: float
) -> None:
    with pytest.raises(ConfigError, match="known streams and a rate > 0"):
        TickAligner(leading=leading, others=others, rate_hz=rate_hz)


def test_ticks_of_another_leading_stream_go_on_where_the_last_ones_ended() -> None:
    ticks = TickAligner(leading="rgb", others=[], previous_tick_ns=S)
    made = feed(ticks, [("rgb", at_ns) for at_ns in range(S - 200 * MS, 2 * S, 10 * MS)])
    assert made[0].device_time_ns == S + 100 * MS
    assert len(made) == 9


def test_the_leading_stream_is_not_waited_for_twice() -> None:
    (tick,) = feed(TickAligner(leading="rgb", others=["rgb"]), [("rgb", 5)])
    assert shown(tick) == {"rgb": 5}


# -- handing over ------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32), cut=st.integers(0, 400))
def test_an_aligner_that_goes_on_from_anothers_state_makes_the_same_ticks(
    seed: int, cut: int
) -> None:
    delays = Random(seed)
    arrivals = in_time_order(rgb=times(30), gaze=times(60), head=times(5))
    arrivals.sort(key=lambda arrival: arrival[1] + delays.randrange(200 * MS))
    whole = feed(aligner("gaze", "head"), arrivals)
    first, second = aligner("gaze", "head"), aligner("gaze", "head")
    made = feed(first, arrivals[:cut], flush=False)
    second.go_on_from(first.state())
    made += feed(second, arrivals[cut:])
    assert made == whole
    assert second.late_counts.keys() == {"rgb", "gaze", "head"}


def test_a_better_leading_stream_finds_the_samples_that_came_before_it() -> None:
    others = ("gaze", "head")
    old = TickAligner(leading="head", others=others)
    made = feed(old, in_time_order(head=times(30, stop_ns=S), gaze=times(60, stop_ns=S)))
    new = TickAligner(leading="rgb", others=others)
    new.go_on_from(old.state())
    assert feed(new, [("rgb", 900 * MS)], flush=True) == []  # a tick was made there
    (tick,) = feed(new, [("rgb", S)])
    assert tick.index == len(made)
    ages_ns = {name: S - at_ns for name, at_ns in shown(tick).items() if at_ns is not None}
    assert ages_ns.keys() == {"rgb", "gaze", "head"}
    assert max(ages_ns.values()) < 40 * MS


def test_what_a_leading_stream_holds_for_its_successor_is_bounded() -> None:
    old = TickAligner(leading="head", others=("head",))
    feed(old, in_time_order(head=times(60, stop_ns=60 * S)), flush=False)
    assert len(old.state().held["head"]) < 20
