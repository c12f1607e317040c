"""Running explainers over cells, batch by batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hematokit.errors import ExplanationError, PluginError, naming
from hematokit.plugins import MadeExplainer, load_plugins
from hematokit.plugins.specs import complete_explainer
from hematokit.progress import Progress, no_progress

if TYPE_CHECKING:
    import torch

    from hematokit.models import Classifier
    from hematokit.plugins.specs import Explainer

__all__ = [
    "ExplainedBatch",
    "attribute_in_batches",
    "attribute_targets",
    "explain_cells",
    "explain_in_batches",
    "make_explainer",
    "make_explainers",
    "own_modules",
    "run_explainer",
]

Positions = npt.NDArray[np.int64]
Patches = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.float32]
ChooseTargets = Callable[[Positions, npt.NDArray[np.float32]], npt.NDArray[np.int64]]
"""From positions of cells and their logits (n, C) to positions of classes, (n,) or (n, T)."""


@dataclass(frozen=True)
class ExplainedBatch:
    """Maps of a few cells.

    Attributes
    ----------
    positions : ndarray of int64, shape (n,)
        Which cells.
    patches : ndarray of uint8, shape (n, P, P, 3)
    logits : ndarray of float32, shape (n, C)
        Uncalibrated.
    targets : ndarray of int64, shape (n,) or (n, T)
        Positions of the classes explained.
    maps : dict of str to ndarray of float32, shape (n, S, S) or (n, T, S, S)
        By method, in input pixels.
    """

    positions: Positions
    patches: Patches
    logits: npt.NDArray[np.float32]
    targets: npt.NDArray[np.int64]
    maps: dict[str, Maps]


def make_explainer(name: str, options: Mapping[str, object] | None = None, *, seed: int = 0) -> MadeExplainer:
    """Make a registered explainer.

    Parameters
    ----------
    name : str
        As ``hematokit plugins`` lists it.
    options : mapping, optional
        Its options, checked and completed.
    seed : int
        Given to explainers that have an option ``seed``, unless `options` says otherwise.

    Raises
    ------
    PluginError
        If no explainer has that name, an option does not fit, or it cannot be made.
    """
    registry = load_plugins().explainers
    given = dict(options or {})
    if "seed" in registry.get(name).options:
        given.setdefault("seed", seed)
    return registry.make(name, given)


def make_explainers(
    methods: Sequence[str], options: Mapping[str, Mapping[str, object]] | None = None, *, seed: int = 0
) -> dict[str, MadeExplainer]:
    """Make several explainers.

    Parameters
    ----------
    methods : sequence of str
        Names, in the order in which maps are shown.
    options : mapping of str to mapping, optional
        Options by method.
    seed : int
        As for `make_explainer`.

    Raises
    ------
    PluginError
        If one cannot be made, none is named, or options are given for a method that is not.
    """
    names = list(dict.fromkeys(methods))
    if not names:
        raise PluginError(f"no method was named; there are: {', '.join(load_plugins().explainers.names())}")
    options = options or {}
    made = {name: make_explainer(name, options.get(name), seed=seed) for name in names}
    for name in options:
        if name not in made:
            load_plugins().explainers.get(name)  # raises an error for a misspelt name
            raise PluginError(f"options are set for {name}, which is not among the methods ({', '.join(names)})")
    return made


def attribute_targets(
    explainer: Explainer, classifier: Classifier, images: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Return the maps of several classes for each image.

    Parameters
    ----------
    explainer : Explainer
        Called through `attribute_many`, whose default calls `attribute` once per class.
    classifier : Classifier
    images : Tensor, shape (B, 3, H, W), float32 in [0, 1]
    targets : Tensor, shape (B, T), int64

    Returns
    -------
    Tensor, shape (B, T, H, W), float32
    """
    return complete_explainer(explainer).attribute_many(classifier, images, targets)


def own_modules(classifier: Classifier) -> Classifier:
    """Copy the modules and share the tensors, which costs milliseconds and no memory.

    Explainers put hooks on modules; a model that another thread computes with at the same time must not meet them.
    """
    shared = {id(tensor): tensor for tensor in (*classifier.parameters(), *classifier.buffers())}
    return copy.deepcopy(classifier, shared)


def explain_in_batches(
    classifier: Classifier,
    read: Callable[[Positions], Patches],
    count: int,
    choose: ChooseTargets,
    explainers: Mapping[str, MadeExplainer],
    *,
    start: int = 0,
    batch_size: int = 16,
    progress: Progress = no_progress,
) -> Iterator[ExplainedBatch]:
    """Classify and explain cells batch by batch.

    Parameters
    ----------
    classifier : Classifier
        Computed by torch.
    read : callable
        ``read(positions) -> patches (n, P, P, 3) uint8``.
    count : int
        How many cells there are.
    choose : callable
        Returns the classes to explain, from positions and logits.
    explainers : mapping of str to MadeExplainer
    start : int
        First position; those before are done.
    batch_size : int
        Cells at a time.
    progress : Progress
        Called after each method of each batch.

    Yields
    ------
    ExplainedBatch

    Raises
    ------
    PluginError
        If an explainer fails, cannot explain this network, or returns maps of another shape or not finite.
    """
    import torch

    if batch_size < 1:
        raise ExplanationError(f"a batch of {batch_size} cells is not possible; give --batch-size 1 or more")
    classifier = own_modules(classifier)
    for first in range(start, count, batch_size):
        positions = np.arange(first, min(first + batch_size, count), dtype=np.int64)
        patches = read(positions)
        logits = classifier.logits(patches, batch_size=batch_size)
        targets = choose(positions, logits)
        images = classifier.prepare(torch.from_numpy(patches.copy()).to(classifier.device))
        places = torch.from_numpy(targets).to(classifier.device)
        maps = {}
        for name, explainer in explainers.items():
            maps[name] = run_explainer(explainer, classifier, images, places)
            progress(int(positions[0]), count, name)
        yield ExplainedBatch(positions, patches, logits, targets, maps)
        progress(int(positions[-1]) + 1, count, "")


def run_explainer(named: MadeExplainer, classifier: Classifier, images: torch.Tensor, targets: torch.Tensor) -> Maps:
    """Compute the maps of one explainer, and check them.

    Parameters
    ----------
    named : MadeExplainer
    classifier : Classifier
        Its modules get the explainer's hooks; see `own_modules`.
    images : Tensor, shape (B, 3, H, W), float32 in [0, 1]
    targets : Tensor, shape (B,) or (B, T), int64
        Positions of the classes to explain.

    Returns
    -------
    ndarray of float32, shape (B, H, W) or (B, T, H, W)

    Raises
    ------
    PluginError
        If the explainer fails, cannot explain this network, or returns maps of another shape or not finite.
    """
    who = named.title
    with naming(who):
        if targets.ndim == 2:
            maps = attribute_targets(named.value, classifier, images, targets)
        else:
            maps = named.value.attribute(classifier, images, targets)
    found = _as_array(maps, (*targets.shape, *images.shape[2:]), who)
    if not np.isfinite(found).all():
        raise PluginError(f"{who} returned numbers that are not finite; tell its author")
    return found


def _as_array(maps: object, expected: tuple[int, ...], who: str) -> Maps:
    import torch

    if not isinstance(maps, torch.Tensor) or tuple(maps.shape) != expected:
        returned = tuple(maps.shape) if isinstance(maps, torch.Tensor) else type(maps).__name__
        raise PluginError(f"{who} returned {returned}, not maps {expected}; tell its author")
    array: Maps = maps.detach().to("cpu", torch.float32).numpy()
    return array


def attribute_in_batches(
    explainer: Explainer,
    classifier: Classifier,
    images: torch.Tensor,
    targets: torch.Tensor,
    *,
    batch_size: int = 16,
    progress: Progress = no_progress,
) -> Maps:
    """Explain prepared images a few at a time, as the checks of explanations do.

    Parameters
    ----------
    explainer : Explainer
        Registered or not.
    classifier : Classifier
        Any model, also a randomised copy.
    images : Tensor, shape (n, 3, S, S), float32 in [0, 1]
        On any device, as ``classifier.prepare`` gives them.
    targets : Tensor, shape (n,), int64
        Positions of the classes explained.
    batch_size : int
        Images at a time.
    progress : Progress
        Called after each batch.

    Returns
    -------
    ndarray of float32, shape (n, S, S)
        Values that are not finite are kept; the checks count such maps as unrelated to any other.

    Raises
    ------
    PluginError
        If the explainer returns something else than one map per image, of the image's size.
    """
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size].to(classifier.device)
        maps = explainer.attribute(classifier, batch, targets[start : start + batch_size].to(classifier.device))
        parts.append(_as_array(maps, (len(batch), *batch.shape[2:]), f"explainer {type(explainer).__name__}"))
        progress(start + len(batch), len(images), "")
    return np.concatenate(parts)


def explain_cells(
    classifier: Classifier,
    patches: Patches,
    targets: npt.ArrayLike | None = None,
    methods: Sequence[str] | Mapping[str, MadeExplainer] = ("grad-cam", "smoothgrad"),
    *,
    options: Mapping[str, Mapping[str, object]] | None = None,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress = no_progress,
) -> dict[str, Maps]:
    """Explain patches in memory.

    Parameters
    ----------
    classifier : Classifier
        From `hematokit.load_model`.
    patches : ndarray of uint8, shape (n, P, P, 3)
    targets : array-like of int, shape (n,) or (n, T), optional
        Positions of the classes to explain, in the order of ``classifier.codes``; the predicted ones by default.
    methods : sequence of str, or mapping of str to MadeExplainer
        Names of registered explainers, or explainers made before.
    options : mapping, optional
        Options by method, where methods are named.
    seed : int
        Of explainers that have chance in them.
    batch_size : int
        Cells at a time; maps do not depend on it.
    progress : Progress

    Returns
    -------
    dict of str to ndarray of float32, shape (n, S, S) or (n, T, S, S)
        By method: in pixels of the network's input, unnormalised.

    Raises
    ------
    ModelError
        If the patches are of another size than the model takes.
    PluginError
        If a method does not exist or cannot explain this network.

    Examples
    --------
    >>> from hematokit import load_model, open_store
    >>> store = open_store("bm.zarr")
    >>> patches = store.patches(store.cells["cell_id"][:16])
    >>> maps = explain_cells(load_model("runs/coatnet"), patches, methods=["grad-cam"])
    >>> maps["grad-cam"].shape
    (16, 64, 64)
    """
    explainers = methods if isinstance(methods, Mapping) else make_explainers(methods, options, seed=seed)
    given = None if targets is None else np.asarray(targets, dtype=np.int64)

    def choose(positions: Positions, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        return logits.argmax(1).astype(np.int64) if given is None else given[positions]

    parts: dict[str, list[Maps]] = {name: [] for name in explainers}
    for batch in explain_in_batches(
        classifier,
        lambda positions: patches[positions],
        len(patches),
        choose,
        explainers,
        batch_size=batch_size,
        progress=progress,
    ):
        for name, maps in batch.maps.items():
            parts[name].append(maps)
    side = classifier.input_spec.size
    empty = np.zeros((0, *(given.shape[1:] if given is not None else ()), side, side), np.float32)
    return {name: np.concatenate(found) if found else empty for name, found in parts.items()}
