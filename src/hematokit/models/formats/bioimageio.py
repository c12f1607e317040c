"""A BioImage.IO model package: one zip file that bioimageio.core, JDLL, deepImageJ and their kin run.

The weights are the ONNX graph of `hematokit.models.runtimes.onnx_graph`, which takes the raw patch: its input is 8-bit
RGB with the channel last, and no consumer has to resize or normalise. The crops inside, by which a consumer tests the
package, are drawn: no image of a training set leaves with a model.

The format is BioImage.IO's model description 0.5: Ouyang et al. (2022), BioImage Model Zoo,
doi:10.1101/2022.06.07.495102.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from hematokit.errors import ModelError, describe_error
from hematokit.files import TEMPORARY_PREFIX, one_line_write_errors, write_atomically
from hematokit.models.config import TrainingSettings
from hematokit.models.formats.packages import NOTICE, about, drawn_crops, gate, resized, with_usage, write_card
from hematokit.models.integrity import seal_onnx
from hematokit.models.model import prediction_frame
from hematokit.models.runtimes.onnx_graph import onnx_bytes

if TYPE_CHECKING:
    from hematokit.models.classifier import Classifier

__all__ = ["SUFFIX", "write"]

SUFFIX: Final = ".zip"

_DRAWN: Final = ("BLA", "PMO", "NGS", "EOS", "MON", "LYT", "PLM", "EBO")
_COVER_TILE: Final = 160

Patches = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


def write(
    classifier: Classifier,
    target: Path,
    *,
    card: str,
    samples: Patches,
    log: Callable[[str], None],
    licence: str = "",
) -> dict[str, Any]:
    """Write a BioImage.IO package and have bioimageio.spec validate and bioimageio.core run it.

    Parameters
    ----------
    classifier : Classifier
        From a bundle.
    target : Path
        Zip file to write.
    card : str
        The model card, Markdown; becomes the package's documentation.
    samples : ndarray, shape (n, P, P, 3), uint8
        Crops on which the package, run by bioimageio.core, has to repeat the classifier. They do not go into it.
    log : callable
        Called with what is being done.
    licence : str
        Licence of the weights: an SPDX identifier, or text, which becomes a file; empty: not stated.

    Returns
    -------
    dict
        ``parity``, the numbers of that comparison; ``spec_status``, what bioimageio.core's own test says; ``warnings``,
        what the description lacks that only the author can tell.

    Raises
    ------
    ModelError
        If bioimageio is not installed, the backbone cannot be exported, the package is not valid, or answers differ.
    """
    try:
        import bioimageio.core  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"the BioImage.IO format needs {error.name or 'bioimageio.core'}; run: pip install 'hematokit[bioimageio]'"
        ) from error
    model = classifier.on_cpu().eval()
    with (
        one_line_write_errors(target.parent, ModelError, "give a folder with room"),
        _quiet(),
        # Beside the target: weights can be large, and the system's folder for such files small.
        TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=target.parent) as place,
    ):
        folder = Path(place)
        log("exporting the network to ONNX")
        outputs = _write_files(model, folder, card)
        log("packing")
        package = folder / f"package{SUFFIX}"
        _pack(model, folder, outputs, package, licence)
        log("having bioimageio.core test the package")
        facts = _tested(package)
        log("comparing what bioimageio.core computes")
        facts["parity"] = gate(model.logits, _as_bioimageio_does(package), samples, "bioimageio.core")
        package.replace(target)
    return facts


def _write_files(model: Classifier, folder: Path, card: str) -> dict[str, Logits]:
    """Write what the description points to; returns what the classifier, in torch, gives for the test crops."""
    import onnx

    content = onnx_bytes(model)
    write_atomically(folder / "model.onnx", seal_onnx(content))
    names = [output.name for output in onnx.load_from_string(content).graph.output]
    crops = drawn_crops(_DRAWN, model.patch_size)
    logits = model.logits(crops)
    frame = prediction_frame(logits, model.codes, model.temperature)
    known: dict[str, Logits] = {
        "logits": logits,
        "probabilities": frame[[f"p_{code}" for code in model.codes]].to_numpy(np.float32),
    }
    outputs = {name: known[name] for name in names}
    np.save(folder / "test_patches.npy", crops)
    for name, values in outputs.items():
        np.save(folder / f"test_{name}.npy", values)
    write_atomically(folder / "cover.jpg", _cover(crops))
    write_card(folder, with_usage(card, _usage(model.patch_size)))
    return outputs


def _usage(side: int) -> str:
    return f"""## Run it with bioimageio.core

```python
from bioimageio.core import predict

found = predict(model="PACKAGE.zip", inputs={{"patches": crops}})
probabilities = found.members["probabilities"].data
```

`crops` is `uint8 (N, {side}, {side}, 3)`, RGB as the camera gives it. What follows describes the model; its preparation
and its temperature are inside the package: `probabilities` are calibrated, `logits` are not divided by the temperature.
"""


def _cover(crops: Patches) -> bytes:
    """The crops in two rows: twice as wide as high, as the zoo wants it."""
    import io

    from PIL import Image

    tiles = [resized(crop, _COVER_TILE) for crop in crops]
    half = len(tiles) // 2
    sheet = np.concatenate([np.concatenate(tiles[:half], axis=1), np.concatenate(tiles[half:], axis=1)])
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _pack(model: Classifier, folder: Path, outputs: dict[str, Logits], package: Path, licence: str) -> None:
    from bioimageio.spec import save_bioimageio_package
    from pydantic import ValidationError

    try:
        save_bioimageio_package(_description(model, folder, outputs, licence), output_path=package)
    except (ValidationError, ValueError) as error:
        raise ModelError(
            f"bioimageio.spec refuses the description of the model ({describe_error(error)}); nothing was written"
        ) from error


def _description(model: Classifier, folder: Path, outputs: dict[str, Logits], licence: str) -> Any:
    import onnx
    from bioimageio.spec.model import v0_5

    def file(name: str) -> Any:
        return v0_5.FileDescr(source=folder / name)

    scale = model.config.pixel_size_um
    measured = {} if scale is None else {"scale": scale, "unit": "micrometer"}
    axes = [
        v0_5.BatchAxis(),
        *(v0_5.SpaceInputAxis(id=v0_5.AxisId(name), size=model.patch_size, **measured) for name in ("y", "x")),
        v0_5.ChannelAxis(channel_names=["red", "green", "blue"]),
    ]
    patches = v0_5.InputTensorDescr(
        id=v0_5.TensorId("patches"),
        description="Crops with a cell in the middle, 8-bit RGB, as the camera gives them",
        axes=axes,
        data=v0_5.IntervalOrRatioDataDescr(type="uint8", range=(0, 255)),
        test_tensor=file("test_patches.npy"),
    )
    about_outputs = {
        "logits": "One number a class, before softmax and not divided by the temperature",
        "probabilities": "Calibrated: softmax of the logits divided by the temperature",
    }
    described = [
        v0_5.OutputTensorDescr(
            id=v0_5.TensorId(name),
            description=about_outputs[name],
            axes=[v0_5.BatchAxis(), v0_5.ChannelAxis(channel_names=list(model.codes))],
            data=v0_5.IntervalOrRatioDataDescr(type="float32"),
            test_tensor=file(f"test_{name}.npy"),
        )
        for name in outputs
    ]
    opset = max(entry.version for entry in onnx.load(folder / "model.onnx", load_external_data=False).opset_import)
    backbone = model.config.backbone
    return v0_5.ModelDescr(
        name=_name(f"{backbone.name} {backbone.variant} for {len(model.codes)} bone marrow cell classes"),
        description=f"Classifies single cells of stained smears into {len(model.codes)} classes. {NOTICE}",
        inputs=[patches],
        outputs=described,
        weights=v0_5.WeightsDescr(onnx=v0_5.OnnxWeightsDescr(source=folder / "model.onnx", opset_version=opset)),
        documentation=file("README.md"),
        covers=[file("cover.jpg")],
        attachments=[file(path.name) for path in sorted(folder.glob("card-*"))],
        license=_licence(folder, licence),
        tags=["2d", "brightfield", "classification", "cells", "bone-marrow", "haematology", "onnx", backbone.name],
        config=v0_5.Config(bioimageio=_zoo_facts(model), **{"hematokit": about(model, licence)}),
    )


def _licence(folder: Path, licence: str) -> Any:
    """The licence as the zoo takes it: one of SPDX's identifiers, or a file."""
    from bioimageio.spec.model import v0_5
    from pydantic import TypeAdapter, ValidationError

    if not licence:
        return None
    try:
        return TypeAdapter(v0_5.LicenseId | v0_5.DeprecatedLicenseId).validate_python(licence)
    except ValidationError:
        write_atomically(folder / "LICENSE.txt", f"{licence}\n")
        return v0_5.FileDescr(source=folder / "LICENSE.txt")


def _name(text: str) -> str:
    """With the characters that the zoo allows, and no longer than it allows."""
    return re.sub(r"[^A-Za-z0-9_+\- ()]", " ", text)[:64].strip()


def _zoo_facts(model: Classifier) -> Any:
    """Return the metadata of the run in the terms of the model zoo."""
    from bioimageio.spec.model import v0_5

    training = model.config.training
    settings = training.settings or TrainingSettings()
    hours = None if training.seconds is None else round(training.seconds / 3600, 4)
    return v0_5.BioimageioConfig(
        architecture_type=model.config.backbone.name[:32],
        modality="bright-field microscopy of stained smears",
        target_structure=["single cells"],
        task="classification",
        out_of_scope_use=NOTICE,
        model_parameter_count=sum(parameter.numel() for parameter in model.backbone.parameters()),
        training=v0_5.TrainingDetails(
            training_epochs=training.epochs,
            training_batch_size=settings.batch_size,
            initial_learning_rate=settings.lr,
            training_duration=hours,
        ),
        environmental_impact=v0_5.EnvironmentalImpact(hardware_type=training.device, hours_used=hours),
    )


def _tested(package: Path) -> dict[str, Any]:
    from bioimageio.core import test_model

    summary = test_model(package, weight_format="onnx")
    if summary.status != "passed":
        errors = [error for detail in summary.details for error in detail.errors]
        text = " ".join("; ".join(f"{'.'.join(map(str, item.loc))}: {item.msg}" for item in errors).split())[:300]
        raise ModelError(f"bioimageio.core's test of the package says {summary.status} ({text}); nothing was written")
    lacking = {".".join(map(str, item.loc)) for detail in summary.details for item in detail.warnings}
    return {"spec_status": summary.status, "warnings": sorted(lacking)}


def _as_bioimageio_does(package: Path) -> Callable[[Patches], Logits]:
    """The package as bioimageio.core computes it."""
    from bioimageio.core import create_prediction_pipeline, load_model_description
    from bioimageio.core.digest_spec import create_sample_for_model

    description = load_model_description(package)
    pipeline = create_prediction_pipeline(description, weight_format="onnx")

    def compute(patches: Patches) -> Logits:
        sample = create_sample_for_model(description, inputs={"patches": patches})
        found = pipeline.predict_sample_without_blocking(sample).members
        return np.asarray(next(tensor for name, tensor in found.items() if str(name) == "logits").data)

    return compute


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep bioimageio from logging its progress; the result is reported once."""
    from loguru import logger

    logger.disable("bioimageio")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.enable("bioimageio")
