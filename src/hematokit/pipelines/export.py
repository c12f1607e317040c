"""Export of a trained model to a format that other programs read: ``hematokit export``.

`ExportCrops` are the crops that an export is compared, calibrated and judged on: those of the training store where it
can be reached.
"""

from __future__ import annotations

import contextlib
import importlib
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.commands import CommandResult
from hematokit.errors import HematokitError, ModelError, printable
from hematokit.explanation.field_map import maps_to_patch
from hematokit.explanation.running import explain_cells
from hematokit.files import TEMPORARY_PREFIX, one_line_write_errors, sync_folder, write_atomically
from hematokit.imaging.reading import decode_rgb
from hematokit.models.bundle import find_bundle
from hematokit.models.formats.onnx_file import OnnxSettings
from hematokit.models.formats.packages import drawn_crops
from hematokit.models.formats.quantising import JudgedCrops
from hematokit.models.loading import load_model
from hematokit.models.runtimes.parity import sample_patches
from hematokit.overrides import ExportOverrides
from hematokit.pipelines.settings import ExportSettings
from hematokit.progress import no_log
from hematokit.reports.attributions import AttributedCell, class_figure
from hematokit.reports.model_card import CardPicture, evaluation_results, model_card
from hematokit.reports.rendering import to_png
from hematokit.store import PatchStore, open_store
from hematokit.taxonomy import MATEK_21, REST, Taxonomy, load_taxonomy

if TYPE_CHECKING:
    from hematokit.models.classifier import Classifier

__all__ = ["ExportCrops", "ExportResult", "FORMATS", "drawn_example", "export"]

_COMPARED: Final = 21
_CALIBRATION: Final = 128
_JUDGED: Final = 1000
_SHOWN: Final = 8
_METHOD: Final = "grad-cam"

Patches = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ExportCrops:
    """The patches on which an exported model is compared with torch.

    Attributes
    ----------
    store : PatchStore or None
        None if there is none; drawn patches are used instead.
    codes : tuple of str
        The classifier's classes.
    side : int
        Side of its patches in pixels.
    changed : bool
        Whether the store, or its split, is not what it was at training.
    """

    store: PatchStore | None
    codes: tuple[str, ...]
    side: int
    changed: bool = False

    @classmethod
    def find(cls, classifier: Classifier, store: str | Path | None = None) -> ExportCrops:
        """Open the given store, or the one that the classifier was trained on, if it exists.

        Raises
        ------
        ModelError
            If the given store has patches of another size.
        StoreError
            If the given store cannot be opened.
        """
        opened: PatchStore | None = None
        if store is not None:
            opened = open_store(store)
            if opened.patch_size != classifier.patch_size:
                raise ModelError(
                    f"store {store} has patches of {opened.patch_size} px, the model takes {classifier.patch_size} px; "
                    "give the store that it was trained on"
                )
        else:
            opened = _reachable(classifier)
        changed = opened is not None and _split_hash(opened) != _stated_split(classifier)
        return cls(opened, classifier.codes, classifier.patch_size, changed)

    def compared(self) -> Patches:
        """Return up to 21 patches of all classes, of the test split if there is one; drawn ones without a store."""
        if self.store is None:
            return sample_patches(self.side)
        found = self._of("test")
        if not len(found):
            found = self._known(self.store.cells)
        return self._read(_spread(found, _COMPARED)) if len(found) else sample_patches(self.side)

    def calibration(self) -> Patches | None:
        """Return up to 128 training patches of all classes; None if there are none."""
        found = _spread(self._of("train"), _CALIBRATION)
        return self._read(found) if len(found) else None

    def judged(self) -> JudgedCrops | None:
        """Return up to 1000 labelled test patches; None if there are none."""
        cells = self._of("test")
        if not len(cells):
            return None
        chosen = cells if len(cells) <= _JUDGED else cells.sample(_JUDGED, random_state=0)
        where = {code: place for place, code in enumerate(self.codes)}
        labels = np.array([where.get(label, where.get(REST, -1)) for label in chosen["label"]], np.int64)
        what = f"{len(chosen):,} of {len(cells):,} test cells"
        if self.changed:
            what += ", the store or its split having changed since training"
        return JudgedCrops(self._read(chosen), labels, what)

    def _of(self, split: str) -> pd.DataFrame:
        if self.store is None:
            return pd.DataFrame({"label": [], "cell_id": []})
        cells = self.store.cells
        return self._known(cells[cells["split"] == split])

    def _known(self, cells: pd.DataFrame) -> pd.DataFrame:
        """Return the cells of the classifier's classes; all cells for a one-vs-rest classifier."""
        return cells if REST in self.codes else cells[cells["label"].isin(self.codes)]

    def _read(self, cells: pd.DataFrame) -> Patches:
        assert self.store is not None  # there are cells
        return self.store.patches(cells["cell_id"].tolist())


def _spread(cells: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return cells taken from each class in turn, so that no class is missing."""
    turn = cells.groupby("label").cumcount()
    return cells.iloc[np.argsort(turn.to_numpy(), kind="stable")[:count]]


def _reachable(classifier: Classifier) -> PatchStore | None:
    """Return the store that the classifier was trained on, if it is at the path in the bundle; otherwise None."""
    stated = classifier.config.training.store
    try:
        opened = open_store(stated) if stated and Path(stated).exists() else None
    except (HematokitError, OSError):
        return None
    return opened if opened is not None and opened.patch_size == classifier.patch_size else None


def _split_hash(store: PatchStore) -> str:
    return str((store.split_info or {}).get("hash", ""))


def _stated_split(classifier: Classifier) -> str:
    stated = classifier.config.training.split
    return (stated.hash if stated is not None else None) or ""


FORMATS: Final = {
    "onnx": "hematokit.models.formats.onnx_file",
    "bioimageio": "hematokit.models.formats.bioimageio",
    "wsinfer": "hematokit.models.formats.wsinfer",
    "huggingface": "hematokit.models.formats.huggingface",
}
"""Format to the module that writes it.

Each has ``write(classifier, target, *, card, samples, log, licence) -> facts``, and ``SUFFIX``, how the name of what it
writes ends (``""``: a folder). `target` is a path that does not exist yet, beside the one asked for; it is moved into
place when `write` returns, and removed when it raises. The facts are JSON-serialisable: the figures of the
comparison with torch.
"""

_AGAIN: Final = "give an --output in a folder that can be written to and has free space"
_GREY: Final = "#7f7f7f"


@dataclass(frozen=True)
class ExportResult(CommandResult):
    """Result of an export.

    Attributes
    ----------
    path : Path
        File or folder.
    format : str
    facts : dict
        Measurements: ``parity`` with torch, and others that depend on the format.
    size : int
        Bytes.
    crops : str
        Description of the patches compared.
    card : Path or None
        The model card, if it is beside the file and not in the folder.
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
        """Return JSON-serialisable values."""
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
        """Return the main figures and the paths, one line each."""
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
    settings: ExportSettings | None = None,
    log: Callable[[str], None] = no_log,
    **overrides: Unpack[ExportOverrides],
) -> ExportResult:
    """Write a trained model for other programs, with its model card, after comparing its output with that of torch.

    The logits are compared with those of torch at batches of 1, 2 and 7 patches: of the store that the model was
    trained on if it can be opened, otherwise drawn ones. A file whose logits differ is not kept.

    Parameters
    ----------
    model : path
        Run or bundle.
    output : path
        File or folder to write; its name ends as the format requires.
    settings : ExportSettings, optional
        int8 is calibrated on training patches; the effect of fp16 and int8 on the predictions is measured on test
        patches. Folders are never overwritten.
    log : callable
        Called with one line of text for each step.
    **overrides
        Fields of `ExportSettings`; they take precedence over `settings`.

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
    >>> result = export("runs/coatnet", "coatnet.onnx")
    >>> result.facts["parity"]["onnxruntime"]["max_logit_difference"] < 1e-3
    True
    """
    started = time.monotonic()
    settings = ExportSettings.combine(settings, overrides)
    format, precision = settings.format, settings.precision
    licence = _usable_licence(settings)
    writer = importlib.import_module(FORMATS[format])
    output = Path(output)
    bundle = find_bundle(model)
    card_file = output.with_suffix(".md") if writer.SUFFIX == ".onnx" else None
    with _place(output, writer.SUFFIX, settings.overwrite, card_file) as target:
        log("loading the model")
        loaded = load_model(bundle, "cpu", runtime="torch")
        crops = ExportCrops.find(loaded, settings.store)
        classifier = _shareable(loaded, settings.taxonomy, settings.pixel_size_um)
        options: dict[str, Any] = {}
        if format == "onnx":
            smaller = precision != "fp32"
            calibration = crops.calibration() if precision == "int8" else None
            judged = crops.judged() if smaller else None
            options["settings"] = OnnxSettings(settings.layout, settings.embeddings, precision, calibration, judged)
        log("writing the model card")
        run = bundle.parent if (bundle.parent / "config.yaml").is_file() else None
        card = model_card(classifier, run, explanation=drawn_example(classifier), licence=licence)
        if format == "huggingface":
            options["results"] = evaluation_results(classifier.config, run)
        facts = writer.write(
            classifier, target, card=card, samples=crops.compared(), log=log, licence=licence, **options
        )
        with one_line_write_errors(output.parent, ModelError, _AGAIN):
            card_target = target.with_suffix(".md")
            if card_file is not None:
                write_atomically(card_target, facts["card"])
            # Both files are complete before either is renamed, so that a full disk leaves neither.
            target.replace(output)
            if card_file is not None:
                card_target.replace(card_file)
            sync_folder(output.parent)
    size = sum(file.stat().st_size for file in ([output] if output.is_file() else output.rglob("*")) if file.is_file())
    compared = "drawn ones" if crops.store is None else f"of {printable(crops.store.path.name)}"
    return ExportResult(output, format, facts, size, compared, card_file, time.monotonic() - started)


def drawn_example(classifier: Classifier) -> CardPicture:
    """Explain drawn cells, one per class, for a model card.

    Drawn cells are used because a model card is published with the model, and images of patients' cells should not be
    published by default.

    Parameters
    ----------
    classifier : Classifier
        Computed by torch.

    Returns
    -------
    CardPicture
        Without an image, but with the reason, if none of its classes can be drawn or its backbone cannot be explained.
    """
    codes = [code for code in classifier.codes if code in MATEK_21][:_SHOWN]
    if not codes:
        return CardPicture("None here: none of its classes can be drawn. hematokit explain explains real cells.")
    patches = drawn_crops(codes, classifier.patch_size)
    try:
        maps = explain_cells(classifier, patches, methods=[_METHOD])[_METHOD]
    except HematokitError as error:
        return CardPicture(f"None here: {error}")
    maps = maps_to_patch(maps, classifier.patch_size, classifier.input_spec)
    predictions = classifier.predict(patches)
    cells = {}
    for row, code in enumerate(codes):
        predicted, probability = predictions["predicted"].iloc[row], predictions["probability"].iloc[row]
        cells[code] = AttributedCell("", code, predicted, probability, predicted, patches[row], {_METHOD: maps[row]})
    caption = (
        "Drawn cells, one a class, and below them the pixels that the model's answers rest on (Grad-CAM, Selvaraju et "
        "al. 2017). The drawings show where the model looks, not how good it is: it was not made for drawn cells. "
        "Small print is what it takes each for. Explain real cells with hematokit explain."
    )
    content = to_png(class_figure(cells, [_METHOD]), dpi=120)
    return CardPicture.from_pixels(
        decode_rgb(content, name=_METHOD), caption, "Drawn cells and what the model looks at"
    )


def _usable_licence(settings: ExportSettings) -> str:
    """Raise an error for options that the format does not have; return the licence as one line."""
    if settings.format != "onnx" and (settings.layout, settings.embeddings, settings.precision) != (
        "patches",
        False,
        "fp32",
    ):
        raise ModelError(
            f"--layout, --embeddings and --precision go with --format onnx, not with {settings.format}; leave them out"
        )
    return printable(settings.licence)[:200]


class _place(contextlib.AbstractContextManager[Path]):
    """A temporary path beside the output; removed if the export fails.

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
            # Tried first, so that a folder that cannot be written to fails at once.
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
    """Return the classifier with the given taxonomy and pixel size, without paths of this computer in its metadata."""
    from hematokit.models.classifier import Classifier

    if pixel_size_um is not None and not 0 < pixel_size_um < 1000:
        raise ModelError(f"a pixel of {pixel_size_um:g} um is not possible; give micrometres per pixel, such as 0.1")
    config = classifier.config
    classes = classifier.taxonomy if taxonomy is None else _same_classes(classifier, taxonomy)
    _check_colours(classes)
    config = config.model_copy(
        update={
            "training": config.training.without_folders(),
            "taxonomy": classes,
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


def _same_classes(classifier: Classifier, source: str | Path) -> Taxonomy:
    given = load_taxonomy(source)
    missing = [code for code in classifier.codes if code not in given]
    if missing:
        raise ModelError(
            f"taxonomy {printable(str(source))} lacks {', '.join(missing)}, which the model has; give a file with all"
        )
    # The order is that of the logits, not that of the file.
    chosen = {entry.code: entry for entry in given.subset(classifier.codes)}
    return Taxonomy(given.name, tuple(chosen[code] for code in classifier.codes))


def _check_colours(taxonomy: Taxonomy) -> None:
    """Raise an error if classes have no colour of their own, as a viewer could not distinguish them."""
    without = [entry.code for entry in taxonomy if entry.colour == _GREY]
    if len(without) > 1:
        raise ModelError(
            f"classes {', '.join(without)} of the model's taxonomy have no colour of their own, by which viewers tell "
            "them apart; give a file that has them with --taxonomy FILE"
        )
