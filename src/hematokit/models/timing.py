"""Which of several engines computes a model fastest here: measured in turns, and again where that was no fair race.

A machine that does something else at the same time slows whichever engine happens to run. So the engines take turns in
short rounds, the best turn of each counts, and a choice that was made on a busy machine or by less than the noise is
looked at again the next few times the model is opened; what was found before is kept, as a best turn stays one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

import psutil

__all__ = ["Timing", "time_engines"]

ATTEMPTS: Final = 5
"""After so many times it stays as it is: the engines are equally fast, or the machine is never quiet."""

_BUDGET: Final = 1.0
_CLOSE_BUDGET: Final = 3.0
_CLOSE: Final = 1.10
_TURN: Final = 0.2
_ROUNDS: Final = (3, 15)
_QUIET: Final = 0.15
_EQUAL: Final = 1.03

Compute = Callable[[int], object]
"""Computes as many patches as it is told."""


@dataclass(frozen=True)
class Timing:
    """What is known of the engines' speed with one number of threads.

    Attributes
    ----------
    best : dict
        Engine to seconds a patch in the best of its turns.
    noise : float
        How much longer the median turn of the last time was than the best, as a fraction; of the worse engine.
    others : float
        Share of the machine's cores that other processes kept busy the last time.
    attempts : int
        How often it was measured.
    """

    best: dict[str, float] = field(default_factory=dict)
    noise: float = 0.0
    others: float = 0.0
    attempts: int = 0

    @classmethod
    def from_dict(cls, said: object) -> Self:
        """Read what `to_dict` gave; empty where it is something else."""
        try:
            assert isinstance(said, dict)
            best = {str(name): float(seconds) for name, seconds in said["best"].items() if float(seconds) > 0}
            return cls(best, float(said["noise"]), float(said["others"]), int(said["attempts"]))
        except (AssertionError, KeyError, TypeError, ValueError, AttributeError):
            return cls()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def fastest(self, engines: list[str]) -> str | None:
        """Which of some engines is the fastest; None unless all of them were measured."""
        if not engines or not set(engines) <= set(self.best):
            return None
        return min(engines, key=lambda engine: self.best[engine])

    def is_settled(self, engines: list[str]) -> bool:
        """Whether measuring these engines once more is not worth the second it takes."""
        if len(engines) < 2:
            return True
        if self.fastest(engines) is None:
            return False
        first, second = sorted(self.best[engine] for engine in engines)[:2]
        lead = second / first
        clear = lead < _EQUAL or lead > 1 + self.noise
        return self.attempts >= ATTEMPTS or (self.others < _QUIET and clear)


def time_engines(engines: Mapping[str, Compute], before: Timing, least: int = 1, most: int = 16) -> Timing:
    """Measure engines in turns, for about a second; three where the best are less than a tenth apart.

    Parameters
    ----------
    engines : mapping
        Name to what computes; each has computed something already.
    before : Timing
        What was found earlier, with the same number of threads.
    least : int
        Patches that a turn has at least, so that all threads are busy.
    most : int
        Patches that fill the batches of all threads: engines gain unlike much by larger batches, so a turn has as many
        where it stays short.

    Returns
    -------
    Timing
    """
    names = list(engines)
    # A turn stays short all the same: many short turns find a quiet moment, few long ones do not.
    slowest = max(_seconds(engines[name], least) / least for name in names)
    count = max(least, min(most, int(_TURN / slowest)))
    turns: dict[str, list[float]] = {name: [] for name in names}
    started, busy, own = time.perf_counter(), _busy(), time.process_time()
    for turn in range(_ROUNDS[1]):
        if turn >= _ROUNDS[0]:
            first, *others_best = sorted(min(seconds) for seconds in turns.values())
            close = bool(others_best) and others_best[0] < _CLOSE * first
            if time.perf_counter() - started > (_CLOSE_BUDGET if close else _BUDGET):
                break
        # Each round begins with another one: none always runs after the same.
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            turns[name].append(_seconds(engines[name], count) / count)
    passed = max(time.perf_counter() - started, 1e-6) * (psutil.cpu_count() or 1)
    others = (_busy() - busy - (time.process_time() - own)) / passed
    best = before.best | {name: min([*seconds, before.best.get(name, seconds[0])]) for name, seconds in turns.items()}
    noise = max(statistics.median(seconds) / min(seconds) - 1 for seconds in turns.values())
    return Timing(best, round(noise, 4), round(min(max(others, 0.0), 1.0), 4), before.attempts + 1)


def _seconds(compute: Compute, count: int) -> float:
    start = time.perf_counter()
    compute(count)
    return max(time.perf_counter() - start, 1e-9)


def _busy() -> float:
    """Seconds that all cores together have worked since the machine started."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # On Linux, guests' time is in user time already.
    return sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
