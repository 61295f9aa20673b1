"""Every bound is checked against the truth, which the tests know and the estimator does not."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keystep_capture.clock import DRIFT_PPM, ClockEstimator, ClockReading, chain
from keystep_capture.errors import ConfigError

MS, S = 1_000_000, 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class TrueClock:
    """A clock that began at `offset_ns` and runs `rate` seconds a true second; exact."""

    offset_ns: int
    rate: Fraction

    def at(self, true_ns: int) -> Fraction:
        return self.offset_ns + true_ns * self.rate

    def reads(self, true_ns: int) -> int:
        """What the clock shows: whole nanoseconds, the last one that is full."""
        return self.at(true_ns) // 1


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One request and its answer; every part's true duration, ns."""

    wait_ns: int
    there_ns: int
    held_ns: int
    back_ns: int


def quartz(nominal: Fraction = Fraction(1), ppm: float = DRIFT_PPM / 2) -> st.SearchStrategy:
    """Clocks that are `ppm` off at most, so that two of them are within DRIFT_PPM."""
    drifts = st.integers(int(-999 * ppm), int(999 * ppm)).map(lambda d: 1 + Fraction(d, 10**9))
    return st.builds(
        lambda offset, drift: TrueClock(offset_ns=offset, rate=nominal * drift),
        offset=st.integers(-(10**15), 10**15),
        drift=drifts,
    )


delays = st.one_of(st.integers(1_000, 5 * MS), st.integers(1_000, 2 * S))
exchanges = st.lists(
    st.builds(
        Exchange,
        wait_ns=st.integers(0, 20 * S),
        there_ns=delays,
        held_ns=st.integers(0, S),
        back_ns=delays,
    ),
    min_size=1,
    max_size=12,
)
STEADY = TrueClock(offset_ns=0, rate=Fraction(1))
SLOWEST = TrueClock(offset_ns=0, rate=1 - Fraction(99_999, 10**9))
SLOW, FAST = (TrueClock(offset_ns=0, rate=1 + Fraction(d, 10**9)) for d in (-49_950, 49_950))


def measure(
    estimator: ClockEstimator,
    local: TrueClock,
    remote: TrueClock,
    trips: list[Exchange],
    *,
    reply_known: bool = True,
) -> int:
    """Carry out exchanges; the true time after the last."""
    now_ns = 0
    for trip in trips:
        sent_ns = now_ns + trip.wait_ns
        arrived_ns = sent_ns + trip.there_ns
        replied_ns = arrived_ns + (trip.held_ns if reply_known else 0)
        now_ns = replied_ns + trip.back_ns
        estimator.add(
            send_ns=local.reads(sent_ns),
            remote_receive_ns=remote.reads(arrived_ns),
            remote_reply_ns=remote.reads(replied_ns) if reply_known else None,
            receive_ns=local.reads(now_ns),
        )
    return now_ns


def assert_bounded(reading: ClockReading, local: TrueClock, remote: TrueClock, at_ns: int) -> None:
    """The true local time of a remote time lies within the stated uncertainty.

    Clocks show whole nanoseconds, and `to_local` rounds: together 4 ns.
    """
    estimate_ns = reading.to_local(remote.reads(at_ns))
    bound_ns = reading.uncertainty_at(estimate_ns)
    assert abs(estimate_ns - local.at(at_ns)) <= bound_ns + 4


@given(
    local=quartz(),
    remote=quartz(),
    trips=exchanges,
    later_ns=st.integers(0, 600 * S),
    reply_known=st.booleans(),
)
@example(
    local=SLOW,
    remote=FAST,
    trips=[Exchange(wait_ns=0, there_ns=140_000, held_ns=S, back_ns=1_000)],
    later_ns=0,
    reply_known=True,
)
@example(
    local=STEADY,
    remote=SLOWEST,
    trips=[Exchange(wait_ns=0, there_ns=2 * S, held_ns=0, back_ns=0)],
    later_ns=600 * S,
    reply_known=True,
)
def test_the_truth_lies_within_the_stated_uncertainty(
    local: TrueClock, remote: TrueClock, trips: list[Exchange], later_ns: int, reply_known: bool
) -> None:
    estimator = ClockEstimator()
    end_ns = measure(estimator, local, remote, trips, reply_known=reply_known)
    for at_ns in (0, end_ns, end_ns + later_ns):
        reading = estimator.reading(local.reads(at_ns))
        assert reading is not None
        assert_bounded(reading, local, remote, at_ns)


@given(
    rate=st.fractions(Fraction(1, 10), Fraction(10), max_denominator=100),
    trips=exchanges,
    data=st.data(),
)
def test_replayed_time_is_bounded_at_its_own_rate(
    rate: Fraction, trips: list[Exchange], data: st.DataObject
) -> None:
    local, remote = data.draw(quartz()), data.draw(quartz(rate))
    estimator = ClockEstimator(rate=float(rate))
    end_ns = measure(estimator, local, remote, trips)
    reading = estimator.reading(local.reads(end_ns))
    assert reading is not None
    resolution_ns = 4 + 4 / rate  # a slow clock's nanosecond is long
    estimate_ns = reading.to_local(remote.reads(end_ns + S))
    error_ns = abs(estimate_ns - local.at(end_ns + S))
    assert error_ns <= reading.uncertainty_at(estimate_ns) + resolution_ns


@given(
    ours=quartz(ppm=DRIFT_PPM / 4),
    bridge=quartz(ppm=DRIFT_PPM / 4),
    device=quartz(ppm=DRIFT_PPM / 4),
    near=exchanges,
    far=exchanges,
)
@example(
    ours=SLOW,
    bridge=FAST,
    device=SLOW,
    near=[Exchange(wait_ns=0, there_ns=1_000, held_ns=0, back_ns=2 * S)],
    far=[Exchange(wait_ns=20 * S, there_ns=2 * S, held_ns=0, back_ns=1_000)],
)
def test_two_hops_are_bounded_by_the_sum_of_their_uncertainties(
    ours: TrueClock,
    bridge: TrueClock,
    device: TrueClock,
    near: list[Exchange],
    far: list[Exchange],
) -> None:
    outer_estimator, inner_estimator = ClockEstimator(), ClockEstimator()
    near_end_ns = measure(outer_estimator, ours, bridge, near)
    far_end_ns = measure(inner_estimator, bridge, device, far)
    inner = inner_estimator.reading(bridge.reads(far_end_ns))
    outer = outer_estimator.reading(ours.reads(near_end_ns))
    assert inner is not None
    assert outer is not None
    joined = chain(outer, inner)
    assert joined.uncertainty_ns >= outer.uncertainty_ns + inner.uncertainty_ns
    assert_bounded(joined, ours, device, far_end_ns)


def test_two_hops_multiply_their_rates() -> None:
    outer = ClockReading(remote_ns=1_000, local_ns=0, uncertainty_ns=5, rate=2.0)
    inner = ClockReading(remote_ns=50, local_ns=3_000, uncertainty_ns=8, rate=0.5)
    joined = chain(outer, inner)
    assert joined.to_local(50) == 1_000
    assert joined.to_local(1_050) == 2_000
    assert joined.uncertainty_ns == 5 + 1 + 5  # its own, 1 us of drift, 8 ns of twice the pace


def test_asymmetry_is_covered_though_it_cannot_be_seen() -> None:
    estimator = ClockEstimator()
    trip = Exchange(wait_ns=0, there_ns=9 * MS, held_ns=0, back_ns=1 * MS)
    measure(estimator, STEADY, STEADY, [trip])
    reading = estimator.reading(10 * MS)
    assert reading is not None
    assert abs(reading.to_local(9 * MS) - 5 * MS) < 2_000  # 4 ms wrong ...
    assert 5 * MS <= reading.uncertainty_ns <= 5 * MS + 2_000  # ... and said so


def test_the_shortest_round_trip_is_used_until_drift_makes_a_newer_one_better() -> None:
    estimator = ClockEstimator()
    quick = Exchange(wait_ns=0, there_ns=MS, held_ns=0, back_ns=MS)
    slow = Exchange(wait_ns=0, there_ns=3 * MS, held_ns=0, back_ns=3 * MS)
    end_ns = measure(estimator, STEADY, STEADY, [quick, slow])
    soon = estimator.reading(end_ns)
    assert soon is not None
    assert MS <= soon.uncertainty_ns < 1.01 * MS
    far_ns = 100 * S
    estimator.add(send_ns=far_ns, remote_receive_ns=far_ns + 3 * MS, receive_ns=far_ns + 6 * MS)
    late = estimator.reading(far_ns + 6 * MS)
    assert late is not None
    assert 2 * MS < late.uncertainty_ns < 3.01 * MS


# -- drift -------------------------------------------------------------------------------------


def exponential_ms(random: Random, mean_ms: float) -> int:
    return round(random.expovariate(1 / mean_ms) * MS)


def jittery_trips(
    random: Random, count: int, *, there_ms: float, back_ms: float, jitter_ms: float
) -> list[Exchange]:
    """An exchange a second over a path with least delays and exponential queueing on top."""
    return [
        Exchange(
            wait_ns=S,
            there_ns=round(there_ms * MS) + exponential_ms(random, jitter_ms),
            held_ns=random.randrange(MS),
            back_ns=round(back_ms * MS) + exponential_ms(random, jitter_ms),
        )
        for _ in range(count)
    ]


@settings(max_examples=25)
@given(
    local=quartz(),
    remote=quartz(),
    seed=st.integers(0, 2**32),
    least_ms=st.floats(0.2, 20),
    jitter_ms=st.floats(0.1, 10),
)
def test_equal_least_delays_are_read_to_2_ms_whatever_the_jitter_and_drift(
    local: TrueClock, remote: TrueClock, seed: int, least_ms: float, jitter_ms: float
) -> None:
    estimator = ClockEstimator()
    trips = jittery_trips(
        Random(seed), 60, there_ms=least_ms, back_ms=least_ms, jitter_ms=jitter_ms
    )
    end_ns = measure(estimator, local, remote, trips)
    reading = estimator.reading(local.reads(end_ns))
    assert reading is not None
    assert_bounded(reading, local, remote, end_ns)
    assert abs(reading.to_local(remote.reads(end_ns)) - local.at(end_ns)) < 2 * MS
    assert estimator.step_count == 0


@settings(max_examples=25)
@given(
    local=quartz(),
    remote=quartz(),
    seed=st.integers(0, 2**32),
    there_ms=st.floats(0.1, 50),
    back_ms=st.floats(0.1, 50),
)
def test_unequal_least_delays_stay_within_the_stated_bounds_of_offset_and_rate(
    local: TrueClock, remote: TrueClock, seed: int, there_ms: float, back_ms: float
) -> None:
    estimator = ClockEstimator()
    trips = jittery_trips(Random(seed), 80, there_ms=there_ms, back_ms=back_ms, jitter_ms=3)
    end_ns = measure(estimator, local, remote, trips)
    reading = estimator.reading(local.reads(end_ns))
    assert reading is not None
    for later_ns in (0, 10 * S):
        assert_bounded(reading, local, remote, end_ns + later_ns)
    true_rate = float(remote.rate / local.rate)
    assert abs(reading.rate / true_rate - 1) <= reading.rate_uncertainty
    assert reading.rate_uncertainty < 1.03e-4


@pytest.mark.parametrize("ppm", [-99.9, -20, 0, 99.9])
def test_drift_is_told_in_parts_per_million(ppm: float) -> None:
    remote = TrueClock(offset_ns=5 * S, rate=1 + Fraction(round(ppm * 1000), 10**9))
    estimator = ClockEstimator()
    trips = jittery_trips(Random(7), 64, there_ms=1, back_ms=1, jitter_ms=0.5)
    end_ns = measure(estimator, STEADY, remote, trips)
    reading = estimator.reading(end_ns)
    assert reading is not None
    assert abs(reading.drift_ppm() - ppm) <= reading.rate_uncertainty * 1e6 < 45


def test_a_rate_that_wanders_as_a_warming_quartz_does_is_no_step() -> None:
    estimator, random = ClockEstimator(), Random(3)
    remote_ns = 0.0
    for second in range(200):  # 40 to 41.9 ppm within each 64 s, there and back
        ppm = 40 + 1.9 * abs((second / 64) % 2 - 1)
        remote_ns += S * (1 + ppm * 1e-6)
        there_ns, back_ns = (10_000 + exponential_ms(random, 0.05) for _ in range(2))
        estimator.add(
            send_ns=second * S - there_ns,
            remote_receive_ns=round(remote_ns),
            receive_ns=second * S + back_ns,
        )
        reading = estimator.reading(second * S)
        assert reading is not None
        assert abs(reading.to_local(round(remote_ns)) - second * S) <= (
            reading.uncertainty_at(second * S)
        )
    assert estimator.step_count == 0


# -- steps -------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    before=st.integers(1, 70),
    after=st.integers(1, 70),
    step_ms=st.integers(60, 10**7),
    forward=st.booleans(),
    which=st.sampled_from(["local", "remote"]),
    seed=st.integers(0, 2**32),
)
def test_a_clock_that_steps_is_noticed_and_bounded_again_at_once(
    before: int, after: int, step_ms: int, forward: bool, which: str, seed: int
) -> None:
    """Suspends and restarts; the step is larger than what the round trips leave open."""
    random = Random(seed)
    shift_ns = step_ms * MS if forward else -step_ms * MS
    estimator, now_ns, steps = ClockEstimator(), 10**15, []
    for number in range(before + after):
        local_ns = remote_ns = 0
        if number >= before:
            local_ns, remote_ns = (shift_ns, 0) if which == "local" else (0, shift_ns)
        there_ns, back_ns = (MS + min(exponential_ms(random, 2), 20 * MS) for _ in range(2))
        now_ns += S
        stepped = estimator.add(
            send_ns=now_ns + local_ns,
            remote_receive_ns=now_ns + there_ns + remote_ns,
            receive_ns=now_ns + there_ns + back_ns + local_ns,
        )
        if stepped:
            steps.append(number)
        reading = estimator.reading(now_ns + local_ns)
        assert reading is not None
        error_ns = abs(reading.to_local(now_ns + remote_ns) - (now_ns + local_ns))
        assert error_ns <= reading.uncertainty_at(now_ns + local_ns)
    assert steps == [before]
    assert estimator.step_count == 1


@pytest.mark.parametrize(
    ("receive_ns", "reply_ns", "back_ns"),
    [
        (500, 500, 90),  # the local clock went back
        (500, 400, 200),  # the remote clock went back
        (500, 5_000, 200),  # held for longer than the whole round trip
    ],
)
def test_an_impossible_exchange_says_nothing(receive_ns: int, reply_ns: int, back_ns: int) -> None:
    estimator = ClockEstimator()
    estimator.add(
        send_ns=100, remote_receive_ns=receive_ns, remote_reply_ns=reply_ns, receive_ns=back_ns
    )
    assert estimator.reading(1_000) is None


def test_a_restarted_clock_is_forgotten() -> None:
    estimator = ClockEstimator()
    assert estimator.reading(0) is None
    estimator.add(send_ns=0, remote_receive_ns=7, receive_ns=10)
    assert estimator.reading(10) is not None
    estimator.reset()
    assert estimator.reading(10) is None


def test_old_exchanges_make_room() -> None:
    estimator = ClockEstimator(window=2)
    for send_ns, receive_ns in ((0, 2), (10, 110), (200, 300)):
        estimator.add(send_ns=send_ns, remote_receive_ns=send_ns, receive_ns=receive_ns)
    reading = estimator.reading(300)
    assert reading is not None
    assert 50 <= reading.uncertainty_ns <= 53


@pytest.mark.parametrize(("rate", "window"), [(0.0, 1), (-1.0, 1), (float("nan"), 1), (1.0, 0)])
def test_a_clock_without_rate_or_memory_is_refused(rate: float, window: int) -> None:
    with pytest.raises(ConfigError, match="rate > 0 and window >= 1"):
        ClockEstimator(rate=rate, window=window)
