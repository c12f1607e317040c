"""Engines are timed in turns; what was no fair race is run again, a few times."""

from __future__ import annotations

import pytest

from hematokit.models import timing as timing_module
from hematokit.models.timing import ATTEMPTS, Timing, time_engines


class Clock:
    """Time that passes only when an engine computes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.turns: list[tuple[str, int]] = []

    def perf_counter(self) -> float:
        return self.now

    process_time = perf_counter

    def engine(self, name: str, seconds: float, slow_turns: tuple[int, ...] = ()):
        def compute(count: int) -> None:
            self.now += seconds * count * (3 if len(self.turns) in slow_turns else 1)
            self.turns.append((name, count))

        return compute


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing_module, "time", made)
    monkeypatch.setattr(timing_module, "_busy", lambda: made.now)
    return made


def test_turns_alternate_and_the_best_counts(clock: Clock) -> None:
    # Turns 0 and 1 find out how long a turn is to be. In four of the others something disturbs the faster engine.
    engines = {"a": clock.engine("a", 0.002, slow_turns=(2, 5, 6, 9)), "b": clock.engine("b", 0.003)}
    found = time_engines(engines, Timing())
    assert found.fastest(["a", "b"]) == "a"
    assert found.best == pytest.approx({"a": 0.002, "b": 0.003})
    order = [name for name, _ in clock.turns[2:10]]
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert found.attempts == 1
    assert found.fastest(["a", "b", "c"]) is None, "one that was never measured"


@pytest.mark.parametrize("seconds", [1e-5, 0.004, 0.06])
def test_it_never_takes_long(clock: Clock, seconds: float) -> None:
    time_engines({"a": clock.engine("a", seconds), "b": clock.engine("b", seconds * 1.2)}, Timing(), least=2)
    assert clock.now < 1.5
    assert all(count >= 2 for _, count in clock.turns)


def test_close_engines_race_longer(clock: Clock) -> None:
    lengths = {}
    for lead in (1.05, 1.5):
        before = clock.now
        time_engines({"a": clock.engine("a", 0.01), "b": clock.engine("b", 0.01 * lead)}, Timing(), 4, 16)
        lengths[lead] = clock.now - before
    assert lengths[1.05] > 2 * lengths[1.5]
    assert clock.turns[-1][1] == 13, "a turn has the batches of use, as far as it stays short"


def test_former_best_turns_are_kept(clock: Clock) -> None:
    before = Timing({"a": 0.001, "b": 0.009, "gone": 0.1}, attempts=3)
    found = time_engines({"a": clock.engine("a", 0.004), "b": clock.engine("b", 0.003)}, before)
    assert found.best == pytest.approx({"a": 0.001, "b": 0.003, "gone": 0.1})
    assert found.attempts == 4


@pytest.mark.parametrize(
    ("timing", "settled"),
    [
        (Timing(), False),
        (Timing({"a": 1.0}, attempts=1), False),
        (Timing({"a": 1.0, "b": 1.5}, noise=0.1, attempts=1), True),
        (Timing({"a": 1.0, "b": 1.5}, noise=0.1, others=0.4, attempts=1), False),
        (Timing({"a": 1.0, "b": 1.2}, noise=0.4, attempts=1), False),
        (Timing({"a": 1.0, "b": 1.01}, noise=0.4, attempts=1), True),
        (Timing({"a": 1.0, "b": 1.2}, noise=9.0, others=1.0, attempts=ATTEMPTS), True),
    ],
    ids=["never", "one of two", "clear", "busy", "noisy", "equal", "often enough"],
)
def test_when_it_is_settled(timing: Timing, settled: bool) -> None:
    assert timing.is_settled(["a", "b"]) is settled
    assert timing.is_settled(["a"])
    assert Timing.from_dict(timing.to_dict()) == timing


@pytest.mark.parametrize("said", [None, [], {}, {"best": 3}, {"best": {"a": "x"}}, {"best": {"a": 1}, "noise": None}])
def test_what_cannot_be_read_counts_as_never_measured(said: object) -> None:
    assert Timing.from_dict(said) == Timing()
