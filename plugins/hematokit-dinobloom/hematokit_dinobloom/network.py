"""The network: a DINOv2 vision transformer from timm, and a head on the embedding of the whole picture."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.nn import functional

from hematokit.errors import PluginError

__all__ = ["HUB", "DinoBloom", "KnnHead", "TokenMap", "build"]

_MODELS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "s": ("vit_small_patch14_dinov2", {}),
    "b": ("vit_base_patch14_dinov2", {}),
    "l": ("vit_large_patch14_dinov2", {}),
    "g": ("vit_giant_patch14_dinov2", {}),
    # Everything that the others have, but small.
    "tiny": ("vit_small_patch14_dinov2", {"embed_dim": 48, "depth": 3, "num_heads": 3}),
}

HUB: Final = {
    name: f"hf-hub:1aurent/vit_{size}_patch14_224.dinobloom"
    for name, size in {"s": "small", "b": "base", "l": "large", "g": "giant"}.items()
}
"""Copies of the published weights in timm's form, for ``--pretrained``."""

_TINIEST: Final = 1e-6
"""Probability of a class that none of the neighbours has: keeps logits finite."""


class TokenMap(torch.nn.Module):
    """Shows the tokens of the patches as a map, for methods that look at maps; changes no number."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, h * w, D) to a map (B, D, h, w)."""
        return tokens.transpose(1, 2).reshape(*tokens.shape[::2], self.height, self.width).contiguous()


class KnnHead(torch.nn.Module):
    r"""Logits from the labels of the nearest training cells.

    Each of the `neighbours` cells with the greatest cosine similarity :math:`s` votes for its class with the weight
    :math:`\exp(s / \tau)` (Wu et al. 2018, as DINO and DinoBloom evaluate); logits are logarithms of the shares.

    Parameters
    ----------
    width, classes : int
        Of the embeddings, and the number of classes.
    neighbours : int
        Cells asked; all, if there are fewer.
    temperature : float
        :math:`\tau`.
    """

    bank: torch.Tensor
    labels: torch.Tensor

    def __init__(self, width: int, classes: int, neighbours: int, temperature: float) -> None:
        super().__init__()
        self.classes, self.neighbours, self.temperature = classes, neighbours, temperature
        self.register_buffer("bank", torch.zeros(0, width))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))

    def fill(self, embeddings: torch.Tensor, labels: torch.Tensor) -> None:
        """Remember cells: embeddings (N, D) float32 and class indices (N,) int64."""
        self.bank = functional.normalize(embeddings.to(self.bank), dim=1)
        self.labels = labels.to(self.labels)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) to logits (B, C).

        Raises
        ------
        PluginError
            If it is empty, or asked to train.
        """
        if self.training:
            raise PluginError("a k-NN head learns nothing in train; run: hematokit dinobloom-probe STORE --head knn")
        if not len(self.bank):
            raise PluginError("the k-NN head holds no cells yet; run: hematokit dinobloom-probe STORE --head knn")
        similar = functional.normalize(embeddings, dim=1) @ self.bank.to(embeddings.dtype).T
        best = similar.topk(min(self.neighbours, len(self.bank)), dim=1)
        # The first is the greatest: subtracting it keeps the exponentials within reach.
        weights = ((best.values - best.values[:, :1]) / self.temperature).exp()
        unit = torch.eye(self.classes, dtype=weights.dtype, device=weights.device)
        votes = (weights[:, :, None] * unit[self.labels[best.indices]]).sum(1)
        return (votes / votes.sum(1, keepdim=True) + _TINIEST).log()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # A bundle says how many cells there are; whoever builds the network from its options does not know.
        for name in ("bank", "labels"):
            found, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(found, torch.Tensor) and found.shape[1:] == own.shape[1:]:
                setattr(self, name, own.new_zeros(found.shape))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class DinoBloom(torch.nn.Module):
    """Images (B, 3, S, S) float32, normalised, to logits (B, C).

    The embedding is the class token behind the last norm, as DinoBloom's authors use it.

    Parameters
    ----------
    body : torch.nn.Module
        timm's VisionTransformer without a head.
    head : torch.nn.Module
        ``(B, D) -> (B, C)``.
    freeze : bool
        Train the head only; the body then stays in evaluation mode.
    """

    def __init__(self, body: Any, head: torch.nn.Module, freeze: bool) -> None:
        super().__init__()
        self.body = body
        self.tokens = TokenMap(*body.patch_embed.grid_size)
        self.head = head
        self.freeze = freeze
        if freeze:
            body.requires_grad_(False)

    def get_classifier(self) -> torch.nn.Module:
        """The layer that depends on the number of classes."""
        return self.head

    def train(self, mode: bool = True) -> DinoBloom:
        """Set the mode; a frozen body has only one."""
        super().train(mode)
        if self.freeze:
            self.body.eval()
        return self

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, S, S) to embeddings (B, D)."""
        body = self.body
        tokens = body.norm_pre(body.patch_drop(body._pos_embed(body.patch_embed(images))))
        *earlier, last = body.blocks
        for block in earlier:
            tokens = block(tokens)
        # Behind the last block only the class token counts, so gradients reach the patches in front of it.
        first, patches = tokens[:, : body.num_prefix_tokens], self.tokens(tokens[:, body.num_prefix_tokens :])
        # Sizes, not len(): an export would take the length of the example for the only one.
        if patches.shape[0] != first.shape[0]:
            # Grad-CAM for several classes repeats the map of each image; what goes past the map must follow.
            first = first.repeat_interleave(patches.shape[0] // first.shape[0], dim=0)
        tokens = body.norm(last(torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)))
        embedding: torch.Tensor = tokens[:, 0]
        return embedding

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, S, S) to logits (B, C)."""
        logits: torch.Tensor = self.head(self.embed(images))
        return logits


def build(
    model: str,
    *,
    num_classes: int,
    input_size: int,
    pretrained: bool,
    freeze: bool,
    head: str,
    neighbours: int,
    knn_temperature: float,
    drop_path_rate: float,
) -> DinoBloom:
    """Build a variant.

    Parameters
    ----------
    model : str
        ``"s"``, ``"b"``, ``"l"``, ``"g"`` or ``"tiny"``.
    num_classes, input_size : int
        Number of logits; side of the input in pixels, a multiple of 14.
    pretrained : bool
        Fetch DinoBloom's weights from the hub.
    freeze, head, neighbours, knn_temperature, drop_path_rate
        The options of ``hematokit_dinobloom.OPTIONS``.

    Raises
    ------
    PluginError
        If `head` is no head.
    """
    import timm

    if head not in ("linear", "knn"):
        raise PluginError(f"option head: {head!r} is neither linear nor knn")
    name, changes = _MODELS[model]
    arguments = {
        "num_classes": 0,
        "img_size": input_size,
        "drop_path_rate": 0.0 if freeze else drop_path_rate,
        **changes,
    }
    body: Any = timm.create_model(HUB[model] if pretrained else name, pretrained=pretrained, **arguments)
    width = body.num_features
    if head == "knn":
        return DinoBloom(body, KnnHead(width, num_classes, neighbours, knn_temperature), freeze)
    linear = torch.nn.Linear(width, num_classes)
    torch.nn.init.trunc_normal_(linear.weight, std=0.01)
    torch.nn.init.zeros_(linear.bias)
    return DinoBloom(body, linear, freeze)
