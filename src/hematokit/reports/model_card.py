"""The model card that leaves with an exported model: what it is, what it learned from, how good it is, its limits.

Its sections follow Mitchell et al. (2019), Model cards for model reporting, doi:10.1145/3287560.3287596. `_reproducing`
returns the commands that made the model, from its training record.
"""

from __future__ import annotations

import io
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, Final

import jinja2
import numpy as np
import numpy.typing as npt
from huggingface_hub import EvalResult
from markupsafe import Markup
from PIL import Image

from hematokit.errors import EvaluationError, ExplanationError, ModelError, printable
from hematokit.evaluation.files import METRICS
from hematokit.evaluation.metrics import CLASS_METRICS, LOW_SUPPORT
from hematokit.explanation.folder import CLASSES_FIGURE
from hematokit.files import one_line_read_errors
from hematokit.imaging.reading import read_rgb
from hematokit.models.config import ModelConfig, SplitRecord, TrainingRecord, TrainingSettings
from hematokit.reports.rendering import METRIC_NAMES, data_url, templates
from hematokit.reports.text import command, duration, interval
from hematokit.training.settings import TrainSettings
from hematokit.yaml_text import typed_text

if TYPE_CHECKING:
    from hematokit.models.classifier import Classifier

__all__ = ["CardPicture", "evaluation_results", "model_card"]

_OPTIONS: Final = (
    *("variant", "image_size", "epochs", "batch_size", "lr", "weight_decay", "warmup", "balance", "target_per_class"),
    "seed",
)
_SETTINGS: Final = ("clip_grad", "label_smoothing", "precision", "compile", "patience", "monitor", "stop_after")


def _reproducing(training: TrainingRecord) -> list[str]:
    """Return the commands that make a model again: the one recorded, or one made from the settings of its training.

    Parameters
    ----------
    training : TrainingRecord

    Returns
    -------
    list of str
        Each may have several lines, for a shell; empty where nothing is known.
    """
    given = _given_command(training)
    if given:
        return [_wrapped(given), _wrapped(["hematokit", "evaluate", *_evaluated(given)])]
    settings = training.settings
    if settings is None or not settings.model_fields_set:
        return []
    words: list[object] = ["hematokit", "train", "STORE", "--output", "NEW_RUN", "--backbone", settings.backbone]
    for option in _OPTIONS:
        if (value := getattr(settings, option)) is not None:
            words += [f"--{option.replace('_', '-')}", value]
    words += ["--augmenter", settings.augmenter] if settings.augmenter else []
    words += ["--exclude", _codes(settings.exclude)] if settings.exclude is not None else []
    words += ["--one-vs-rest", settings.one_vs_rest] if settings.one_vs_rest else []
    words += ["--pretrained"] if settings.pretrained else []
    words += ["--weights", _without_folders(settings.weights)] if settings.weights else []
    for key, value in _other_settings(settings):
        words += ["--set", f"{key}={value}"]
    return [_wrapped(words), "hematokit evaluate NEW_RUN"]


def _codes(excluded: Sequence[str]) -> str:
    """Codes as ``--exclude`` reads them; a comma distinguishes a class called ``None`` from the word."""
    listed = ",".join(excluded) or "none"
    return f"{listed}," if excluded and listed.lower() == "none" else listed


def _other_settings(settings: TrainingSettings) -> Iterator[tuple[str, str]]:
    """What changes a model and has no place above, where it is not what a training takes by itself."""
    for name in _SETTINGS:
        value = getattr(settings, name)
        if name in settings.model_fields_set and value != TrainSettings.model_fields[name].default:
            yield name, _as_typed(value)
    yield from _given_options("backbone", settings.backbone_options or {})
    yield from _given_options("augmenter", settings.augmenter_options or {})


def _given_options(head: str, options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _given_options(f"{head}.{name}", value)
        elif value is not None:
            yield f"{head}.{name}", _as_typed(value)


def _as_typed(value: object) -> str:
    """A value as ``--set`` reads it."""
    if not isinstance(value, str):
        return json.dumps(value)
    value = _without_folders(value)
    return value if typed_text(value) == value else json.dumps(value)


def _given_command(training: TrainingRecord) -> list[str]:
    """The command that made the model, if the record has one that says all: a file of settings is not in it."""
    words = training.command or []
    if any(word.split("=")[0] in ("--config", "--resume") for word in words):
        return []
    return [_without_folders(word) for word in words]


def _without_folders(word: str) -> str:
    """A word of a command; of a path that leads out of the working folder its last part only."""
    name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    windows = PureWindowsPath(value)
    if value.startswith(("/", "~", "..", "\\")) or windows.is_absolute():
        value = windows.name or value  # takes both kinds of slashes
    return f"{name}{equals}{value}"


def _evaluated(words: Sequence[str]) -> list[str]:
    """What the evaluation is called with, after a command of ours or a plugin's."""
    for here, after in zip(words, [*words[1:], ""], strict=True):
        if here.startswith("--output="):
            after = here.partition("=")[2]
        if here == "--output" or here.startswith("--output="):
            # Training makes a run, which evaluation writes into; for any other bundle, the folder is given.
            return [after] if words[1:2] == ["train"] else [after, "--output", "FOLDER"]
    return ["NEW_RUN"]


def _wrapped(words: Sequence[object]) -> str:
    lines = textwrap.wrap(
        printable(command(*words)), 96, break_long_words=False, break_on_hyphens=False, subsequent_indent="  "
    )
    return " \\\n".join(lines)


def _reproducing_words(training: TrainingRecord) -> str:
    """Return what is to be known besides the commands of `_reproducing`."""
    hash_ = (training.store_hash or "")[:16]
    given = _given_command(training)
    store = "The store that it was given is the one" if given else "STORE is the store"
    said = f"{store} whose version begins with {hash_} (hematokit store info says it). " if hash_ else ""
    split = training.split
    if split is not None and split.fractions and split.seed is not None:
        divided = command("hematokit", "split", "STORE", "--fractions", *split.fractions, "--seed", split.seed)
        said += f"Its split, if it has lost it: {divided}. "
    if given and given[1:2] != ["train"]:
        package = training.backbone_package
        said += f"The first command is that of a plugin{f', {package}' if package else ''}. "
    return said + "The same versions on the same kind of device give the same model but for rounding."


_WIDEST: Final = 1600
_HEADLINE: Final = ("balanced_accuracy", "macro_f1", "weighted_f1", "accuracy")
_COLUMNS: Final = tuple(name for name in CLASS_METRICS if name != "ovr_accuracy")
_SPECIAL: Final = re.compile(r"([\\`*_\[\]|~#$])")


@dataclass(frozen=True)
class CardPicture:
    """An example of explanations, as a model card shows it.

    Attributes
    ----------
    caption : str
        Caption of the image, or the reason why there is none.
    title : str
        Alternative text of the image.
    url : str
        A data URL, or empty.
    """

    caption: str
    title: str = ""
    url: str = ""

    @classmethod
    def from_pixels(cls, pixels: npt.NDArray[np.uint8], caption: str, title: str) -> CardPicture:
        """Return the image of pixels (h, w, 3), downsampled to a width of 1600 pixels if it is wider."""
        image = Image.fromarray(pixels)
        if image.width > _WIDEST:
            image = image.resize((_WIDEST, round(image.height * _WIDEST / image.width)), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=88)
        return cls(caption, title, data_url(buffer.getvalue(), "image/jpeg"))


def _given_example(path: Path) -> CardPicture:
    """Return an image file, or the figure of classes in a folder of ``hematokit explain``, as a `CardPicture`.

    Raises
    ------
    ExplanationError
        If there is none.
    ImageError
        If it cannot be read as an image.
    """
    file = path / CLASSES_FIGURE if path.is_dir() else path
    if not file.is_file():
        raise ExplanationError(f"{file} does not exist; give a folder that hematokit explain wrote, or a picture")
    caption = "Cells, and below them the pixels that the model's answers rest on, as hematokit explain drew them."
    return CardPicture.from_pixels(read_rgb(file), caption, "Cells and what the model looks at")


def model_card(
    classifier: Classifier,
    run: Path | None = None,
    *,
    evaluation: Path | None = None,
    explanation: Path | CardPicture | None = None,
    notes: Sequence[str] = (),
    licence: str = "",
) -> str:
    """Return the model card of a bundle and its run.

    No path of this computer and no picture of a training set get into it, unless `explanation` is one.

    Parameters
    ----------
    classifier : Classifier
        From a bundle.
    run : Path, optional
        The run of the bundle; its evaluation of the test split is used.
    evaluation : Path, optional
        Folder of another evaluation to take the figures from.
    explanation : Path or CardPicture, optional
        What to show of explanations: a folder that ``hematokit explain`` wrote, an image file, or a picture such as
        `hematokit.pipelines.export.drawn_example` gives.
    notes : sequence of str
        What is to be said of this file in particular, such as what rounding its weights cost.
    licence : str
        Of the weights; empty: not stated.

    Returns
    -------
    str
        Markdown, with the image as a data URL.

    Raises
    ------
    ModelError
        If the classifier does not come from a bundle, or what that says of its training is not what it should be.
    EvaluationError
        If figures are damaged, or `evaluation` is one of another model.
    ImageError
        If the image cannot be read.
    """
    config = classifier.config
    training = config.training
    if training.faults:
        raise ModelError(
            f"the model's config.json: training.{training.faults[0]}, so there is no card; copy the model again or "
            "mend that entry"
        )
    scores, missing = _scores(config, run, evaluation)
    counts = training.counts or {}
    splits = [name for name in ("train", "val", "test") if name in counts]
    side, size = config.input.patch_size, config.input.size
    text = (
        _templates()
        .get_template("model_card.md.j2")
        .render(
            title=f"{config.backbone.name} ({config.backbone.variant}) for {len(classifier.codes)} cell classes",
            config=config,
            licence=licence,
            classes=list(classifier.taxonomy),
            preparation=_preparation(classifier, side, size),
            network=f"{config.backbone} ({config.backbone.model})",
            parameters=_parameters(classifier),
            data=_data(training),
            splits=splits,
            counts=counts,
            scores=scores,
            missing=missing,
            evaluated_on=_evaluated_on(scores),
            seen=_seen(scores),
            headline=_HEADLINE,
            columns=_COLUMNS,
            few=bool(scores) and any(entry["low_support"] for entry in scores["per_class"].values()),
            low=LOW_SUPPORT,
            neighbours=_neighbours(scores),
            calibration=_calibration(scores, config.temperature),
            validation=_validation(training),
            explanation=_explanation(explanation),
            limits=_limits(classifier, scores),
            environment=_environment(training),
            reproduce=[Markup(line.replace("`", "")) for line in _reproducing(training)],
            reproduce_words=_reproducing_words(training),
            notes=notes,
        )
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _templates() -> jinja2.Environment:
    made = templates().overlay()
    made.filters = {**made.filters, "md": _markdown, "bracket": _bracket}
    return made


def _markdown(text: object) -> Markup:
    """Return text with Markdown escaped and without line breaks."""
    plain = _SPECIAL.sub(r"\\\1", printable(str(text)))
    return Markup(plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def _bracket(bounds: Sequence[float] | None) -> str:
    return f" ({interval((bounds[0], bounds[1]))})" if bounds else ""


def evaluation_results(config: ModelConfig, run: Path | None) -> list[EvalResult]:
    """Return the figures of a run's evaluation as metadata of a card that a hub reads.

    Parameters
    ----------
    config : ModelConfig
        Of the run's bundle.
    run : Path or None

    Returns
    -------
    list of EvalResult
        Balanced accuracy, macro F1, weighted F1 and accuracy on the test split, those that could be measured; empty
        without an evaluation of this very model.

    Raises
    ------
    EvaluationError
        If the figures are damaged.
    """
    scores, _ = _scores(config, run, None)
    if not scores:
        return []
    about = scores["evaluated"]
    return [
        EvalResult(
            task_type="image-classification",
            # Its name only, without the folders.
            dataset_type="hematokit-store",
            dataset_name=Path(str(about["store"])).name,
            dataset_split=str(about["split"]),
            dataset_revision=str(about["store_hash"]),
            metric_type="f1" if name.endswith("f1") else name,
            metric_name=METRIC_NAMES[name],
            metric_value=scores[name],
        )
        for name in _HEADLINE
        if scores[name] is not None
    ]


def _scores(config: ModelConfig, run: Path | None, evaluation: Path | None) -> tuple[dict[str, Any], str]:
    """The figures of an evaluation of this very model, or none and why."""
    folder = evaluation if evaluation is not None else run / "evaluation" / "test" if run is not None else None
    if folder is None or not (folder / METRICS).is_file():
        if evaluation is not None:
            raise EvaluationError(f"{evaluation} holds no {METRICS}; give a folder that hematokit evaluate wrote")
        return {}, "Not evaluated: there are no figures on cells that took no part in training."
    path = folder / METRICS
    try:
        with one_line_read_errors(path, EvaluationError):
            scores = json.loads(path.read_text(encoding="utf-8"))
        _check(scores)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(f"{path} is damaged ({type(error).__name__}); run hematokit evaluate again") from error
    if scores["evaluated"].get("model_created") != config.created:
        if evaluation is not None:
            raise EvaluationError(f"{path} is of another model; give a folder of an evaluation of this one")
        return {}, "Not evaluated: the figures beside the bundle are of an earlier state of the model."
    return scores, ""


def _check(scores: Any) -> None:
    """Touch everything that the card shows, so that a damaged file ends here."""
    for name in _HEADLINE:
        _number(scores[name])
        _number_pair(scores["intervals"][name])
    _number(scores["expected_calibration_error"])
    for entry in scores["per_class"].values():
        for name in _COLUMNS:
            _number(entry[name])
            _number_pair(entry["intervals"][name])
        int(entry["support"])
        bool(entry["low_support"])
    matrix = scores["confusion_matrix"]
    if any(len(row) != len(matrix["codes"]) for row in matrix["counts"]) or not isinstance(scores["n"], int):
        raise ValueError("confusion matrix")
    for value in (scores.get("neighbour_confusions") or {}).values():
        _number(value)
    for key in ("created", "split", "store_hash", "images"):
        scores["evaluated"][key]


def _number(value: Any) -> None:
    if value is not None:
        float(value)


def _number_pair(value: Any) -> None:
    if value is not None:
        low, high = value
        float(low), float(high)


def _preparation(classifier: Classifier, side: int, size: int) -> str:
    start, length = classifier.input_spec.region(side)
    if start < 0:
        return f"a reflected margin out to {size} px"
    if length < side:
        return f"the middle {size} px cut out"
    return f"resized to {size} px (bilinear, antialiased)" if size != side else "none"


def _parameters(classifier: Classifier) -> int:
    return sum(parameter.numel() for parameter in classifier.backbone.parameters())


def _data(training: TrainingRecord) -> list[tuple[str, str]]:
    split = training.split or SplitRecord()
    left_out = ", ".join(f"{code} {count}" for code, count in sorted((training.left_out or {}).items()))
    by = {"group": "group of near-duplicate crops", "patient": "patient"}.get(split.by or "", split.by)
    facts: list[tuple[str, object]] = [
        # Its name only: the path of the folder is private.
        ("Store", Path(training.store).name if training.store else None),
        ("Version of the data (content hash)", training.store_hash),
        ("Split", " / ".join(map(str, split.fractions or ()))),
        ("Split by", by),
        ("Seed of the split", split.seed),
        ("Left out of training", left_out),
        ("One class against the rest", training.one_vs_rest),
        ("Class balance", training.balance),
        ("Augmentation", training.augmenter),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def _evaluated_on(scores: Mapping[str, Any]) -> str:
    if not scores:
        return ""
    about = scores["evaluated"]
    if about["images"]:
        return f"a folder of images, {Path(str(about['images'])).name}"
    return f"split {about['split']} of store version {str(about['store_hash'])[:16]}"


def _seen(scores: Mapping[str, Any]) -> str:
    """Return whether the cells of the metrics were not used in training."""
    split = str(scores["evaluated"]["split"]) if scores and not scores["evaluated"]["images"] else ""
    if split == "test":
        return "that took no part in training"
    if split == "val":
        return "by which the best epoch was chosen, so the figures flatter"
    if split == "train":
        return "that it was trained on, so the figures say nothing about others"
    return "of which this card does not know whether it was trained on some"


def _neighbours(scores: Mapping[str, Any]) -> str:
    found = scores.get("neighbour_confusions") or {} if scores else {}
    if not found.get("errors"):
        return ""
    return (
        f"Of {found['errors']:,} mistakes, {found['between_neighbours']:,} ({100 * found['share']:.0f} %) are between "
        "classes one maturation step apart."
    )


def _calibration(scores: Mapping[str, Any], temperature: float) -> str:
    if not scores or scores["expected_calibration_error"] is None:
        return ""
    error = scores["expected_calibration_error"]
    fitted = f"divided by {temperature:.4f}, fitted on the validation split" if temperature != 1 else "as they are"
    return (
        f"Logits are {fitted}. On the cells above, the stated probability and the share of correct answers are "
        f"{100 * error:.1f} percentage points apart on average (expected calibration error, 15 bins). On cells from "
        "elsewhere, expect more."
    )


def _validation(training: TrainingRecord) -> list[tuple[str, float]]:
    named = [(name.removeprefix("val_"), value) for name, value in (training.validation or {}).items()]
    return [(METRIC_NAMES.get(name, name), value) for name, value in named if value is not None]


def _explanation(explanation: Path | CardPicture | None) -> CardPicture:
    if explanation is None:
        return CardPicture("None here. hematokit explain shows which pixels the answers rest on.")
    return _given_example(explanation) if isinstance(explanation, Path) else explanation


def _limits(classifier: Classifier, scores: Mapping[str, Any]) -> list[str]:
    config = classifier.config
    training = config.training
    limits = [
        "It knows its own classes only. A cell of any other kind, two cells in one crop or no cell at all gets one of "
        "them too."
    ]
    kept = {entry.code for entry in classifier.taxonomy if entry.reject}
    if not kept:
        limits.append("No class for artefacts or unidentifiable cells was learned, so they are not turned away.")
    if training.split is None or training.split.by != "patient":
        limits.append(
            "The split was not made by patient: cells of one patient may stand on both sides, and on new patients the "
            "figures may be lower."
        )
    if config.pixel_size_um is None:
        limits.append("The pixel size of the training images is not recorded, so crops cannot be brought to it.")
    if scores:
        few = [code for code, entry in scores["per_class"].items() if entry["low_support"]]
        if few:
            limits.append(f"Fewer than {LOW_SUPPORT} test cells, so their figures say little: {', '.join(few)}.")
        poor = [code for code, entry in scores["per_class"].items() if (entry["recall"] or 0) < 0.5]
        if poor:
            limits.append(f"Less than half of the test cells of these classes are found: {', '.join(poor)}.")
    else:
        limits.append("Nothing is known of how good it is.")
    limits.append(
        "Stains, microscopes, cameras and laboratories differ: evaluate it on your own labelled cells before you use "
        "it (hematokit evaluate)."
    )
    return limits


def _environment(training: TrainingRecord) -> list[tuple[str, str]]:
    facts: list[tuple[str, object]] = [
        ("Training time", None if training.seconds is None else duration(training.seconds)),
        ("Device", training.device),
        ("Processes", training.processes if training.processes != 1 else None),
        ("Epochs", training.epochs),
        ("Versions", ", ".join(f"{name} {value}" for name, value in (training.versions or {}).items())),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]
