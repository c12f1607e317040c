"""Export of a classifier to one ONNX file with metadata, compared with the classifier before it is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from hematokit._version import __version__
from hematokit.errors import ModelError, describe_error
from hematokit.files import one_line_write_errors, write_atomically
from hematokit.models.formats.packages import NOTICE, UNSTATED, gate, without_pictures
from hematokit.models.formats.quantising import JudgedCrops, Precision, measure_cost, to_fp16, to_int8
from hematokit.models.integrity import seal_onnx
from hematokit.models.runtimes.engines import Engine, is_installed, open_engine
from hematokit.models.runtimes.onnx_graph import (
    EMBEDDINGS,
    OUTPUT_NAME,
    PARITY_KEY,
    PROBABILITIES,
    Layout,
    onnx_bytes,
    raw_graph,
)
from hematokit.models.runtimes.parity import BATCHES, EXPORT_TOLERANCE

if TYPE_CHECKING:
    from hematokit.models.classifier import Classifier

__all__ = ["CARD_KEY", "SUFFIX", "OnnxSettings", "write"]

SUFFIX: Final = ".onnx"
CARD_KEY: Final = "hematokit.card"
"""Under this name the file's metadata hold the model card."""

_ADVICE: Final = "have its author replace that, or use --format wsinfer or huggingface"
_STEP: Final = 16
_OTHERWISE: Final = 0.1
"""Share of crops whose class another engine may change in a file that is rounded anyway."""

Patches = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class OnnxSettings:
    """Options of an ONNX file.

    Attributes
    ----------
    layout : str
        Input; see `hematokit.models.runtimes.onnx_graph.onnx_bytes`.
    embeddings : bool
        Whether it gives embeddings, too.
    precision : str
        ``"fp32"``, ``"fp16"`` or ``"int8"``.
    calibration : ndarray, shape (n, P, P, 3), uint8, or None
        Training crops that int8 is calibrated on.
    judged : JudgedCrops or None
        Patches on which the effect of the precision is measured; by default the samples.
    """

    layout: Layout = "patches"
    embeddings: bool = False
    precision: Precision = "fp32"
    calibration: Patches | None = None
    judged: JudgedCrops | None = None


def write(
    classifier: Classifier,
    target: Path,
    *,
    card: str,
    samples: Patches,
    log: Callable[[str], None],
    licence: str = "",
    settings: OnnxSettings | None = None,
) -> dict[str, Any]:
    """Write an ONNX file and compare it with the classifier.

    Parameters
    ----------
    classifier : Classifier
        From a bundle.
    target : Path
        File to make.
    card : str
        The model card, Markdown; goes into the metadata with what is measured here.
    samples : ndarray, shape (n, P, P, 3), uint8
        Crops on which the file has to repeat the classifier, at batches of 1, 2 and 7.
    log : callable
        Called with what is being done.
    licence : str
        Of the weights; empty: not stated.
    settings : OnnxSettings, optional

    Returns
    -------
    dict
        ``parity`` by engine, ``cost`` of smaller numbers or None, ``input``, ``outputs``, and ``card`` as it is in the
        file.

    Raises
    ------
    ModelError
        If the backbone cannot be exported, a logit differs by more than 1e-4 (or, if that is more, 1e-5 of the largest)
        or a class changes, or the file cannot be written.
    """
    settings = settings or OnnxSettings()
    if settings.precision == "int8" and (settings.calibration is None or not len(settings.calibration)):
        raise ModelError("int8 is calibrated on training crops, and there are none; give their store with --store")
    if not is_installed("onnxruntime"):
        raise ModelError("exporting needs onnxruntime; run: pip install 'hematokit[onnx]'")
    model = classifier.on_cpu().eval()
    log("exporting")
    content = onnx_bytes(model, layout=settings.layout, embeddings=settings.embeddings, advice=_ADVICE)
    _check(content)
    log("comparing with torch")
    engine = open_engine("onnxruntime", content)
    exported = _computing(engine, model, settings)
    parity = {"onnxruntime": gate(model.logits, exported, samples, "onnxruntime")}
    _check_other_outputs(engine, model, samples, settings)
    parity.update(_other_engine(content, model, samples, settings))
    cost = None
    if settings.precision != "fp32":
        log(f"converting to {settings.precision}")
        content = _smaller(content, model, settings)
        log("measuring what that costs")
        judged = settings.judged or JudgedCrops(samples, None, f"{len(samples)} sample crops")
        smaller = _computing(open_engine("onnxruntime", content), model, settings)
        expected, found = (_in_steps(compute, judged.patches) for compute in (exported, smaller))
        cost = measure_cost(settings.precision, expected, found, judged, model.temperature)
        parity.update(_other_engine_smaller(content, found, model, judged.patches, settings))
    facts: dict[str, Any] = {
        "parity": parity,
        "cost": None if cost is None else {**vars(cost), "sentence": cost.sentence()},
        "precision": settings.precision,
        "input": str(engine.inputs[0]),
        "outputs": [port.name for port in engine.outputs],
    }
    card = _full_card(card, facts)
    with one_line_write_errors(target.parent, ModelError, "give a folder with room"):
        write_atomically(target, _with_metadata(content, model, card, facts, settings.precision, licence))
    return {**facts, "card": card}


def _check(content: bytes) -> None:
    """Run the ONNX checker, with types and shapes."""
    import onnx

    try:
        onnx.checker.check_model(content, full_check=True)
    except Exception as error:
        raise ModelError(f"the exported graph is no valid ONNX ({describe_error(error)}); {_ADVICE}") from error


def _computing(engine: Engine, model: Classifier, settings: OnnxSettings) -> Callable[[Patches], Logits]:
    return lambda patches: engine.run(_as_input(model, patches, settings), OUTPUT_NAME)


def _as_input(model: Classifier, patches: Patches, settings: OnnxSettings) -> npt.NDArray[Any]:
    """Patches as the graph takes them."""
    if settings.layout == "patches":
        return np.ascontiguousarray(patches)
    import torch

    with torch.inference_mode():
        return model.prepare(torch.from_numpy(patches.copy())).contiguous().numpy()


def _in_steps(compute: Callable[[Patches], Logits], patches: Patches) -> Logits:
    return np.concatenate([compute(patches[start : start + _STEP]) for start in range(0, len(patches), _STEP)])


def _check_other_outputs(engine: Engine, model: Classifier, samples: Patches, settings: OnnxSettings) -> None:
    """Compare probabilities and embeddings with torch's; the gate has looked at the logits only."""
    import torch

    few = samples[: max(BATCHES)]
    network = raw_graph(model, embeddings=settings.embeddings)
    with torch.inference_mode():
        expected = [tensor.numpy() for tensor in network(torch.from_numpy(few.copy()))]
    for name, wanted in zip((OUTPUT_NAME, PROBABILITIES, EMBEDDINGS), expected, strict=False):
        found = engine.run(_as_input(model, few, settings), name)
        # A temperature below 1 enlarges what the logits were allowed to differ by.
        allowed = EXPORT_TOLERANCE * max(1.0, 1.0 / model.temperature)
        if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=1e-4, atol=allowed):
            raise ModelError(f"the exported {name} differ from torch's; nothing was written, please report that")


def _other_engine(content: bytes, model: Classifier, samples: Patches, settings: OnnxSettings) -> dict[str, Any]:
    """Return the comparison with OpenVINO, if it is installed; it is reported, but does not decide about the file."""
    if not is_installed("openvino"):
        return {}
    try:
        compute = _computing(open_engine("openvino", content), model, settings)
        return {"openvino": gate(model.logits, compute, samples, "OpenVINO")}
    except ModelError as error:
        return {"openvino": {"refused": str(error)}}


def _other_engine_smaller(
    content: bytes, expected: Logits, model: Classifier, patches: Patches, settings: OnnxSettings
) -> dict[str, Any]:
    """Whether OpenVINO gives the answers that onnxruntime does: with rounded numbers it need not."""
    if not is_installed("openvino"):
        return {}
    try:
        found = _in_steps(_computing(open_engine("openvino", content), model, settings), patches)
    except ModelError as error:
        return {"openvino": {"refused": str(error)}}
    changed = int((found.argmax(axis=1) != expected.argmax(axis=1)).sum())
    if changed > _OTHERWISE * len(patches) or not np.isfinite(found).all():
        said = (
            f"OpenVINO gives other answers than onnxruntime with this {settings.precision} file: {changed} of "
            f"{len(patches)} crops change class; compute it with onnxruntime"
        )
        return {"openvino": {"refused": said}}
    facts = {
        "patches": len(patches),
        "max_logit_difference": float(np.abs(found - expected).max()),
        "classes_changed": changed,
        "compared_with": f"onnxruntime, {settings.precision}",
    }
    return {"openvino": facts}


def _smaller(content: bytes, model: Classifier, settings: OnnxSettings) -> bytes:
    if settings.precision == "fp16":
        made = to_fp16(content)
    else:
        assert settings.calibration is not None  # checked before any work
        made = to_int8(content, _as_input(model, settings.calibration, settings))
    _check(made)
    return made


def _full_card(card: str, facts: dict[str, Any]) -> str:
    """The card with a section on this file."""
    lines = [card.rstrip(), "", "## This ONNX file", "", f"- Input: {facts['input']}"]
    lines.append(f"- Outputs: {', '.join(facts['outputs'])} (float32; probabilities are calibrated)")
    for name, found in facts["parity"].items():
        if "refused" in found:
            lines.append(f"- {name}: {found['refused']}")
            continue
        against = found.get("compared_with", "PyTorch in float32")
        lines.append(
            f"- Compared with {against}, {name}: logits of {found['patches']} crops differ by at most "
            f"{found['max_logit_difference']:.2g}, {found['classes_changed']} classes change"
        )
    if facts["cost"] is not None:
        lines.append(f"- **Smaller numbers**: {facts['cost']['sentence']}")
    return "\n".join([*lines, ""])


def _with_metadata(
    content: bytes, model: Classifier, card: str, facts: dict[str, Any], precision: Precision, licence: str
) -> bytes:
    """Write metadata into the file, for readers and for programs other than hematokit."""
    import onnx

    proto = onnx.load_from_string(content)
    proto.producer_name, proto.producer_version = "hematokit", __version__
    proto.doc_string = NOTICE
    config = model.config
    entries = {
        "classes": ",".join(model.codes),
        "class_names": json.dumps([entry.name for entry in model.taxonomy], ensure_ascii=False),
        "colours": ",".join(entry.colour for entry in model.taxonomy),
        "lineages": json.dumps([entry.lineage for entry in model.taxonomy], ensure_ascii=False),
        "taxonomy": model.taxonomy.name,
        "temperature": repr(model.temperature),
        "patch_size": str(model.patch_size),
        "pixel_size_um": "" if config.pixel_size_um is None else repr(config.pixel_size_um),
        "precision": precision,
        "hematokit_version": __version__,
        "license": licence or UNSTATED,
        "notice": NOTICE,
        PARITY_KEY: json.dumps(facts["parity"]),
        "hematokit.cost": json.dumps(facts["cost"]),
        CARD_KEY: without_pictures(card),
    }
    # Converters drop or keep what was there: the configuration is written again, the same for all.
    entries["hematokit.config"] = json.dumps(config.model_dump(mode="json"))
    onnx.helper.set_model_props(proto, entries)
    return seal_onnx(proto.SerializeToString())
