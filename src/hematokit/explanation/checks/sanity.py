"""Does an explanation depend on the model at all? The parameter-randomisation test of Adebayo et al. (2018).

A network is divided into blocks, which are given random weights one after the other, from the head to the stem. An
explainer whose maps stay alike does not explain the model. `judge_change` turns similarities into an outcome.

References
----------
Adebayo J, Gilmer J, Muelly M, Goodfellow I, Hardt M, Kim B (2018). Sanity checks for saliency maps. NeurIPS 31.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from hematokit.explanation.checks.similarity import (
    Estimate,
    bootstrapped_mean,
    has_signs,
    other_cells,
    rank_correlation,
    structural_similarity,
)
from hematokit.explanation.running import attribute_in_batches
from hematokit.plugins.specs import Explainer
from hematokit.progress import Progress, no_progress

if TYPE_CHECKING:
    from hematokit.models.classifier import Classifier

__all__ = [
    "Block",
    "EdgeDetector",
    "HALF",
    "LEAST_CHANGE",
    "MEASURES",
    "ParameterRandomisation",
    "REPEATED",
    "Sensitivity",
    "compare_maps",
    "judge_change",
    "network_blocks",
    "parameter_randomisation",
    "randomise_block",
    "refit_norms",
    "similarity_to_others",
]

Maps = npt.NDArray[np.float32]
Groups = npt.ArrayLike | None

HALF: Final = 0.5
"""Share of the similarity above that of other cells that must be lost for a method to count as sensitive."""

LEAST_CHANGE: Final = 0.1
"""The least fall of a similarity that counts, where maps of different cells are alike already."""

MEASURES: Final = ("spearman", "ssim")
"""Similarities of absolute maps, which the outcome rests on; ``signed_`` before them: of the maps with their signs."""

_NAMES: Final = {"spearman": "rank correlation", "ssim": "SSIM"}

REPEATED: Final = "repeated"
"""Name of the first step, where nothing is random and the maps are made once more."""

_BATCH_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS: Final = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_NORMS: Final = (*_BATCH_NORMS, *_INSTANCE_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_CONVOLUTIONS: Final = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_LAYERS: Final = (*_CONVOLUTIONS, nn.Linear, nn.Embedding, *_NORMS)
OWN: Final = "own parameters"


@dataclass(frozen=True)
class Block:
    """Neighbouring layers that are randomised together.

    Attributes
    ----------
    name : str
        Path of its layers inside the network; joined by " + " where there are several.
    paths : tuple of str
        Their paths; `OWN` stands for parameters that the network holds itself, outside its layers (position
        embeddings, say).
    parameters : int
        How many numbers they hold.
    """

    name: str
    paths: tuple[str, ...]
    parameters: int

    def modules(self, network: nn.Module) -> Iterator[nn.Module]:
        """Yield its modules in `network`, or in a copy of it; the network itself for `OWN`."""
        for path in self.paths:
            if path == OWN:
                yield network
            else:
                yield from network.get_submodule(path).modules()


def network_blocks(network: nn.Module, fewest: int = 5) -> list[Block]:
    """Divide a network into blocks, in the order head to stem.

    The network's children are its blocks, in the order in which they were registered, which for timm's models is that
    of the computation. While there are fewer than `fewest`, the largest sequence among them is opened: the stages of a
    CoAtNet or an EfficientNet come to stand side by side, as those of a ResNet do anyhow. A norm right after a single
    layer stays with it. What the model calls its classifier is the head, wherever it is registered.

    Parameters
    ----------
    network : torch.nn.Module
        Any network; ``classifier.backbone``.
    fewest : int
        Open sequences until there are so many blocks; more gives a finer cascade. Networks that cannot be divided
        further have fewer.

    Returns
    -------
    list of Block
        Head first. Blocks without parameters are left out.
    """
    entries = _children(network, "")
    while len(_joined(entries)) < fewest:
        opened = max(
            (index for index, (_, module) in enumerate(entries) if _opens(module)),
            key=lambda index: _count(entries[index][1]),
            default=None,
        )
        if opened is None:
            break
        name, module = entries[opened]
        entries[opened : opened + 1] = _children(module, f"{name}.")
    blocks = _joined(entries)
    head = _head(network)
    if head:
        blocks.sort(key=lambda block: any(_within(head, path) for path in block.paths))
    own = sum(parameter.numel() for parameter in network.parameters(recurse=False))
    if own:
        blocks.insert(0, Block(OWN, (OWN,), own))
    return blocks[::-1]


def randomise_block(network: nn.Module, block: Block, seed: Sequence[int]) -> None:
    """Give a block random weights, in place.

    Convolutions, linear layers, embeddings and norms are set as torch sets new ones. Other parameters (layer scale,
    position biases, tokens) are drawn from the normal distribution with their own mean and deviation, because their
    usual start (0, or 1e-6) would switch a branch off rather than make it random.

    Parameters
    ----------
    network : torch.nn.Module
        Changed; give a copy.
    block : Block
        One of ``network_blocks(network)``.
    seed : sequence of int
        The same seed gives the same weights, on any device.
    """
    state = np.random.SeedSequence(list(seed)).generate_state(1)[0]
    done: set[int] = set()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(int(state))
        for module in block.modules(network):
            if isinstance(module, _LAYERS):
                _on_cpu(module, module.reset_parameters)
                done.update(id(parameter) for parameter in module.parameters(recurse=False))
        for module in block.modules(network):
            for parameter in module.parameters(recurse=False):
                if id(parameter) not in done and parameter.is_floating_point():
                    _redraw(parameter)
                    done.add(id(parameter))


def refit_norms(
    network: nn.Module,
    blocks: Sequence[Block],
    forward: Callable[[torch.Tensor], object],
    batches: Sequence[torch.Tensor],
) -> None:
    """Estimate the statistics of batch norms in randomised blocks again, from the images that are explained.

    With the statistics of a new layer (0 and 1) the signal of a deep random network would die away, and with the
    trained ones it would be shifted: either way the test would compare with a broken network, not with a random one.

    Parameters
    ----------
    network : torch.nn.Module
        Changed.
    blocks : sequence of Block
        Those that were randomised.
    forward : callable
        Takes a batch through the network.
    batches : sequence of Tensor (B, 3, S, S)
        Batches of one image are skipped.
    """
    norms = [
        module
        for block in blocks
        for module in block.modules(network)
        if isinstance(module, _BATCH_NORMS) and module.track_running_stats
    ]
    usable = [batch for batch in batches if len(batch) > 1]
    if not norms or not usable:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    try:
        with torch.no_grad():
            for batch in usable:
                forward(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def _joined(entries: Sequence[tuple[str, nn.Module]]) -> list[Block]:
    """Make blocks of modules; a norm right after a single layer joins it."""
    blocks: list[Block] = []
    previous: nn.Module | None = None
    for name, module in entries:
        if isinstance(module, _NORMS) and previous is not None and _is_layer(previous):
            before = blocks.pop()
            blocks.append(Block(f"{before.name} + {name}", (*before.paths, name), before.parameters + _count(module)))
        else:
            blocks.append(Block(name, (name,), _count(module)))
        previous = module
    return blocks


def _children(module: nn.Module, prefix: str) -> list[tuple[str, nn.Module]]:
    return [(prefix + name, child) for name, child in module.named_children() if _count(child)]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, _LAYERS) and not isinstance(module, _NORMS)


def _opens(module: nn.Module) -> bool:
    """Return whether a module is a sequence, or a wrapper around one: its children follow each other."""
    children = _children(module, "")
    if any(True for _ in module.parameters(recurse=False)) or not children:
        return False
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return len(children) > 1 or _opens(children[0][1])
    return len(children) == 1 and _opens(children[0][1])


def _head(network: nn.Module) -> str:
    get = getattr(network, "get_classifier", None)
    head = get() if callable(get) else None
    if not isinstance(head, nn.Module):
        return ""
    return next((name for name, module in network.named_modules() if module is head), "")


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}.")


def _on_cpu(module: nn.Module, work: Callable[[], object]) -> None:
    """Draw on the CPU, whose generator gives the same numbers on every machine."""
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    homes = [tensor.data for tensor in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.cpu()
    work()
    for tensor, home in zip(tensors, homes, strict=True):
        tensor.data = tensor.data.to(home.device)


def _redraw(parameter: torch.Tensor) -> None:
    if parameter.numel() < 2:
        return
    values = parameter.data.float()
    drawn = torch.randn(values.shape) * values.std().cpu() + values.mean().cpu()
    parameter.data.copy_(drawn.to(parameter.device, parameter.dtype))


class EdgeDetector(Explainer):
    """An explainer that ignores the model: the strength of edges in the image (Sobel).

    It shows that the check can fail, and how much of a map can be had without any model.
    """

    def attribute(self, classifier: Classifier, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return edge strengths (B, H, W) of images (B, 3, H, W); `classifier` and `targets` change nothing."""
        grey = functional.pad(images.float().mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        rise = torch.tensor([1.0, 2.0, 1.0], device=images.device)
        step = torch.tensor([-1.0, 0.0, 1.0], device=images.device)
        kernels = torch.stack([torch.outer(rise, step), torch.outer(step, rise)])[:, None]
        strength: torch.Tensor = functional.conv2d(grey, kernels).norm(dim=1)
        return strength


@dataclass(frozen=True)
class Sensitivity:
    """The outcome of a check: whether maps depend on what was changed, and the reason.

    Attributes
    ----------
    outcome : str
        ``"sensitive"``, ``"not sensitive"`` or ``"unclear"``.
    reason : str
        One sentence.
    """

    outcome: str
    reason: str


@dataclass(frozen=True)
class ParameterRandomisation:
    """One explainer's maps while a network is randomised block by block.

    Attributes
    ----------
    table : DataFrame
        One row per step, from the trained network (``repeated``: the maps made once more, nothing randomised) over
        the head to the stem, everything up to there being random. Columns: ``step``, ``block``, ``randomised`` (share
        of all parameters), for each similarity its mean over cells with ``_low`` and ``_high`` (the ``signed_`` ones
        are NaN for maps without signs), ``predictions_changed`` (share of cells), ``target_probability`` (mean),
        ``verdict`` (the outcome of `judge_change` at this step).
    other_cells : dict of str to Estimate
        Similarity of maps of different cells by the trained network, by measure: what maps have in common anyhow.
    edges : dict of str to Estimate
        Similarity of the trained network's maps to the edges of the image.
    signed : bool
        Whether maps have signs.
    sensitivity : Sensitivity
        At the last step.
    cells : int
    examples : dict of str to ndarray (k, H, W), float32
        Maps of the example cells by block, ``repeated`` being the trained network's own.
    """

    table: pd.DataFrame
    other_cells: Mapping[str, Estimate]
    edges: Mapping[str, Estimate]
    signed: bool
    sensitivity: Sensitivity
    cells: int
    examples: Mapping[str, Maps] = field(default_factory=dict, repr=False)

    @property
    def answers_from(self) -> str:
        """The first block from which on every step is sensitive; empty where the last one is not.

        A method that answers only when the stem is random, too, does not show what later layers do.
        """
        first = ""
        for block, outcome in zip(self.table["block"][::-1], self.table["verdict"][::-1], strict=True):
            if outcome != "sensitive":
                break
            first = str(block)
        return first


def parameter_randomisation(
    classifier: Classifier,
    explainer: Explainer,
    images: torch.Tensor,
    targets: torch.Tensor,
    *,
    seed: int = 0,
    fewest_blocks: int = 5,
    draws: int = 1,
    batch_size: int = 16,
    groups: Groups = None,
    examples: Sequence[int] = (),
    progress: Progress = no_progress,
) -> ParameterRandomisation:
    """Randomise a network from its head to its stem, and compare an explainer's maps with the trained network's.

    Parameters
    ----------
    classifier : Classifier
        It is copied and stays as it is.
    explainer : Explainer
        Any; only its ``attribute`` is used.
    images : Tensor, shape (n, 3, S, S), float32 in [0, 1]
        As ``classifier.prepare`` gives them; at least two cells.
    targets : Tensor, shape (n,), int64
        Class whose score is explained; the same for all steps.
    seed : int
        Of the random weights, and of the choice of other cells.
    fewest_blocks : int
        See `hematokit.explanation.checks.sanity.network_blocks`; more gives a finer cascade.
    draws : int
        Cascades with other random weights, over which each cell's similarities are averaged.
    batch_size : int
        Cells explained at a time.
    groups : array_like (n,), optional
        Groups of cells that belong together, for the intervals.
    examples : sequence of int
        Cells whose maps are kept for showing.
    progress : Progress
        Called with the number of maps that are done.

    Returns
    -------
    ParameterRandomisation

    Raises
    ------
    PluginError
        If the explainer returns something else than maps of the images' size.
    ValueError
        If there are fewer than two cells.

    Notes
    -----
    The sensitivity is that of the last step, where the whole network is random; ``answers_from`` says how much of it
    has to be. Adebayo et al. object to guided backpropagation that it hardly answers to the layers near the head.
    """
    if len(images) < 2:
        raise ValueError("the check compares cells with each other and needs at least two")
    was_training = classifier.training
    classifier.eval()
    blocks = network_blocks(classifier.backbone, fewest_blocks)
    total = len(images) * (2 + draws * len(blocks))
    done = 0

    def explain(model: Classifier, what: str) -> Maps:
        nonlocal done
        maps = attribute_in_batches(
            explainer,
            model,
            images,
            targets,
            batch_size=batch_size,
            progress=lambda count, _, __: progress(done + count, total, what),
        )
        done += len(images)
        return maps

    try:
        original = explain(classifier, "trained network")
        signed = has_signs(original)
        found = [compare_maps(original, explain(classifier, "trained network again"), signed=signed)]
        before, probability = _predictions(classifier, images, targets, batch_size)
        changed, probabilities = [np.zeros(len(images))], [probability]
        kept = {REPEATED: original[list(examples)]}
        for draw in range(draws):
            network = copy.deepcopy(classifier)
            for step, block in enumerate(blocks, start=1):
                randomise_block(network.backbone, block, (seed, draw, step))
                refit_norms(network.backbone, blocks[:step], network, _batches(network, images, batch_size))
                maps = explain(network, f"random up to {block.name}")
                similar = compare_maps(original, maps, signed=signed)
                predicted, probability = _predictions(network, images, targets, batch_size)
                if draw == 0:
                    kept[block.name] = maps[list(examples)]
                    found.append({name: values / draws for name, values in similar.items()})
                    changed.append((predicted != before) / draws)
                    probabilities.append(probability / draws)
                else:
                    for name, values in similar.items():
                        found[step][name] += values / draws
                    changed[step] += (predicted != before) / draws
                    probabilities[step] += probability / draws
    finally:
        classifier.train(was_training)
    shares = np.cumsum([0, *(block.parameters for block in blocks)]) / max(1, sum(b.parameters for b in blocks))
    names = [REPEATED, *(block.name for block in blocks)]
    others = similarity_to_others(original, seed, signed=signed)
    judged = [judge_change(found[0], similar, others, groups, seed=seed) for similar in found]
    rows = []
    for step, name in enumerate(names):
        row: dict[str, Any] = {"step": step, "block": name, "randomised": float(shares[step])}
        for measure, values in found[step].items():
            row |= bootstrapped_mean(values, groups, seed=seed).columns(measure)
        row["predictions_changed"] = float(changed[step].mean())
        row["target_probability"] = float(probabilities[step].mean())
        row["verdict"] = judged[step].outcome if step else ""
        rows.append(row)
    edges = attribute_in_batches(EdgeDetector(), classifier, images, targets, batch_size=batch_size)
    return ParameterRandomisation(
        table=pd.DataFrame(rows),
        other_cells={name: bootstrapped_mean(values, groups, seed=seed) for name, values in others.items()},
        edges={
            name: bootstrapped_mean(values, groups, seed=seed)
            for name, values in compare_maps(original, edges, signed=False).items()
            if not name.startswith("signed_")
        },
        signed=signed,
        sensitivity=judged[-1],
        cells=len(images),
        examples=kept,
    )


def judge_change(
    repeated: Mapping[str, npt.NDArray[np.float64]],
    changed: Mapping[str, npt.NDArray[np.float64]],
    others: Mapping[str, npt.NDArray[np.float64]],
    groups: Groups = None,
    *,
    seed: int = 0,
) -> Sensitivity:
    """Judge whether maps depend on a change of the model.

    Each similarity is set between two references: maps of the same cell made twice by the same model (above) and maps
    of different cells by the same model (below: similarity because cells are in the middle of their crops, or
    because maps are smooth). A method is *sensitive* if, by both measures, the mean fall from the upper reference is at
    least `HALF` of the way to the lower one and at least `LEAST_CHANGE`, with the whole 95 % interval. It is *not
    sensitive* if by either measure the whole interval is below that, else *unclear*. The upper reference catches
    maps that change by chance; the least change catches maps that are the same for all cells.

    Parameters
    ----------
    repeated, changed, others : mapping of str to ndarray (n,)
        Similarities of each cell by measure (`MEASURES`): to its map made again, to its map by the changed model, to
        other cells' maps.
    groups : array_like (n,), optional
        Groups of cells, for the intervals.
    seed : int
        Of the bootstrap.
    """
    outcomes, reasons = [], []
    for measure in MEASURES:
        fall = bootstrapped_mean(repeated[measure] - changed[measure], groups, seed=seed)
        distance = float(np.mean(repeated[measure]) - np.mean(others[measure]))
        needed = max(HALF * distance, LEAST_CHANGE)
        low, high = (fall.mean, fall.mean) if np.isnan(fall.low) else (fall.low, fall.high)
        outcomes.append("sensitive" if low >= needed else "not sensitive" if high < needed else "unclear")
        reasons.append(
            f"{_NAMES[measure]} falls by {fall.mean:.2f} ({low:.2f} to {high:.2f}), {needed:.2f} are asked for"
        )
    if "not sensitive" in outcomes:
        outcome = "not sensitive"
    elif outcomes == ["sensitive"] * len(MEASURES):
        outcome = "sensitive"
    else:
        outcome = "unclear"
    return Sensitivity(outcome, "; ".join(reasons))


def compare_maps(first: Maps, second: Maps, *, signed: bool) -> dict[str, npt.NDArray[np.float64]]:
    """Similarities of pairs of maps (n, H, W), by name: the `MEASURES` of absolute maps, and of signed maps.

    The ``signed_`` ones are NaN where maps have no signs.
    """
    nothing = np.full(len(first), np.nan)
    left, right = np.abs(first), np.abs(second)
    return {
        "spearman": rank_correlation(left, right),
        "ssim": structural_similarity(left, right),
        "signed_spearman": rank_correlation(first, second) if signed else nothing,
        "signed_ssim": structural_similarity(first, second, signed=True) if signed else nothing,
    }


def similarity_to_others(maps: Maps, seed: int, *, signed: bool) -> dict[str, npt.NDArray[np.float64]]:
    """Return the similarity of each cell's map to a few other cells' maps, as the mean over those, by measure."""
    found = [compare_maps(maps, maps[row], signed=signed) for row in other_cells(len(maps), seed)]
    return {name: np.mean([similar[name] for similar in found], axis=0) for name in found[0]}


def _batches(classifier: Classifier, images: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
    """Return some of the images, enough to estimate a channel's mean and deviation."""
    few = images[: max(64, batch_size)]
    return [few[start : start + batch_size].to(classifier.device) for start in range(0, len(few), batch_size)]


@torch.no_grad()
def _predictions(
    classifier: Classifier, images: torch.Tensor, targets: torch.Tensor, batch_size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the predicted class and the probability of the target."""
    logits = torch.cat(
        [classifier(images[i : i + batch_size].to(classifier.device)).cpu() for i in range(0, len(images), batch_size)]
    )
    probabilities = torch.softmax(logits.double() / classifier.temperature, dim=1)
    chosen = probabilities.gather(1, targets.cpu()[:, None])[:, 0]
    return logits.argmax(dim=1).numpy(), chosen.numpy()
