"""A classifier in seconds: embed each cell once with the frozen transformer, then fit only the head.

What comes out is a bundle like that of ``hematokit train``: evaluate, explain, export and serve take it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from hematokit import open_store
from hematokit.errors import StoreError, TrainingError
from hematokit.evaluation.calibration import fit_temperature
from hematokit.evaluation.metrics import validation_scores
from hematokit.files import write_atomically
from hematokit.models import Classifier, build_backbone, choose_backbone, resolve_device, save_bundle
from hematokit.pipelines.train import facts_at_start
from hematokit.progress import Progress, no_progress
from hematokit.training.balance import class_weights
from hematokit.training.data import TrainingData, select_cells

if TYPE_CHECKING:
    from hematokit import PatchStore

__all__ = ["PENALTIES", "ProbeResult", "choose_linear", "embed_cells", "fit_linear", "probe"]

_FLAT: Final = 1e-2
"""Least deviation of a feature that is made 1, as a share of all features' root mean square."""

PENALTIES: Final = (1e-4, 1e-3, 1e-2, 1e-1)
"""Strengths of the penalty that are tried; the best one on the validation cells is kept."""

_WITHOUT_VALIDATION: Final = 1e-2

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ProbeResult:
    """What became of a probe.

    Attributes
    ----------
    bundle : Path
        Where it is.
    cells : int
        Training cells.
    validation : dict
        ``accuracy``, ``balanced_accuracy`` and ``macro_f1`` on the validation cells; empty where there are none.
    embeddings : Path
        The cache, for the next probe of the same cells.
    cached : bool
        Whether the embeddings came from it.
    seconds : float
        In all.
    """

    bundle: Path
    cells: int
    validation: dict[str, float]
    embeddings: Path
    cached: bool
    seconds: float


def probe(
    store: str | Path,
    output: str | Path,
    *,
    weights: str | Path | None = None,
    pretrained: bool = False,
    variant: str | None = None,
    head: str = "linear",
    neighbours: int = 20,
    image_size: int | None = None,
    exclude: list[str] | None = None,
    balanced: bool = True,
    embeddings: str | Path | None = None,
    batch_size: int = 32,
    device: str = "auto",
    seed: int = 0,
    progress: Progress = no_progress,
    log: Callable[[str], None] | None = None,
    command: Sequence[str] = (),
) -> ProbeResult:
    """Fit a head on frozen embeddings of a store's training cells, and write a bundle.

    Parameters
    ----------
    store : path
        Patch store with a split.
    output : path
        Bundle folder to write.
    weights : path, optional
        DinoBloom or DINOv2 checkpoint. Without it and `pretrained` the transformer is random, which is said.
    pretrained : bool
        Fetch the weights from the hub instead.
    variant : str, optional
        ``"s"`` (default), ``"b"``, ``"l"`` or ``"g"``.
    head : str
        ``"linear"`` (multinomial logistic regression) or ``"knn"``.
    neighbours : int
        Of the k-NN head.
    image_size : int, optional
        Side of the input in pixels, a multiple of 14; 224 by default.
    exclude : list of str, optional
        Codes left out; by default the taxonomy's rejects.
    balanced : bool
        Let rare classes weigh as much as frequent ones in the linear head.
    embeddings : path, optional
        Where the embeddings are kept, by default beside `output`. They are used again only for the same cells, weights
        and input.
    batch_size : int
        Cells embedded at a time.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    seed : int
        Of a transformer without weights.
    progress : Progress
        Counts cells.
    log : callable, optional
        Given lines for people.
    command : sequence of str
        Words of the command that this is done for, for the model card; see `hematokit.cli.common.recorded_command`.

    Returns
    -------
    ProbeResult

    Raises
    ------
    TrainingError, StoreError, ModelError, PluginError
        One line each: a store without a split, an output that exists, weights that do not fit.
    """
    started, output = time.monotonic(), Path(output)
    say = log or (lambda line: None)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise TrainingError(f"{output} exists and is not empty; give another --output")
    patches = open_store(store)
    data = select_cells(patches, exclude)
    options = {"head": head, "neighbours": neighbours, "freeze": True}
    choice = choose_backbone("dinobloom", variant, image_size, options)
    torch.manual_seed(seed)
    backbone: Any = build_backbone(choice, len(data.taxonomy), pretrained=pretrained, weights=weights)
    if weights is None and not pretrained:
        say("No weights were given: the transformer is random, and the result is a baseline at best")
    if warning := data.pixel_size_warning():
        say(f"Warning: {warning}")
    place = resolve_device(device)
    classifier = Classifier(backbone, data.taxonomy, choice.input, patches.patch_size).to(place).eval()
    cache = Path(embeddings) if embeddings is not None else output.parent / "dinobloom-embeddings.safetensors"
    used = [name for name in ("train", "val") if len(data.splits[name])]
    rows = np.concatenate([data.splits[name].rows for name in used])
    key = _key(patches, classifier)
    found = _read_cache(cache, key, rows)
    if found is None:
        found_now = embed_cells(classifier, patches, rows, batch_size, progress)
        _write_cache(cache, key, rows, found_now)
        all_embeddings = found_now
    else:
        say(f"Embeddings of {len(rows)} cells are taken from {cache}")
        all_embeddings = found
    count = len(data.splits["train"])
    train, val = all_embeddings[:count], all_embeddings[count:]
    penalty, scores = _fit_head(classifier, data, train, val, balanced)
    facts = facts_at_start(patches, data, choice, place) | {
        "augmenter": "none",
        "balance": "weighted-loss" if balanced and head == "linear" else "none",
        "exclude": sorted(data.left_out),
        "one_vs_rest": None,
        "seed": seed,
        "validation": scores,
        "probe": {"head": head, "penalty": penalty, "neighbours": neighbours if head == "knn" else None},
        "weights": _provenance(weights, pretrained),
        "seconds": round(time.monotonic() - started, 1),
        "command": list(command),
    }
    try:
        save_bundle(output, classifier.cpu(), choice, facts, pixel_size_um=data.pixel_size_um)
    except OSError as error:
        raise TrainingError(f"bundle {output} cannot be written ({error.strerror}); make room there") from error
    return ProbeResult(output, count, scores, cache, found is not None, round(time.monotonic() - started, 1))


@torch.inference_mode()
def embed_cells(
    classifier: Classifier,
    store: PatchStore,
    rows: Labels,
    batch_size: int = 32,
    progress: Progress = no_progress,
) -> torch.Tensor:
    """Embed cells of a store, without augmentation.

    Parameters
    ----------
    classifier : Classifier
        Around a `hematokit_dinobloom.network.DinoBloom`, or another backbone that has ``embed``.
    store : PatchStore
    rows : ndarray (n,), int64
        Rows of the store.
    batch_size : int
    progress : Progress

    Returns
    -------
    Tensor, shape (n, D), float32, on the CPU
    """
    backbone: Any = classifier.backbone
    parts = []
    for start in range(0, len(rows), batch_size):
        batch = torch.from_numpy(store.read_rows(rows[start : start + batch_size])).to(classifier.device)
        images = (classifier.prepare(batch) - classifier.mean) / classifier.std
        parts.append(backbone.embed(images).float().cpu())
        progress(min(start + batch_size, len(rows)), len(rows), "embedding")
    # A copy outside of inference mode, so that the head can be fitted on it.
    with torch.inference_mode(False):
        return torch.cat(parts).clone() if parts else torch.zeros(0, backbone.body.num_features)


def fit_linear(
    embeddings: torch.Tensor, labels: torch.Tensor, classes: int, penalty: float, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit a multinomial logistic regression by L-BFGS, on standardised features.

    Parameters
    ----------
    embeddings : Tensor (n, D), float32
    labels : Tensor (n,), int64
    classes : int
    penalty : float
        Half of it times the squared weights is added to the mean loss.
    weights : Tensor (classes,), optional
        Of the classes in the loss.

    Returns
    -------
    weight (classes, D), bias (classes,) : Tensor
        For embeddings as they are: the standardisation is folded in.
    """
    # A feature that hardly varies is not blown up: its differences are rounding, which another engine rounds otherwise.
    least = max(1e-6, _FLAT * float(embeddings.square().mean().sqrt()))
    mean, spread = embeddings.mean(0), embeddings.std(0, correction=0).clamp_min(least)
    features = (embeddings - mean) / spread
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = functional.cross_entropy(features @ weight.T + bias, labels, weight=weights)
        loss = loss + penalty / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    scaled = weight.detach() / spread
    return scaled, bias.detach() - scaled @ mean


def choose_linear(
    train: torch.Tensor,
    labels: torch.Tensor,
    val: torch.Tensor,
    truth: Labels,
    classes: int,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Fit a linear head with each of `PENALTIES`, and keep the one with the best macro F1 on the validation cells.

    Parameters
    ----------
    train, val : Tensor (n, D), float32
        Embeddings; without validation cells a middle penalty is taken.
    labels : Tensor (n,), int64
        Of the training cells.
    truth : ndarray (m,), int64
        Of the validation cells.
    classes, weights
        As in `fit_linear`.

    Returns
    -------
    weight, bias : Tensor
        As of `fit_linear`.
    penalty : float
    """
    best, kept = -1.0, None
    for penalty in PENALTIES if len(val) else (_WITHOUT_VALIDATION,):
        weight, bias = fit_linear(train, labels, classes, penalty, weights)
        score = validation_scores(truth, (val @ weight.T + bias).numpy())["macro_f1"] if len(val) else 0.0
        if score > best:
            best, kept = score, (weight, bias, penalty)
    assert kept is not None
    return kept


def _fit_head(
    classifier: Classifier, data: TrainingData, train: torch.Tensor, val: torch.Tensor, balanced: bool
) -> tuple[float | None, dict[str, float]]:
    """Fit head and temperature in place; return the penalty and the figures on the validation cells."""
    from hematokit_dinobloom.network import KnnHead

    head: Any = classifier.backbone.head
    labels, truth = data.splits["train"].labels, data.splits["val"].labels
    targets, classes = torch.from_numpy(labels), len(data.taxonomy)
    penalty: float | None = None
    if isinstance(head, KnnHead):
        head.fill(train, targets)
    else:
        balance = torch.from_numpy(class_weights(labels, classes)) if balanced else None
        weight, bias, penalty = choose_linear(train, targets, val, truth, classes, balance)
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
    if not len(val):
        return penalty, {}
    with torch.no_grad():
        logits = head(val.to(classifier.device)).float().cpu().numpy()
    classifier.temperature = fit_temperature(logits, truth)
    return penalty, validation_scores(truth, logits)


def _provenance(weights: str | Path | None, pretrained: bool) -> dict[str, str]:
    if weights is None:
        return {"from": "the hub" if pretrained else "none"}
    with Path(weights).open("rb") as file:
        return {"from": Path(weights).name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _key(store: PatchStore, classifier: Classifier) -> str:
    """What embeddings depend on: the cells, the transformer, the input."""
    digest = hashlib.sha256(f"{store.content_hash} {classifier.input_spec} {classifier.patch_size}".encode())
    for name, value in classifier.backbone.body.state_dict().items():  # type: ignore[union-attr]
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_cache(path: Path, key: str, rows: Labels) -> torch.Tensor | None:
    """Embeddings of these rows, if the cache is of the same cells and transformer and has them all."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            kept: Labels = file.get_tensor("rows").numpy()
            values: torch.Tensor = file.get_tensor("embeddings")
    except (OSError, SafetensorError):
        return None  # made again
    place = {int(row): position for position, row in enumerate(kept)}
    if any(int(row) not in place for row in rows):
        return None
    return values[[place[int(row)] for row in rows]]


def _write_cache(path: Path, key: str, rows: Labels, embeddings: torch.Tensor) -> None:
    from safetensors.torch import save

    data = save({"rows": torch.from_numpy(rows), "embeddings": embeddings.contiguous()}, metadata={"key": key})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise StoreError(
            f"embeddings {path} cannot be written ({error.strerror}); give another --embeddings"
        ) from error
