"""Attention rollout (Abnar and Zuidema 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from hematokit.errors import PluginError

__all__ = ["AttentionRollout"]


@dataclass(frozen=True)
class AttentionRollout:
    r"""How much of each patch reaches the class token when attention is followed through the layers.

    With :math:`A_l` the attention of layer l averaged over its heads, :math:`\prod_l \frac{1}{2}(A_l + I)`; the half
    and the unit matrix stand for the connection past the layer. It says where the network looks, not why it says what
    it says: the map is the same for every class. The least attended patch of a picture counts as zero.

    Parameters
    ----------
    discard : float
        Share of the weakest attentions of each row that count as none.
    first_layer : int
        Where the product starts.
    """

    discard: float = 0.0
    first_layer: int = 0

    def attribute(self, classifier: Any, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return maps (B, H, W), float32, of images (B, 3, H, W) in [0, 1]; `targets` are not looked at.

        Raises
        ------
        PluginError
            If the network is not one of timm's vision transformers, or has no such layer.
        """
        body = getattr(classifier.backbone, "body", classifier.backbone)
        blocks = list(getattr(body, "blocks", []))
        grid = getattr(getattr(body, "patch_embed", None), "grid_size", None)
        if not blocks or grid is None or getattr(body, "cls_token", None) is None:
            raise PluginError("attention-rollout needs a vision transformer with a class token, such as dinobloom")
        if any(not hasattr(getattr(block, "attn", None), "qkv") for block in blocks):
            raise PluginError(f"attention-rollout does not know the attention of {type(body).__name__}")
        if self.first_layer >= len(blocks):
            raise PluginError(f"option first_layer: {self.first_layer}, and there are {len(blocks)} layers, from 0")
        prefix = int(body.num_prefix_tokens)
        followed: list[torch.Tensor] = []

        def note(attention: Any, _: object, projected: torch.Tensor) -> None:
            attended = self._attention(attention, projected)
            followed[:] = [attended @ followed[0]] if followed else [attended]

        was_training = {module: module.training for module in classifier.modules()}
        hooks = [block.attn.qkv.register_forward_hook(_bound(note, block.attn)) for block in blocks[self.first_layer :]]
        try:
            classifier.eval()
            with torch.no_grad():
                classifier(images)
        finally:
            for hook in hooks:
                hook.remove()
            for module, mode in was_training.items():
                module.training = mode
        shares = followed[0][:, 0, prefix:]
        # Every patch gets something: what the least of them gets would veil the differences.
        coarse = (shares - shares.amin(1, keepdim=True)).reshape(-1, 1, *grid)
        return functional.interpolate(coarse, size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]

    def _attention(self, attention: Any, projected: torch.Tensor) -> torch.Tensor:
        """Attention (B, N, N) of a layer with the way past it, from queries, keys and values (B, N, 3 D)."""
        heads = attention.num_heads
        split = projected.float().reshape(*projected.shape[:2], 3, heads, -1)
        query, key, _ = split.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = attention.q_norm(query), attention.k_norm(key)
        found = ((query @ key.transpose(-2, -1)) * attention.scale).softmax(-1).mean(1)
        if dropped := int(self.discard * found.shape[-1]):
            limit = found.kthvalue(dropped, dim=-1, keepdim=True).values
            found = torch.where(found > limit, found, torch.zeros_like(found))
        found = found + torch.eye(found.shape[-1], device=found.device)
        shares: torch.Tensor = found / found.sum(-1, keepdim=True)
        return shares


def _bound(note: Any, attention: Any) -> Any:
    return lambda _module, given, output: note(attention, given, output)
