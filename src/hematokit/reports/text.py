"""How figures and settings read in a report."""

from __future__ import annotations

import math
import shlex

from hematokit.models.config import SplitRecord, TrainingRecord, TrainingSettings

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


def duration(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{seconds:.1f} s"


def moment(stamp: object) -> str:
    """Turn "2026-11-23T12:00:00+00:00" into "2026-11-23 12:00 UTC"."""
    return str(stamp)[:16].replace("T", " ") + " UTC"


def command(*words: object) -> str:
    """Join words to a command line, quoted for a shell."""
    return shlex.join(str(word) for word in words)


def training_facts(training: TrainingRecord) -> list[tuple[str, str]]:
    """Pick what a reader asks first about a training, as (what, value).

    Parameters
    ----------
    training : TrainingRecord
        Training record of the bundle.
    """
    settings = training.settings or TrainingSettings()
    facts: list[tuple[str, object]] = [
        ("Backbone", training.backbone),
        ("Provided by", training.backbone_package),
        ("Input side", _with_unit(training.image_size, "px")),
        ("Classes", None if training.classes is None else f"{len(training.classes)}: {', '.join(training.classes)}"),
        ("Cells", ", ".join(f"{sum(part.values()):,} {name}" for name, part in (training.counts or {}).items())),
        ("Left out of training", ", ".join(f"{code} {n}" for code, n in sorted((training.left_out or {}).items()))),
        ("One against the rest", training.one_vs_rest),
        ("Pixel size", _with_unit(training.pixel_size_um, "µm")),
        ("Store", training.store),
        ("Store version", (training.store_hash or "")[:16]),
        ("Split", _split(training.split or SplitRecord())),
        ("Pretrained weights", _start(settings)),
        ("Augmenter", training.augmenter),
        ("Class balance", training.balance),
        ("Epochs", _epochs(training)),
        ("Batch size", settings.batch_size),
        ("Learning rate", settings.lr),
        ("Seed", training.seed),
        ("Training time", None if training.seconds is None else duration(training.seconds)),
        ("Device", training.device),
        ("Versions", ", ".join(f"{name} {value}" for name, value in (training.versions or {}).items())),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def _with_unit(value: object, unit: str) -> str | None:
    return None if value is None else f"{value} {unit}"


def _split(split: SplitRecord) -> str:
    parts = [" / ".join(map(str, split.fractions))] if split.fractions is not None else []
    parts += [f"seed {split.seed}"] if split.seed is not None else []
    parts += [f"by {split.by}"] if split.by else []
    return ", ".join(parts)


def _start(settings: TrainingSettings) -> str | None:
    if settings.weights:
        return settings.weights
    return None if settings.pretrained is None else "published ones" if settings.pretrained else "none"


def _epochs(training: TrainingRecord) -> str | None:
    if training.epochs is None:
        return None
    best = training.best_epoch or 0
    return f"{training.epochs}" + (f", the weights are those of epoch {best}" if best > 0 else "")
