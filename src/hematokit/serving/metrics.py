"""What a server counts, in the text format that Prometheus reads (version 0.0.4)."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Final

__all__ = ["Metrics"]

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
_PATCHES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)

_COUNTERS: Final = {
    "hematokit_requests_total": "Requests answered, by route and status.",
    "hematokit_refusals_total": "Requests refused or failed, by reason.",
    "hematokit_patches_total": "Patches classified.",
    "hematokit_fields_total": "Fields worked on to the end.",
    "hematokit_field_cells_total": "Cells found in fields.",
}
_HISTOGRAMS: Final = {
    "hematokit_request_seconds": ("Time to answer, by route.", _SECONDS),
    "hematokit_batch_seconds": ("Time that the model takes for a batch.", _SECONDS),
    "hematokit_batch_patches": ("Patches in a batch.", _PATCHES),
}
_Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters, histograms and gauges of one server; any thread may add to them.

    Parameters
    ----------
    facts : mapping of str to str
        Labels of ``hematokit_model_info``.
    """

    def __init__(self, facts: Mapping[str, str]) -> None:
        self._facts = tuple(facts.items())
        self._started = time.time()
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, _Labels], float] = defaultdict(float)
        self._buckets: dict[tuple[str, _Labels], list[int]] = {}
        self._sums: dict[tuple[str, _Labels], float] = defaultdict(float)
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}

    def gauge(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """Add a figure that is read when somebody asks."""
        self._gauges[name] = (meaning, read)

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            self._counts[name, tuple(labels.items())] += amount

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add one value to a histogram."""
        bounds = _HISTOGRAMS[name][1]
        key = name, tuple(labels.items())
        with self._lock:
            buckets = self._buckets.setdefault(key, [0] * (len(bounds) + 1))
            buckets[bisect_left(bounds, value)] += 1
            self._sums[key] += value

    def text(self) -> str:
        """Everything, as Prometheus reads it."""
        lines = _head("hematokit_model_info", "gauge", "The model that is served.")
        lines.append(f"hematokit_model_info{_said(self._facts)} 1")
        lines += _head("hematokit_start_time_seconds", "gauge", "When the server started, in seconds since 1970.")
        lines.append(f"hematokit_start_time_seconds {self._started:.3f}")
        for name, (meaning, read) in self._gauges.items():
            lines += [*_head(name, "gauge", meaning), f"{name} {read():g}"]
        with self._lock:
            for name, meaning in _COUNTERS.items():
                lines += _head(name, "counter", meaning)
                lines += [f"{key}{_said(labels)} {n:.0f}" for (key, labels), n in self._counts.items() if key == name]
            for name, (meaning, bounds) in _HISTOGRAMS.items():
                lines += _head(name, "histogram", meaning)
                for (key, labels), buckets in self._buckets.items():
                    if key == name:
                        lines += _buckets(name, labels, bounds, buckets, self._sums[key, labels])
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, meaning: str) -> list[str]:
    return [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]


def _said(labels: _Labels) -> str:
    if not labels:
        return ""
    escaped = ((name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, value in labels)
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"


def _buckets(name: str, labels: _Labels, bounds: tuple[float, ...], counts: list[int], total: float) -> list[str]:
    lines, so_far = [], 0
    for bound, count in zip((*(f"{bound:g}" for bound in bounds), "+Inf"), counts, strict=True):
        so_far += count
        lines.append(f"{name}_bucket{_said((*labels, ('le', bound)))} {so_far}")
    return [*lines, f"{name}_sum{_said(labels)} {total:.6f}", f"{name}_count{_said(labels)} {so_far}"]
