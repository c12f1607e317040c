"""The network computes what timm's transformer computes; heads, freezing and explanations."""

from __future__ import annotations

import pytest
import torch
from hematokit_dinobloom.network import KnnHead
from hematokit_dinobloom.rollout import AttentionRollout

from conftest import make
from hematokit.errors import PluginError


def test_embeddings_are_those_of_timm() -> None:
    network, images = make().eval(), torch.randn(2, 3, 56, 56)
    assert torch.allclose(network.embed(images), network.body(images), atol=1e-6)


def test_only_the_head_learns_unless_everything_is_fine_tuned() -> None:
    frozen, tuned = make().train(), make(freeze=False, drop_path_rate=0.2).train()
    assert {name for name, value in frozen.named_parameters() if value.requires_grad} == {"head.weight", "head.bias"}
    assert not frozen.body.training
    assert frozen.head.training
    assert all(value.requires_grad for value in tuned.parameters())
    assert tuned.body.training


def test_the_knn_head_votes_by_hand() -> None:
    head = KnnHead(2, 3, neighbours=3, temperature=0.5)
    head.fill(torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 1, 1, 2]))
    found = head.eval()(torch.tensor([[3.0, 0.0]])).exp()[0]
    weights = torch.tensor([1.0, 0.0, 2**-0.5]).div(0.5).exp()
    wanted = torch.stack([weights[0], weights[1] + weights[2], torch.tensor(0.0)]) / weights.sum()
    assert torch.allclose(found, wanted, atol=1e-5)


def test_a_knn_head_says_what_it_needs() -> None:
    network, images = make(head="knn"), torch.zeros(1, 3, 56, 56)
    with pytest.raises(PluginError, match="holds no cells yet"):
        network.eval()(images)
    with pytest.raises(PluginError, match="learns nothing in train"):
        network.train()(images)
    with pytest.raises(PluginError, match="neither linear nor knn"):
        make(head="forest")


class _FirstPatches(torch.nn.Module):
    """Attention of which half goes to the patch in the second row, third column, of a 4 x 4 grid."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        query, key = torch.zeros_like(tokens), torch.zeros_like(tokens)
        query[..., 0] = 1.0
        key[:, 1 + 4 + 2, 0] = 100.0
        return torch.cat([query, key, tokens], dim=2)


def test_rollout_finds_what_attention_looks_at() -> None:
    network = make().eval()
    for block in network.body.blocks:
        block.attn.qkv = _FirstPatches()

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return network(images)

    images = torch.rand(2, 3, 56, 56)
    maps = AttentionRollout().attribute(Classifier(), images, torch.tensor([0, 1]))
    assert maps.shape == (2, 56, 56)
    assert maps.dtype == torch.float32
    row, column = divmod(int(maps[0].argmax()), 56)
    assert (row // 14, column // 14) == (1, 2)
    with pytest.raises(PluginError, match="there are 3 layers"):
        AttentionRollout(first_layer=3).attribute(Classifier(), images, torch.tensor([0, 1]))
