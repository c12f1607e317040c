"""Crops that an export is compared, calibrated and judged on: of the training store where it can be reached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.errors import HematokitError, ModelError
from hematokit.evaluation.evaluate import REST
from hematokit.evaluation.predictor import training_store
from hematokit.models.parity import sample_patches
from hematokit.models.quantising import JudgedCrops
from hematokit.store import PatchStore, open_store

if TYPE_CHECKING:
    from hematokit.models.classifier import Classifier

__all__ = ["ExportCrops"]

_COMPARED: Final = 21
_CALIBRATION: Final = 128
_JUDGED: Final = 1000

Patches = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ExportCrops:
    """Where an export's crops come from.

    Attributes
    ----------
    store : PatchStore or None
        None: there is none, and drawn patches have to do.
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
        """Open the store given, or the one that the classifier was trained on if it is there.

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
        """Return up to 21 crops of all classes, of the test split if there is one; drawn ones without a store."""
        if self.store is None:
            return sample_patches(self.side)
        found = self._of("test")
        if not len(found):
            found = self._known(self.store.cells)
        return self._read(_spread(found, _COMPARED)) if len(found) else sample_patches(self.side)

    def calibration(self) -> Patches | None:
        """Return up to 128 training crops of all classes; None without any."""
        found = _spread(self._of("train"), _CALIBRATION)
        return self._read(found) if len(found) else None

    def judged(self) -> JudgedCrops | None:
        """Return up to 1000 labelled test crops; None without any."""
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
        """Cells of the classifier's classes; of all, where one class is the rest."""
        return cells if REST in self.codes else cells[cells["label"].isin(self.codes)]

    def _read(self, cells: pd.DataFrame) -> Patches:
        assert self.store is not None  # there are cells
        return self.store.patches(cells["cell_id"].tolist())


def _spread(cells: pd.DataFrame, count: int) -> pd.DataFrame:
    """Cells by turns from each class, so that none is missing."""
    turn = cells.groupby("label").cumcount()
    return cells.iloc[np.argsort(turn.to_numpy(), kind="stable")[:count]]


def _reachable(classifier: Classifier) -> PatchStore | None:
    """The store that the classifier was trained on, if it is where the bundle says and still one."""
    stated = training_store(classifier)
    try:
        opened = open_store(stated) if stated is not None and stated.exists() else None
    except (HematokitError, OSError):
        return None
    return opened if opened is not None and opened.patch_size == classifier.patch_size else None


def _split_hash(store: PatchStore) -> str:
    return str((store.split_info or {}).get("hash", ""))


def _stated_split(classifier: Classifier) -> str:
    stated = classifier.config.training.get("split")
    return str(stated.get("hash", "")) if isinstance(stated, dict) else ""
