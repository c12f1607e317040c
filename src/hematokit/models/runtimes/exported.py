"""Bundles computed by onnxruntime or OpenVINO, which are faster on the CPU than torch and start without it.

A bundle is exported to ONNX once, compared with torch on a few patches, and stored in the user's cache folder under a
name that depends on the model, the engine and the versions of all packages involved. The cache may be deleted at any
time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from hematokit.errors import ModelError
from hematokit.files import TEMPORARY_PREFIX, user_folder, write_atomically, write_json
from hematokit.models.bundle import ModelFiles, open_bundle
from hematokit.models.config import ModelConfig
from hematokit.models.integrity import seal_onnx, sha256
from hematokit.models.runtimes.onnx_classifier import OnnxClassifier
from hematokit.models.runtimes.onnx_graph import onnx_bytes
from hematokit.models.runtimes.parity import check_agreement

__all__ = ["cache_folder", "open_exported"]

_log = logging.getLogger(__name__)

_UNUSED_DAYS: Final = 90
_LAYOUT: Final = 2
"""Version of the cache layout; 2 since the files contain their hash."""
_PACKAGES: Final = ("hematokit", "torch", "timm", "onnx", "onnxscript")


def open_exported(files: ModelFiles, config: ModelConfig, engine: str) -> OnnxClassifier:
    """Open a bundle's exported model, from the cache if possible; a damaged file is exported again.

    Parameters
    ----------
    files : ModelFiles
        Of a bundle.
    config : ModelConfig
        Its configuration.
    engine : str
        ``"onnxruntime"`` or ``"openvino"``.

    Raises
    ------
    ModelError
        If the model cannot be exported, or the results of the engine differ from those of torch.
    PluginError
        If the plugin that provides the backbone is not installed.
    """
    path = cache_folder() / "onnx" / f"{_fingerprint(files, config, engine)}.onnx"
    said = _kept(path.with_suffix(".json"))
    if "refused" in said:
        raise ModelError(str(said["refused"]))
    if said:
        with contextlib.suppress(OSError, ModelError):
            content = path.read_bytes()
            for used in (path, path.with_suffix(".json")):
                with contextlib.suppress(OSError):
                    os.utime(used)
            return OnnxClassifier(content, config, engine, identity=files.identity)
    return _export(files, config, engine, path)


def _fingerprint(files: ModelFiles, config: ModelConfig, engine: str) -> str:
    """Return a hash of everything that an exported model depends on: the model, the engine, and versions."""
    versions = []
    for name in dict.fromkeys((*_PACKAGES, engine, config.backbone.package)):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{name}=={metadata.version(name)}")
    return sha256("\n".join([str(_LAYOUT), files.identity, engine, *versions]).encode())


def _kept(path: Path) -> dict[str, Any]:
    """Return the comparison of the engine with torch; empty if unknown."""
    try:
        said = dict(json.loads(path.read_text(encoding="utf-8")))
        return said if "refused" in said or said["max_logit_difference"] >= 0 else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _export(files: ModelFiles, config: ModelConfig, engine: str, path: Path) -> OnnxClassifier:
    """Export a bundle, compare it with torch, and store it; several processes may do so at the same time."""
    reference = open_bundle(files, "cpu")
    content = seal_onnx(onnx_bytes(reference))
    model = OnnxClassifier(content, config, engine, identity=files.identity)
    refused = None
    try:
        said: dict[str, Any] = {
            "max_logit_difference": check_agreement(reference.logits, model.logits, reference.patch_size, engine)
        }
    except ModelError as error:
        refused, said = error, {"refused": str(error)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_unused(path.parent)
        if refused is None:
            write_atomically(path, content)
        write_json(path.with_suffix(".json"), said)
    except OSError as error:
        reason = error.strerror or error
        _log.warning(
            "%s cannot be written (%s): the model is exported again each time; set HEMATOKIT_CACHE", path, reason
        )
    if refused is not None:
        raise refused
    return model


def _clear_unused(folder: Path) -> None:
    """Remove models that were not used for three months, and temporary files of killed processes."""
    now = time.time()
    for path in folder.iterdir():
        days = 1 if path.name.startswith(TEMPORARY_PREFIX) else _UNUSED_DAYS
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime > days * 86400:
                path.unlink()


def cache_folder() -> Path:
    """Return the cache folder: ``HEMATOKIT_CACHE``, else ``hematokit`` in the user's cache folder.

    Returns
    -------
    Path
        The folder may not exist.
    """
    return user_folder("HEMATOKIT_CACHE", "XDG_CACHE_HOME", ".cache", "Library/Caches")
