"""How figures and settings read in a report."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any

__all__ = ["RESEARCH_USE", "command", "duration", "figure", "interval", "moment", "p_value", "training_facts"]

RESEARCH_USE = (
    "For research use only. Not a medical device: not for diagnosis, treatment or any decision about a patient."
)


def figure(value: float | None) -> str:
    """Three decimals, or a dash where the figure is undefined. Rounded, but never up to a perfect 1."""
    if value is None:
        return "–"
    text = f"{value:.3f}"
    return "0.999+" if text == "1.000" and value < 1 else text


def interval(bounds: tuple[float, float] | None) -> str:
    """Write two bounds, rounded outward so that the interval never looks narrower than it is; empty for ``None``."""
    if bounds is None:
        return ""
    low = math.floor(round(bounds[0] * 1000, 6)) / 1000
    high = math.ceil(round(bounds[1] * 1000, 6)) / 1000
    return f"{low:.3f}–{high:.3f}"


def p_value(value: float) -> str:
    """Two digits, or "< 0.001"."""
    return "< 0.001" if value < 0.001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def duration(seconds: object) -> str:
    """Seconds as a person says them."""
    if not isinstance(seconds, int | float):
        return str(seconds)
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{seconds:.1f} s"


def moment(stamp: object) -> str:
    """Turn "2026-11-23T12:00:00+00:00" into "2026-11-23 12:00 UTC"."""
    return str(stamp)[:16].replace("T", " ") + " UTC"


def command(*words: object) -> str:
    """Join words to a line that a shell takes apart again as given."""
    return shlex.join(str(word) for word in words)


def training_facts(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pick what a reader asks first about a training, as (what, value); unknown entries are passed over.

    Parameters
    ----------
    training : mapping
        What the bundle says about its training.
    """
    settings = training.get("settings") if isinstance(training.get("settings"), Mapping) else {}
    assert isinstance(settings, Mapping)
    split = training.get("split") if isinstance(training.get("split"), Mapping) else {}
    assert isinstance(split, Mapping)
    facts: list[tuple[str, object]] = [
        ("Backbone", training.get("backbone")),
        ("Provided by", training.get("backbone_package")),
        ("Input side", _with_unit(training.get("image_size"), "px")),
        ("Classes", _count(training.get("classes"))),
        ("Cells", _cells(training.get("counts"))),
        ("Left out of training", _counted(training.get("left_out"))),
        ("One against the rest", training.get("one_vs_rest")),
        ("Pixel size", _with_unit(training.get("pixel_size_um"), "µm")),
        ("Store", training.get("store")),
        ("Store version", _short(training.get("store_hash"))),
        ("Split", _split(split)),
        ("Pretrained weights", _start(settings)),
        ("Augmenter", training.get("augmenter")),
        ("Class balance", training.get("balance")),
        ("Epochs", _epochs(training)),
        ("Batch size", settings.get("batch_size")),
        ("Learning rate", settings.get("lr")),
        ("Seed", training.get("seed")),
        ("Training time", duration(training["seconds"]) if "seconds" in training else None),
        ("Device", training.get("device")),
        ("Versions", _versions(training.get("versions"))),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "", [], {})]


def _with_unit(value: object, unit: str) -> str | None:
    return None if value is None else f"{value} {unit}"


def _count(value: object) -> str | None:
    return f"{len(value)}: {', '.join(map(str, value))}" if isinstance(value, list | tuple) else None


def _cells(counts: object) -> str | None:
    if not isinstance(counts, Mapping):
        return None
    parts = [f"{sum(part.values()):,} {name}" for name, part in counts.items() if isinstance(part, Mapping)]
    return ", ".join(parts)


def _counted(counts: object) -> str | None:
    return ", ".join(f"{code} {n}" for code, n in sorted(counts.items())) if isinstance(counts, Mapping) else None


def _short(digest: object) -> str | None:
    return str(digest)[:16] if digest else None


def _split(split: Mapping[str, Any]) -> str | None:
    parts = []
    if "fractions" in split:
        fractions = split["fractions"]
        values = fractions.values() if isinstance(fractions, Mapping) else fractions
        parts.append(" / ".join(str(value) for value in values))
    if "seed" in split:
        parts.append(f"seed {split['seed']}")
    if split.get("by"):
        parts.append(f"by {split['by']}")
    return ", ".join(parts) or None


def _start(settings: Mapping[str, Any]) -> str | None:
    if settings.get("weights"):
        return str(settings["weights"])
    if "pretrained" in settings:
        return "published ones" if settings["pretrained"] else "none"
    return None


def _epochs(training: Mapping[str, Any]) -> str | None:
    if "epochs" not in training:
        return None
    best = training.get("best_epoch")
    return f"{training['epochs']}" + (
        f", the weights are those of epoch {best}" if isinstance(best, int) and best > 0 else ""
    )


def _versions(versions: object) -> str | None:
    return ", ".join(f"{name} {value}" for name, value in versions.items()) if isinstance(versions, Mapping) else None
