"""A drawn field of dark discs, and a small checkpoint that finds them, for cellpose and for a stand-in of it.

The stand-in has the few names of cellpose 3 that the plugin uses, so that most tests run where cellpose is not
installed. Its network sees dark pixels and its dynamics takes connected ones for a cell.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

INSTALLED = metadata.version("cellpose") if util.find_spec("cellpose") else ""
CELL_PX = 30.0
VIOLET, PINK = (110, 60, 150), (235, 60, 120)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class StandIn(nn.Module):
    """Names its tensors as ``CPnet`` does; the logit of being cell is high where green is dark."""

    def __init__(self, widths: list[int], outputs: int, side: int) -> None:
        super().__init__()
        seen = nn.Conv2d(widths[0], widths[1], side, padding=side // 2)
        place: nn.Module = nn.Sequential(nn.BatchNorm2d(widths[0]), nn.ReLU(), seen)
        for name in ("conv_0", "conv", "res_down_0", "down"):
            place = nn.ModuleDict({name: place})
        self.downsample = place
        self.seen = [seen]  # in a list, so that its tensors do not get a second name
        self.output = nn.Sequential(nn.BatchNorm2d(widths[1]), nn.ReLU(), nn.Conv2d(widths[1], outputs, 1))
        self.diam_mean = nn.Parameter(torch.tensor([CELL_PX]), requires_grad=False)
        self.diam_labels = nn.Parameter(torch.tensor([CELL_PX]), requires_grad=False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        """Flows and logit; the other results of cellpose's are not used."""
        block = self.downsample["down"]["res_down_0"]["conv"]["conv_0"]  # type: ignore[index]
        return (self.output(block(images)),)

    def see_dark(self) -> None:
        """Set the weights."""
        first, last = self.seen[0], self.output[2]
        with torch.no_grad():
            for layer in (first, last):
                layer.weight.zero_()
                layer.bias.zero_()
            first.weight[0, 0 if first.weight.shape[1] == 2 else 1, 1, 1] = -1.0
            first.bias[0] = 0.5
            last.weight[2, 0] = 20.0
            last.bias[2] = -2.0


def compute_masks(dP: Any, cellprob: Any, *, cellprob_threshold: float, min_size: int, **_: Any) -> Any:
    """Connected pixels are a cell; the second result is what cellpose 3.0 has beside."""
    labels, _ = ndimage.label(cellprob > cellprob_threshold)
    sizes = np.bincount(labels.ravel())
    labels[sizes[labels] < min_size] = 0
    return labels.astype(np.uint16), None


def _no_connection(name: str) -> str:
    raise OSError(f"no route to {name}")


def put_stand_in(patch: pytest.MonkeyPatch, version: str = "3.0.9") -> None:
    """Let the plugin find the stand-in where it looks for cellpose."""
    package = ModuleType("cellpose")
    package.__path__ = []  # type: ignore[attr-defined]
    parts = {
        "resnet_torch": {"CPnet": StandIn},
        "dynamics": {"compute_masks": compute_masks},
        "models": {"MODEL_NAMES": ["cyto3", "nuclei"], "cache_model_path": _no_connection},
    }
    patch.setitem(sys.modules, "cellpose", package)
    for part, names in parts.items():
        module = ModuleType(f"cellpose.{part}")
        vars(module).update(names)
        patch.setitem(sys.modules, f"cellpose.{part}", module)
    of_others = metadata.version
    patch.setattr(metadata, "version", lambda name: version if name == "cellpose" else of_others(name))


def discs(
    places: list[tuple[int, int]], height: int = 260, width: int = 340, radius: int = 15, colour: Any = VIOLET
) -> np.ndarray:
    """A light field with dark discs."""
    rows, columns = np.mgrid[:height, :width]
    field = np.full((height, width, 3), (240, 232, 238), np.uint8)
    for y, x in places:
        field[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = colour
    return field


def train_small(widths: list[int]) -> dict[str, torch.Tensor]:
    """Train a tiny network of cellpose 3 on dark discs; some ten seconds."""
    from cellpose.dynamics import labels_to_flows
    from cellpose.resnet_torch import CPnet
    from hematokit_cellpose.flows import network_input

    random = np.random.default_rng(0)
    torch.manual_seed(0)
    fields, labels = [], []
    for turn in range(12):
        places = [tuple(random.integers(0, 64, 2)) for _ in range(2)]
        # Labels, so that touching discs are two cells.
        label = np.zeros((64, 64), np.int32)
        radius = int(random.integers(11, 19))
        for number, place in enumerate(places, 1):
            label[discs([place], 64, 64, radius)[..., 1] < 200] = number
        fields.append(network_input(discs(places, 64, 64, radius, (VIOLET, PINK)[turn % 2]), widths[0], 1.0))
        labels.append(label)
    flows = np.stack([flow[1:] for flow in labels_to_flows(labels, device=torch.device("cpu"))])
    images, wanted = torch.stack(fields), torch.from_numpy(flows).float()
    network = CPnet(widths, 3, 3)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(120):
        part = slice(step % 3 * 4, step % 3 * 4 + 4)
        answer = network(images[part])[0]
        loss = nn.functional.mse_loss(answer[:, :2], 5 * wanted[part, 1:]) / 2
        loss = loss + nn.functional.binary_cross_entropy_with_logits(answer[:, 2], wanted[part, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return dict(network.state_dict())


@pytest.fixture(scope="session")
def trained() -> dict[str, torch.Tensor]:
    """Tensors of a network of cellpose 3 that finds dark discs."""
    if not INSTALLED.startswith("3."):
        pytest.skip(f"needs cellpose 3; installed: {INSTALLED or 'none'}")
    return train_small([3, 8, 16])


@pytest.fixture(params=["stand-in", "cellpose"])
def weights(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A checkpoint that finds dark discs, with the stand-in in cellpose's place, and with cellpose itself."""
    path = tmp_path / "weights.pth"
    if request.param == "cellpose":
        torch.save(request.getfixturevalue("trained"), path)
        yield path
        return
    network = StandIn([3, 4], 3, 3)
    network.see_dark()
    torch.save(network.state_dict(), path)
    with pytest.MonkeyPatch.context() as patch:
        put_stand_in(patch)
        yield path
