"""Any other backbone behind stain normalisation.

A wrapper, and not a preprocessing of stores, because a backbone is the one part of a plugin that every use of a model
runs through: training, evaluation, fields, explanations, the viewer, a server, an ONNX file. Pictures normalised by
hand beforehand would have to be so everywhere, for ever, with the same numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import torch

from hematokit import HematokitError, Variant, load_plugins
from hematokit_stain.normalising import StainNormaliser

__all__ = ["StainNormalised", "attribution_layer", "find_variant", "wrap"]

_NAME: Final = "stain-normalised"


class StainNormalised(torch.nn.Module):
    """A backbone that sees normalised images.

    Parameters
    ----------
    inner : torch.nn.Module
        The backbone.
    name : str
        Its name as registered, without the variant.
    mean, std : sequence of float
        What it expects images to be normalised with.
    normaliser : StainNormaliser
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        inner: torch.nn.Module,
        name: str,
        mean: Sequence[float],
        std: Sequence[float],
        normaliser: StainNormaliser,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.inner_name = name
        self.normaliser = normaliser
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def _prepared(self, images: torch.Tensor) -> torch.Tensor:
        normalised: torch.Tensor = (self.normaliser(images) - self.mean) / self.std
        return normalised.contiguous(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (B, C) of images (B, 3, S, S) in [0, 1]."""
        logits: torch.Tensor = self.inner(self._prepared(images))
        return logits

    # timm's words, by which hematokit finds embeddings and the head.

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Features before pooling, of timm's backbones."""
        features: torch.Tensor = self.inner.forward_features(self._prepared(images))  # type: ignore[operator]
        return features

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Logits of features, or with `pre_logits` what comes before the last layer."""
        found: torch.Tensor = self.inner.forward_head(features, pre_logits=pre_logits)  # type: ignore[operator]
        return found

    def get_classifier(self) -> torch.nn.Module | None:
        """The last layer."""
        get = getattr(self.inner, "get_classifier", None)
        found: torch.nn.Module | None = get() if callable(get) else None
        return found


def find_variant(name: str) -> Variant:
    """Describe ``coatnet:nano`` behind normalisation: its input, but unnormalised.

    Raises
    ------
    HematokitError
        If there is no such backbone.
    """
    if name.partition(":")[0] == _NAME:
        raise HematokitError(f"{_NAME}:{name} would normalise twice; name another backbone after {_NAME}:")
    spec, variant_name, variant = load_plugins().backbone(name)
    return Variant(
        f"{spec.name}:{variant_name}",
        dataclasses.replace(variant.input, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        variant.pretrained,
        f"{spec.name}:{variant_name} behind stain normalisation",
    )


def wrap(
    model: str,
    *,
    num_classes: int,
    input_size: int,
    pretrained: bool = False,
    method: str = "reinhard",
    reference: str = "",
) -> torch.nn.Module:
    """Build a backbone behind stain normalisation; see `hematokit.BackboneSpec`."""
    normaliser = StainNormaliser(method, reference)
    spec, _, variant = load_plugins().backbone(model)
    inner: Any = spec.factory(
        variant.model,
        num_classes=num_classes,
        input_size=input_size,
        pretrained=pretrained,
        **spec.resolve_options(None),
    )
    return StainNormalised(inner, spec.name, variant.input.mean, variant.input.std, normaliser)


def attribution_layer(module: torch.nn.Module) -> torch.nn.Module:
    """The inner backbone's own."""
    assert isinstance(module, StainNormalised)
    find = load_plugins().backbones.get(module.inner_name).attribution_layer
    if find is None:
        raise HematokitError(f"backbone {module.inner_name} names no attribution layer; name one with --layer")
    return find(module.inner)


def checkpoint_filter_fn(state: dict[str, torch.Tensor], module: StainNormalised) -> dict[str, torch.Tensor]:
    """Let ``--weights`` take a file of the inner backbone, too; found by its name, as in timm's families."""
    if any(key.startswith("inner.") for key in state):
        return state
    return {f"inner.{key}": value for key, value in state.items()}
