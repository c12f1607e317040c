"""What is known of a training before it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hematokit.models.devices import describe_device
from hematokit.registry import load_plugins
from hematokit.training.runs import environment

if TYPE_CHECKING:
    import torch

    from hematokit.models.construction import BackboneChoice
    from hematokit.store import PatchStore
    from hematokit.training.data import TrainingData

__all__ = ["facts_at_start"]


def facts_at_start(
    store: PatchStore, data: TrainingData, choice: BackboneChoice, device: torch.device
) -> dict[str, Any]:
    """Return what a bundle's ``training`` says wherever it comes from, by the names that reports look for.

    Parameters
    ----------
    store : PatchStore
    data : TrainingData
    choice : BackboneChoice
    device : torch.device

    Returns
    -------
    dict
        For ``config.yaml`` and `hematokit.models.save_bundle`; a plugin that trains in its own way adds its own.
    """
    owner = load_plugins().backbones.owner(choice.spec.name)
    return {
        "store": str(store.path.resolve()),
        "store_hash": store.content_hash,
        "split": dict(store.split_info or {}),
        "backbone": f"{choice.spec.name}:{choice.variant_name}",
        "backbone_package": f"{owner.package} {owner.version}",
        "image_size": choice.input.size,
        "classes": list(data.taxonomy.codes),
        "counts": data.counts(),
        "left_out": data.left_out,
        "pixel_size_um": data.pixel_size_um,
        "device": describe_device(device),
        "versions": environment(),
    }
