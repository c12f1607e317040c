"""A network's blocks from the head to the stem, and giving them random weights again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import nn

__all__ = ["Block", "network_blocks", "randomise_block", "refit_norms"]

_NORMS: Final = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_LAYERS: Final = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, *_NORMS)
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
    """Estimate the statistics of batch norms in randomised blocks anew, from the images that are explained.

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
        Batches of one image are passed over.
    """
    norms = [
        module
        for block in blocks
        for module in block.modules(network)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
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
    """Whether a module is a sequence, or a wrapper around one: its children follow each other."""
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
