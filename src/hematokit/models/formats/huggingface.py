"""A folder in the layout of the Hugging Face hub, which timm loads.

``timm.create_model("local-dir:FOLDER", pretrained=True)`` gives the backbone alone: normalised input to logits. How to
prepare a patch, and the temperature, are in ``config.json``, and in words in the card.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from huggingface_hub import EvalResult, ModelCardData

from hematokit.errors import ModelError, describe_error
from hematokit.files import one_line_write_errors
from hematokit.models.formats.packages import about, gate, with_usage, write_card

if TYPE_CHECKING:
    import torch

    from hematokit.models.classifier import Classifier
    from hematokit.plugins.specs import InputSpec

__all__ = ["CONFIG", "SUFFIX", "WEIGHTS", "write"]

SUFFIX: Final = ""
WEIGHTS: Final = "model.safetensors"
CONFIG: Final = "config.json"

_HUB_LICENCES: Final = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "openrail", "cc0-1.0"),
    *("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
)
"""The hub refuses other words in that place, and takes those as a name."""


def write(
    classifier: Classifier,
    target: Path,
    *,
    card: str,
    samples: npt.NDArray[np.uint8],
    log: Callable[[str], None],
    licence: str = "",
    results: Sequence[EvalResult] = (),
) -> dict[str, Any]:
    """Write ``model.safetensors``, ``config.json`` and ``README.md``, and compare them with the classifier.

    Parameters
    ----------
    classifier : Classifier
        From a bundle, with a backbone that is a timm model.
    target : Path
        Folder to make.
    card : str
        The model card, Markdown.
    samples : ndarray, shape (n, P, P, 3), uint8
        Crops on which the model that timm loads has to repeat the classifier.
    log : callable
        Called with what is being done.
    licence : str
        Of the weights; empty: not stated.
    results : sequence of EvalResult
        Figures of an evaluation, for the metadata of the card.

    Returns
    -------
    dict
        ``parity``: the numbers of that comparison, both given the same prepared input. ``timm_transform``: the same
        with the input prepared by timm's own transform, which works on whole grey levels and cannot pad by reflection;
        this one is not a condition.

    Raises
    ------
    ModelError
        If timm did not make the backbone, or answers differ.
    """
    model = classifier.on_cpu().eval()
    description = _config(model, licence)
    with one_line_write_errors(target.parent, ModelError, "give a folder with room"):
        target.mkdir()
        log("writing the weights")
        _save(model.backbone, target, description)
        write_card(target, _usage(card, model), _metadata(model, licence, results))
    log("comparing what timm loads")
    try:
        network = _load(target)
    except Exception as error:
        raise ModelError(
            f"timm does not load the exported folder again ({describe_error(error)}); use --format onnx"
        ) from error
    parity = gate(model.logits, _with_our_input(network, model), samples, "timm")
    return {"parity": parity, "timm_transform": _with_timms_input(network, model, samples)}


def _metadata(model: Classifier, licence: str, results: Sequence[EvalResult]) -> ModelCardData:
    """Return the metadata at the head of a card, which the hub reads."""
    listed = licence.lower() in _HUB_LICENCES
    return ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "cytology", "research-use-only"],
        license=(licence.lower() if listed else "other") if licence else None,
        license_name=None if listed else licence or None,
        model_name=str(model.config.backbone) if results else None,
        eval_results=list(results) or None,
    )


def _config(model: Classifier, licence: str) -> dict[str, Any]:
    backbone, spec = model.backbone, model.input_spec
    if not hasattr(backbone, "pretrained_cfg"):
        raise ModelError(
            f"backbone {model.config.backbone.name} of package {model.config.backbone.package} is no timm model, so "
            "timm could not load it; use --format onnx"
        )
    data = {
        "input_size": (3, spec.size, spec.size),
        "mean": spec.mean,
        "std": spec.std,
        "interpolation": "bilinear",
        "crop_pct": _crop_share(model.patch_size, spec),
        "crop_mode": "center",
    }
    return {
        "label_names": list(model.codes),
        "label_descriptions": {entry.code: entry.name for entry in model.taxonomy},
        # The origin of the published weights of the architecture does not apply to these weights.
        "pretrained_cfg": {
            **data,
            "tag": None,
            "license": licence.lower() or None,
            "origin_url": None,
            "paper_ids": None,
        },
        "hematokit": about(model, licence),
    }


def _crop_share(side: int, spec: InputSpec) -> float:
    """Share of the patch that the input shows: timm resizes to the input's side divided by it, then crops."""
    # Half a pixel more, because timm rounds down: the patch is to stay as it is, not to lose a pixel.
    return spec.size / (side + 0.5) if spec.region(side)[1] < side else 1.0


def _save(backbone: torch.nn.Module, folder: Path, description: dict[str, Any]) -> None:
    import torch
    from timm.models import save_for_hf

    # Parameters are channels_last, which safetensors refuses. timm knows with which arguments it made the model.
    plain = backbone.to(memory_format=torch.contiguous_format)
    try:
        save_for_hf(plain, str(folder), model_config=description, safe_serialization=True)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"timm cannot describe {type(backbone).__name__} ({describe_error(error)}); use --format onnx"
        ) from error
    # safetensors writes files with permissions for the owner only; a package for others needs more.
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode & 0o777)


def _load(folder: Path) -> torch.nn.Module:
    import timm

    network: torch.nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return network.eval()


def _with_our_input(
    network: torch.nn.Module, model: Classifier
) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]:
    import torch

    def compute(patches: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            images = model.prepare(torch.from_numpy(patches.copy()))
            logits: torch.Tensor = network((images - model.mean) / model.std)
        return logits.float().numpy()

    return compute


def _with_timms_input(network: torch.nn.Module, model: Classifier, samples: npt.NDArray[np.uint8]) -> dict[str, Any]:
    import timm
    import torch
    from PIL import Image

    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    with torch.inference_mode():
        images = torch.stack([prepare(Image.fromarray(patch)) for patch in samples])
        found = network(images).float().numpy()
    wanted = model.logits(samples)
    return {
        "patches": len(samples),
        "max_logit_difference": float(np.abs(found - wanted).max()),
        "classes_changed": int((found.argmax(axis=1) != wanted.argmax(axis=1)).sum()),
    }


def _usage(card: str, model: Classifier) -> str:
    """Put the lines that load the folder before the card's first section."""
    spec, side = model.input_spec, model.patch_size
    padded = " (timm's transform resizes here, where training padded by reflection)" if _pads(side, spec) else ""
    lines = f"""## Load it with timm

```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

`prepare` takes a PIL image of a crop of {side} x {side} px{padded}. The network gives logits in the order of
`label_names` in `config.json`; for calibrated probabilities divide them by {model.temperature:.6g} before softmax.

"""
    return with_usage(card, lines)


def _pads(side: int, spec: InputSpec) -> bool:

    return spec.region(side)[0] < 0
