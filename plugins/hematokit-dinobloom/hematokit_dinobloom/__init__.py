"""DinoBloom for hematokit: backbone ``dinobloom``, explainer ``attention-rollout``, command ``dinobloom-probe``.

Every start of hematokit reads this file, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hematokit import BackboneSpec, ExplainerSpec, InputSpec, Option, Variant, hookimpl

if TYPE_CHECKING:
    import torch
    import typer

    from hematokit_dinobloom.probing import ProbeResult, probe
    from hematokit_dinobloom.weights import Accounting

__all__ = ["ProbeResult", "probe"]

HEMATOKIT_HOOKS = "1.1"

# DinoBloom was trained on 224 px, normalised as ImageNet is.
_INPUT = InputSpec(224, divisor=14, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

VARIANTS = {
    "s": Variant("s", _INPUT, True, "ViT-S/14, 22 M parameters"),
    "b": Variant("b", _INPUT, True, "ViT-B/14, 86 M parameters"),
    "l": Variant("l", _INPUT, True, "ViT-L/14, 304 M parameters"),
    "g": Variant("g", _INPUT, True, "ViT-g/14, 1136 M parameters"),
    "tiny": Variant(
        "tiny",
        InputSpec(56, divisor=14, mean=_INPUT.mean, std=_INPUT.std),
        description="0.1 M parameters, for trying things; there are no weights for it",
    ),
}

OPTIONS = {
    "freeze": Option(bool, True, "train the head only; false: fine-tune everything"),
    "head": Option(
        str, "linear", "knn: hematokit dinobloom-probe fills it with the training cells", choices=("linear", "knn")
    ),
    "neighbours": Option(int, 20, "cells that a k-NN head asks", 1, 1000),
    "knn_temperature": Option(float, 0.07, "how much nearer cells count more in a k-NN head", 0.001, 10.0),
    "drop_path_rate": Option(float, 0.0, "stochastic depth while everything is fine-tuned, 0 to 1", 0.0, 0.9),
}


def build(model: str, **arguments: Any) -> torch.nn.Module:
    """Build a variant; see `hematokit_dinobloom.network.build`."""
    from hematokit_dinobloom.network import build

    return build(model, **arguments)


def load_weights(module: torch.nn.Module, path: Path) -> Accounting:
    """Do what ``--weights FILE`` asks for; see `hematokit_dinobloom.weights.load_weights`."""
    from hematokit_dinobloom.weights import load_weights

    return load_weights(module, path)


def make_rollout(**options: Any) -> Any:
    """Make the explainer."""
    from hematokit_dinobloom.rollout import AttentionRollout

    return AttentionRollout(**options)


@hookimpl
def register_backbones(register: Callable[[BackboneSpec], None]) -> None:
    """Register ``dinobloom``."""
    register(
        BackboneSpec(
            name="dinobloom",
            description="DINOv2 transformers, trained as DinoBloom on blood and marrow cells (Koch et al. 2024)",
            factory=build,
            options=OPTIONS,
            variants=VARIANTS,
            default_variant="s",
            attribution_layer=lambda module: module.get_submodule("tokens"),
            load_weights=load_weights,
        )
    )


@hookimpl
def register_explainers(register: Callable[[ExplainerSpec], None]) -> None:
    """Register ``attention-rollout``."""
    register(
        ExplainerSpec(
            name="attention-rollout",
            description="Where a transformer's attention goes, over all layers (Abnar and Zuidema 2020); "
            "the same map for every class",
            factory=make_rollout,
            options={
                "discard": Option(float, 0.0, "share of the weakest attentions of each layer left out", 0.0, 0.99),
                "first_layer": Option(int, 0, "layers before this one are left out", 0, 100),
            },
        )
    )


@hookimpl
def register_commands(app: typer.Typer) -> None:
    """Add ``hematokit dinobloom-probe``."""
    from hematokit_dinobloom.command import register

    register(app)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hematokit_dinobloom import probing

    return getattr(probing, name)
