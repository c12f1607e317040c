"""A folder that WSInfer and QuPath's WSInfer extension run: a TorchScript file, and a JSON file on what goes into it.

The consumer cuts a tile of the physical size that ``config.json`` names, resizes it to `patch_size` pixels, divides by
255, and applies softmax to what the network gives. So the network gets here what the store gave it: resizing or padding
to its input, normalisation and the temperature are inside, and QuPath shows calibrated probabilities.

The layout is that of the WSInfer Zoo, ``spec_version`` 1.0: Kaczmarzyk et al. (2024), Open and reusable deep learning
for pathology with WSInfer and QuPath, doi:10.1038/s41698-024-00499-9.
"""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from hematokit.errors import ModelError, describe_error
from hematokit.files import one_line_write_errors, write_json
from hematokit.models.formats.packages import about, gate, with_usage, write_card

if TYPE_CHECKING:
    import torch

    from hematokit.models.classifier import Classifier

__all__ = ["CONFIG", "SUFFIX", "WEIGHTS", "write"]

SUFFIX: Final = ""
WEIGHTS: Final = "torchscript_model.pt"
CONFIG: Final = "config.json"


def write(
    classifier: Classifier,
    target: Path,
    *,
    card: str,
    samples: npt.NDArray[np.uint8],
    log: Callable[[str], None],
    licence: str = "",
) -> dict[str, Any]:
    """Write ``torchscript_model.pt``, ``config.json`` and ``README.md``, and compare them with the classifier.

    Parameters
    ----------
    classifier : Classifier
        From a bundle that knows the pixel size of its training images.
    target : Path
        Folder to make.
    card : str
        The model card, Markdown.
    samples : ndarray, shape (n, P, P, 3), uint8
        Crops on which the file, read again as WSInfer reads it, has to repeat the classifier.
    log : callable
        Called with what is being done.
    licence : str
        Of the weights; empty: not stated.

    Returns
    -------
    dict
        ``parity``, the numbers of that comparison (of logits divided by the temperature), and ``outputs``.

    Raises
    ------
    ModelError
        If the pixel size is not known, the backbone cannot be traced, or answers differ.
    """
    config = _config(classifier, licence)
    model = classifier.on_cpu().eval()
    with one_line_write_errors(target.parent, ModelError, "give a folder with room"):
        target.mkdir()
        log("tracing the network")
        _trace(model, target / WEIGHTS)
        write_json(target / CONFIG, config)
        write_card(target, with_usage(card, _usage(config)))
    log("comparing what torch.jit loads")

    def reference(patches: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return np.asarray(model.logits(patches) / model.temperature, np.float32)

    parity = gate(reference, _as_wsinfer_does(target), samples, "TorchScript")
    return {"parity": parity, "outputs": "logits divided by the temperature"}


def _config(classifier: Classifier, licence: str) -> dict[str, Any]:
    own = classifier.config
    if own.pixel_size_um is None:
        raise ModelError(
            "the model does not know the pixel size of its training images, by which QuPath and WSInfer cut tiles; "
            "give it in micrometres with --pixel-size"
        )
    return {
        "spec_version": "1.0",
        "architecture": own.backbone.model,
        "num_classes": len(classifier.codes),
        # Codes, as in the GeoJSON of `hematokit classify`: QuPath then takes both for one class.
        "class_names": list(classifier.codes),
        "patch_size_pixels": classifier.patch_size,
        "spacing_um_px": own.pixel_size_um,
        "transform": [
            # A tile of another pixel size is rarely of exactly this side when it is read.
            {"name": "Resize", "arguments": {"size": classifier.patch_size}},
            {"name": "ToTensor"},
        ],
        "apply_softmax": True,
        "hematokit": about(classifier, licence),
    }


def _usage(config: dict[str, Any]) -> str:
    side, scale = config["patch_size_pixels"], config["spacing_um_px"]
    return f"""## In QuPath and WSInfer

QuPath: name the folder that this folder is in as *User model directory* of the WSInfer window, and choose the model.
Tiles are squares of {side * scale:.4g} µm ({side} px of {scale:.4g} µm) with a cell in the middle.

What follows describes the model. In `{WEIGHTS}` its preparation and its temperature are inside: it takes
`float32 (N, 3, {side}, {side})` from 0 to 1, and softmax of what it gives are the calibrated probabilities; do not
divide by the temperature again. Classes are in the order of `class_names` in `{CONFIG}`.
"""


def _trace(model: Classifier, path: Path) -> None:
    import torch

    from hematokit.models.classifier import fit_to_input

    class FromTensor(torch.nn.Module):
        """From what the consumer's ToTensor gives, (N, 3, P, P) in [0, 1], to calibrated logits."""

        def __init__(self, inner: Classifier) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(fit_to_input(images, self.inner.input_spec))
            return logits.float() / self.inner.temperature

    side = model.patch_size
    # Two crops that differ: an example of one may fix the batch to one.
    example = torch.linspace(0, 1, 2 * 3 * side * side).view(2, 3, side, side)
    with _quiet(), torch.no_grad():
        try:
            # The comparison afterwards is the check, and on real crops.
            traced: Any = torch.jit.trace(FromTensor(model).eval(), (example,), check_trace=False)  # type: ignore[no-untyped-call]
        except Exception as error:
            raise ModelError(
                f"{type(model.backbone).__name__} cannot be traced to TorchScript ({describe_error(error)}); "
                "use --format onnx"
            ) from error
        saved = io.BytesIO()
        torch.jit.save(traced, saved)
    with zipfile.ZipFile(saved) as made, zipfile.ZipFile(path, "w") as kept:
        for entry in made.infolist():
            # These hold paths of this machine's source files, for stack traces.
            if not entry.filename.endswith(".debug_pkl"):
                kept.writestr(entry, made.read(entry))


def _as_wsinfer_does(folder: Path) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]:
    """The package as WSInfer computes it: with torchvision's transforms that ``config.json`` lists, and torch.jit."""
    import torch
    from PIL import Image
    from torchvision import transforms

    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    steps = [getattr(transforms, step["name"])(**step.get("arguments", {})) for step in config["transform"]]
    prepare = transforms.Compose(steps)
    with _quiet():
        network = torch.jit.load(str(folder / WEIGHTS), map_location="cpu").eval()  # type: ignore[no-untyped-call]

    def compute(patches: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        images = torch.stack([prepare(Image.fromarray(patch)) for patch in patches])
        with torch.inference_mode():
            logits: torch.Tensor = network(images)
        return logits.numpy()

    return compute


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings that TorchScript is old: it is what these programs read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
