"""Writing a trained model in a format that other programs read: what ``hematokit export`` does."""

from __future__ import annotations

import contextlib
import importlib
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, Final, get_args

from hematokit.errors import ModelError
from hematokit.files import TEMPORARY_PREFIX, one_line_write_errors, sync_folder, write_atomically
from hematokit.imaging.reading import printable
from hematokit.models.bundle import find_bundle
from hematokit.models.exporting import Layout
from hematokit.models.formats.onnx_file import OnnxSettings
from hematokit.models.loading import load_model
from hematokit.models.quantising import Precision
from hematokit.reporting.export_crops import ExportCrops
from hematokit.reporting.model_card import model_card
from hematokit.taxonomy import Taxonomy, load_taxonomy

if TYPE_CHECKING:
    from hematokit.models.classifier import Classifier

__all__ = ["FORMATS", "ExportResult", "export"]

FORMATS: Final = {
    "onnx": "hematokit.models.formats.onnx_file",
    "bioimageio": "hematokit.models.formats.bioimageio",
    "wsinfer": "hematokit.models.formats.wsinfer",
    "huggingface": "hematokit.models.formats.huggingface",
}
"""Format to the module that writes it.

Each has ``write(classifier, target, *, card, samples, log, licence) -> facts``, and ``SUFFIX``, how the name of what it
writes ends (``""``: a folder). `target` is a path that does not exist yet, beside the one asked for; it is moved into
place when `write` returns, and removed when it raises. The facts are plain data: the numbers of the comparison with
torch.
"""

_AGAIN: Final = "give an --output in a folder that can be written, with room"
_GREY: Final = "#7f7f7f"
_PATHS: Final = ("store", "output")


def _silent(text: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote.

    Attributes
    ----------
    path : Path
        File or folder.
    format : str
    facts : dict
        What the writer measured: ``parity`` with torch, and more by format.
    size : int
        Bytes.
    crops : str
        What it was compared on.
    card : Path or None
        The model card, where it lies beside the file and not in the folder.
    seconds : float
    """

    path: Path
    format: str
    facts: dict[str, Any]
    size: int
    crops: str
    card: Path | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "path": str(self.path),
            "format": self.format,
            "bytes": self.size,
            "compared_on": self.crops,
            "card": None if self.card is None else str(self.card),
            "seconds": round(self.seconds, 3),
            **{key: value for key, value in self.facts.items() if key != "card"},
        }

    def lines(self) -> list[str]:
        """The summary for a person, one statement per line."""
        lines = [f"{self.path}: {self.size / 1e6:.1f} MB, {self.seconds:.1f} s"]
        parity = self.facts.get("parity", {})
        for name, found in (parity if self.format == "onnx" else {self.format: parity}).items():
            if "refused" in found:
                lines.append(f"Warning: {found['refused']}")
            elif "max_logit_difference" in found:
                against = found.get("compared_with", "torch")
                lines.append(
                    f"Compared with {against}, {name}: logits of {found['patches']} crops ({self.crops}) differ by at "
                    f"most {found['max_logit_difference']:.1e}, {found['classes_changed']} classes change"
                )
        if self.facts.get("cost"):
            lines.append(f"Warning: {self.facts['cost']['sentence']}")
        if self.card is not None:
            lines.append(f"Model card: {self.card}")
        lines.append("For research use only")
        return lines


def export(
    model: str | Path,
    output: str | Path,
    *,
    format: str = "onnx",
    layout: Layout = "patches",
    embeddings: bool = False,
    precision: Precision = "fp32",
    licence: str = "",
    store: str | Path | None = None,
    taxonomy: str | Path | None = None,
    pixel_size_um: float | None = None,
    overwrite: bool = False,
    log: Callable[[str], None] = _silent,
) -> ExportResult:
    """Write a trained model for other programs, with its model card; nothing is kept that answers otherwise than torch.

    Before the file is kept, its answers are compared with torch's at batches of 1, 2 and 7 crops: of the store that
    the model was trained on where it can be reached, else drawn ones.

    Parameters
    ----------
    model : path
        Run or bundle.
    output : path
        File or folder to make; its name ends as the format wants it.
    format : str
        ``"onnx"``, ``"bioimageio"``, ``"wsinfer"`` or ``"huggingface"``.
    layout, embeddings, precision
        Of ONNX files, see `hematokit.models.formats.onnx_file.OnnxSettings`. int8 is calibrated on training crops, and
        what float16 and int8 cost is measured on test crops.
    licence : str
        Of the weights, best as SPDX names it (``"CC-BY-4.0"``); every format says it.
    store : path, optional
        Where these crops are, if not where the model says.
    taxonomy : path, optional
        Taxonomy file with the same classes, whose names and colours replace the model's.
    pixel_size_um : float, optional
        Micrometres per pixel of the training images, if the bundle does not say.
    overwrite : bool
        Replace a file that exists; folders are never replaced.
    log : callable
        Told what is being done.

    Returns
    -------
    ExportResult

    Raises
    ------
    ModelError
        If the model cannot be loaded or exported, answers differ, classes have no colours, or the output exists or
        cannot be written.
    PluginError
        If the plugin that provides the backbone is not installed.
    StoreError, TaxonomyError
        If the store or the taxonomy given cannot be read.

    Examples
    --------
    >>> result = export("runs/coatnet", "coatnet.onnx")  # doctest: +SKIP
    >>> result.facts["parity"]["onnxruntime"]["max_logit_difference"]  # doctest: +SKIP
    """
    started = time.monotonic()
    licence = _settings(format, layout, embeddings, precision, licence)
    writer = importlib.import_module(FORMATS[format])
    output = Path(output)
    bundle = find_bundle(model)
    card_file = output.with_suffix(".md") if writer.SUFFIX == ".onnx" else None
    with _place(output, writer.SUFFIX, overwrite, card_file) as target:
        log("loading the model")
        loaded = load_model(bundle, "cpu", runtime="torch")
        crops = ExportCrops.find(loaded, store)
        classifier = _shareable(loaded, taxonomy, pixel_size_um)
        options: dict[str, Any] = {}
        if format == "onnx":
            smaller = precision != "fp32"
            calibration = crops.calibration() if precision == "int8" else None
            judged = crops.judged() if smaller else None
            options["settings"] = OnnxSettings(layout, embeddings, precision, calibration, judged)
        log("writing the model card")
        run = bundle.parent if (bundle.parent / "config.yaml").is_file() else None
        card = model_card(classifier, run, licence=licence)
        facts = writer.write(
            classifier, target, card=card, samples=crops.compared(), log=log, licence=licence, **options
        )
        with one_line_write_errors(output.parent, ModelError, _AGAIN):
            card_target = target.with_suffix(".md")
            if card_file is not None:
                write_atomically(card_target, facts["card"])
            # Both are whole before either has its name: a full disk leaves neither.
            target.replace(output)
            if card_file is not None:
                card_target.replace(card_file)
            sync_folder(output.parent)
    size = sum(file.stat().st_size for file in ([output] if output.is_file() else output.rglob("*")) if file.is_file())
    compared = "drawn ones" if crops.store is None else f"of {printable(crops.store.path.name)}"
    return ExportResult(output, format, facts, size, compared, card_file, time.monotonic() - started)


def _settings(format: str, layout: str, embeddings: bool, precision: str, licence: str) -> str:
    """Refuse what does not exist or go together, before any work; return the licence as one line."""
    if format not in FORMATS:
        raise ModelError(f"format {printable(format)!r} does not exist; choose among {', '.join(FORMATS)}")
    for word, known in ((layout, get_args(Layout)), (precision, get_args(Precision))):
        if word not in known:
            raise ModelError(f"{printable(word)!r} does not exist; choose among {', '.join(known)}")
    if format != "onnx" and (layout != "patches" or embeddings or precision != "fp32"):
        raise ModelError(
            f"--input, --embeddings, --fp16, --int8 go with --format onnx, not with {format}; leave them out"
        )
    return printable(licence)[:200]


class _place(contextlib.AbstractContextManager[Path]):
    """A path to write to, beside the one asked for; nothing of it is left behind.

    Raises
    ------
    ModelError
        On entering, before any work: if the name does not end as it should, the output exists, or the folder cannot be
        written.
    """

    def __init__(self, output: Path, suffix: str, overwrite: bool, beside: Path | None) -> None:
        self.output, self.suffix, self.overwrite = output, suffix, overwrite
        self.beside = beside
        self.target = output.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}{suffix}")
        self._made: list[Path] = []

    def __enter__(self) -> Path:
        shown = printable(str(self.output))
        if self.output.is_dir() or (self.output.exists() and not self.suffix):
            raise ModelError(f"{shown} exists; give an --output that does not, or remove it first")
        if self.suffix and self.output.suffix.lower() != self.suffix:
            raise ModelError(f"the name {shown} does not end in {self.suffix}; give --output {shown}{self.suffix}")
        for path in filter(None, (self.output, self.beside)):
            if path.exists() and not self.overwrite:
                raise ModelError(f"{printable(str(path))} exists; give another --output, or --overwrite")
        with one_line_write_errors(self.output.parent, ModelError, _AGAIN):
            folder = self.output.parent
            missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            self._made = missing
            # Tried before a minute's work, not after it.
            self.target.touch()
            self.target.unlink()
        return self.target

    def __exit__(self, *exception: object) -> None:
        if self.target.is_dir():
            shutil.rmtree(self.target, ignore_errors=True)
        for left in (self.target, self.target.with_suffix(".md")):
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only where it stayed empty


def _shareable(classifier: Classifier, taxonomy: str | Path | None, pixel_size_um: float | None) -> Classifier:
    """The same classifier with what was added, and without paths of this computer in its configuration."""
    from hematokit.models.classifier import Classifier

    if pixel_size_um is not None and not 0 < pixel_size_um < 1000:
        raise ModelError(f"a pixel of {pixel_size_um:g} um is not possible; give micrometres per pixel, such as 0.1")
    config = classifier.config
    classes = classifier.taxonomy if taxonomy is None else _same_classes(classifier, taxonomy)
    _check_colours(classes, config.taxonomy if taxonomy is None else classes.to_dict())
    training = {key: value for key, value in config.training.items() if key != "settings"}
    if isinstance(config.training.get("settings"), dict):
        given = config.training["settings"]
        training["settings"] = {key: value for key, value in given.items() if key not in _PATHS}
        if given.get("weights"):
            training["settings"]["weights"] = _last_part(str(given["weights"]))
    if training.get("store"):
        training["store"] = _last_part(str(training["store"]))
    config = config.model_copy(
        update={
            "training": training,
            "taxonomy": classes.to_dict(),
            "pixel_size_um": pixel_size_um if pixel_size_um is not None else config.pixel_size_um,
        }
    )
    made = Classifier(
        classifier.backbone,
        classes,
        classifier.input_spec,
        classifier.patch_size,
        classifier.temperature,
        config=config,
    )
    return made.eval()


def _last_part(path: str) -> str:
    """The name of a file or folder, whichever system wrote its path."""
    return PureWindowsPath(path).name or path


def _same_classes(classifier: Classifier, source: str | Path) -> Taxonomy:
    given = load_taxonomy(source)
    missing = [code for code in classifier.codes if code not in given]
    if missing:
        raise ModelError(
            f"taxonomy {printable(str(source))} lacks {', '.join(missing)}, which the model has; give a file with all"
        )
    # The order of the logits counts, not the file's.
    chosen = {entry.code: entry for entry in given.subset(classifier.codes)}
    return Taxonomy(given.name, tuple(chosen[code] for code in classifier.codes))


def _check_colours(taxonomy: Taxonomy, stated: dict[str, Any]) -> None:
    """Refuse classes that nobody could tell apart in a viewer: those that got the colour of "none given"."""
    said = {entry.get("code"): entry.get("colour") for entry in stated.get("classes", []) if isinstance(entry, dict)}
    missing = [entry.code for entry in taxonomy if not said.get(entry.code)]
    grey = [entry.code for entry in taxonomy if entry.colour == _GREY]
    without = missing or (grey if len(grey) > 1 else [])
    if without:
        raise ModelError(
            f"classes {', '.join(without)} of the model's taxonomy have no colour of their own, by which viewers tell "
            "them apart; give a file that has them with --taxonomy FILE"
        )
