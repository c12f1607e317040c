"""What computes a classifier: torch; or onnxruntime or OpenVINO on the CPU, which are faster and start without torch.

A bundle is exported to ONNX once, held against torch on a few patches with every engine that is installed, timed, and
kept in the user's cache folder under a name that changes with the weights, the configuration and the versions of
everything involved. The cache may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from hematokit.errors import ModelError
from hematokit.files import TEMPORARY_PREFIX, write_atomically, write_json
from hematokit.models.bundle import CONFIG, WEIGHTS, BundleConfig, check_bundle, read_config
from hematokit.models.engines import ENGINES, INSTALL, is_installed
from hematokit.models.integrity import file_sha256
from hematokit.models.loading import Runtime, load_torch
from hematokit.models.onnx_classifier import OnnxClassifier, read_onnx
from hematokit.models.parity import Logits, Patches, check_agreement, sample_patches

if TYPE_CHECKING:
    import torch

    from hematokit.models.classifier import Classifier

__all__ = ["cache_folder", "load_with_runtime"]

_log = logging.getLogger(__name__)

_UNUSED_DAYS: Final = 90
_PACKAGES: Final = ("hematokit", "torch", "timm", "onnx", "onnxscript", "onnxruntime", "openvino")


def load_with_runtime(path: Path, device: str | torch.device, runtime: str) -> Classifier | OnnxClassifier:
    """Load an ONNX file, or a bundle for a runtime other than torch.

    Parameters
    ----------
    path : Path
        Bundle folder or ONNX file, as `hematokit.models.find_model` returns it.
    device : str or torch.device
        onnxruntime and OpenVINO take ``"auto"`` and ``"cpu"``.
    runtime : str
        ``"onnxruntime"``, ``"openvino"``, or ``"auto"``: the faster of those that are installed where the device is the
        CPU, else torch.

    Raises
    ------
    ModelError
        If the runtime is unknown, not installed, cannot use the device or cannot compute the model exactly.
    """
    if runtime not in get_args(Runtime):
        raise ModelError(f"runtime {runtime!r} does not exist; choose among {', '.join(get_args(Runtime))}")
    if path.is_file():
        return _load_file(path, device, runtime)
    if runtime == "torch":
        return load_torch(path, device)
    if runtime in ENGINES:
        _check_device(device, runtime)
        return _load_exported(path, runtime)
    if not any(map(is_installed, ENGINES)) or not _is_cpu(device):
        return load_torch(path, device)
    try:
        return _load_exported(path, None)
    except ModelError as error:
        # Whatever is wrong with the bundle itself, torch says it next; all else it can do without an engine.
        model = load_torch(path, device)
        _log.warning("torch computes the model: %s", error)
        return model


def _check_device(device: str | torch.device, runtime: str) -> None:
    if str(device) not in ("auto", "cpu"):
        raise ModelError(f"runtime {runtime} computes on the CPU, not on {device}; use --device cpu, or torch")


def _is_cpu(device: str | torch.device) -> bool:
    if str(device) == "auto":
        from hematokit.models.devices import resolve_device

        return resolve_device("auto").type == "cpu"
    return str(device) == "cpu"


def _check_installed(engine: str) -> None:
    if not is_installed(engine):
        raise ModelError(f"runtime {engine} needs the package {engine}; {INSTALL[engine]}")


def _load_file(path: Path, device: str | torch.device, runtime: str) -> OnnxClassifier:
    """Open an ONNX file with the engine asked for, or the faster one."""
    if runtime == "torch":
        raise ModelError(
            f"{path} is an ONNX file, which torch does not compute; use --runtime auto, or give the bundle"
        )
    _check_device(device, "onnxruntime" if runtime == "auto" else runtime)
    if runtime == "auto":
        installed = [engine for engine in ENGINES if is_installed(engine)]
        if not installed:
            raise ModelError(f"{path} needs a package that computes ONNX files; {INSTALL['onnxruntime']}")
        runtime = installed[0] if len(installed) == 1 else _faster(path)
    _check_installed(runtime)
    return OnnxClassifier(path, engine=runtime)


def _faster(path: Path) -> str:
    """Which engine is faster for an ONNX file, measured once a machine; onnxruntime judges the other's answers."""
    content = read_onnx(path)
    key = hashlib.sha256(f"{hashlib.sha256(content).hexdigest()} {_versions()}".encode()).hexdigest()
    kept = _kept(cache_folder() / "onnx" / f"{key}.json")
    if not kept:
        reference = OnnxClassifier(path)
        kept = _judge(reference.logits, reference.patch_size, lambda engine: OnnxClassifier(content, engine=engine))
        _keep(cache_folder() / "onnx" / f"{key}.json", kept)
    return _best(kept) or ENGINES[0]


def _load_exported(folder: Path, engine: str | None) -> OnnxClassifier:
    """Open a bundle's exported model, from the cache if it is there; without `engine` with the faster one."""
    if engine is not None:
        _check_installed(engine)
    config = read_config(folder)
    check_bundle(folder, config)
    path = cache_folder() / "onnx" / f"{_fingerprint(folder, config)}.onnx"
    found = _from_cache(path, config, engine)
    if found is not None:
        return found
    with _one_at_a_time(path):
        # Another process may have made it while this one waited.
        return _from_cache(path, config, engine) or _export(folder, config, path, engine)


def _versions(*more: str) -> str:
    versions = []
    for name in dict.fromkeys((*_PACKAGES, *more)):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{name}=={metadata.version(name)}")
    return "\n".join(versions)


def _fingerprint(folder: Path, config: BundleConfig) -> str:
    """What an exported model depends on, hashed: weights, configuration, versions."""
    digest = hashlib.sha256(_versions(config.backbone.package).encode())
    digest.update(bytes.fromhex(file_sha256(folder / WEIGHTS) + file_sha256(folder / CONFIG)))
    return digest.hexdigest()


Judgement = dict[str, dict[str, Any]]
"""Engine to ``{"images_per_second": ..., "max_logit_difference": ...}``, or to ``{"refused": why}``."""


def _judge(reference: Callable[[Patches], Logits], side: int, make: Callable[[str], OnnxClassifier]) -> Judgement:
    """Hold every engine that is installed against the reference, and time it."""
    found: Judgement = {}
    for engine in filter(is_installed, ENGINES):
        try:
            made = make(engine)
            found[engine] = {"max_logit_difference": check_agreement(reference, made.logits, side, engine)}
        except ModelError as error:
            found[engine] = {"refused": str(error)}
            continue
        found[engine]["images_per_second"] = _speed(made)
    return found


def _speed(model: OnnxClassifier) -> float:
    """Patches a second; the best of a few, as whatever else runs here only takes away."""
    patches = sample_patches(model.patch_size)[[0, 1, 2, 3, 4, 5, 6] * 2 + [0, 1]]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        model.logits(patches)
        seconds.append(time.perf_counter() - start)
    return len(patches) / max(min(seconds[1:]), 1e-9)


def _best(found: Judgement) -> str | None:
    """The fastest engine that gives the right answers."""
    right = {engine: said["images_per_second"] for engine, said in found.items() if "refused" not in said}
    return max(right, key=lambda engine: right[engine]) if right else None


def _chosen(found: Judgement, engine: str | None) -> str:
    """The engine asked for, or the fastest; raises what is wrong with it."""
    chosen = engine or _best(found) or next(iter(found), ENGINES[0])
    refused = found.get(chosen, {}).get("refused")
    if refused is not None:
        raise ModelError(str(refused))
    return chosen


def _from_cache(path: Path, config: BundleConfig, engine: str | None) -> OnnxClassifier | None:
    """The exported model, if there is one that opens; a damaged one is made again."""
    found = _kept(path.with_suffix(".json"))
    if not found or (engine is not None and engine not in found):
        return None
    chosen = _chosen(found, engine)
    try:
        made = OnnxClassifier(path.read_bytes(), config, chosen)
    except (OSError, ModelError):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # when it was last of use
        os.utime(path.with_suffix(".json"))
    return made


def _kept(path: Path) -> Judgement:
    """What was found out before; empty if nothing was."""
    try:
        said: Judgement = json.loads(path.read_text(encoding="utf-8"))
        whole = all("refused" in entry or entry["images_per_second"] > 0 for entry in said.values())
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}
    return said if whole else {}


def _keep(path: Path, found: Judgement) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)


def _export(folder: Path, config: BundleConfig, path: Path, engine: str | None) -> OnnxClassifier:
    """Export, check, time, keep."""
    from hematokit.models.exporting import onnx_bytes

    reference = load_torch(folder, "cpu")
    data = onnx_bytes(reference)
    found = _judge(reference.logits, reference.patch_size, lambda name: OnnxClassifier(data, config, name))
    chosen = _chosen(found, engine)
    made = OnnxClassifier(data, config, chosen)
    try:
        _clear_unused(path.parent)
        write_atomically(path, data)
        write_json(path.with_suffix(".json"), found)
    except OSError as error:
        reason = error.strerror or error
        _log.warning(
            "%s cannot be written (%s): the model is exported anew each time; set HEMATOKIT_CACHE", path, reason
        )
    return made


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold other processes back that want to make the same file; where that cannot be done, each makes its own."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_suffix(".lock"), timeout=600)
    # Writing is atomic anyway: the lock saves work, it is not needed.
    with contextlib.suppress(OSError, NotImplementedError, Timeout):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _clear_unused(folder: Path) -> None:
    """Remove models that were not used for three months, and what killed processes left behind."""
    now = time.time()
    for path in folder.iterdir():
        days = 1 if path.name.startswith(TEMPORARY_PREFIX) else _UNUSED_DAYS
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime > days * 86400:
                path.unlink()


def cache_folder() -> Path:
    """Where things are kept that can be made again: ``HEMATOKIT_CACHE``, else ``hematokit`` in the user's cache folder.

    Returns
    -------
    Path
        Need not exist.
    """
    own = os.environ.get("HEMATOKIT_CACHE")
    if own:
        return Path(own).expanduser()
    # A relative XDG path is invalid and to be ignored (XDG base directory specification).
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if Path(shared).is_absolute():
        return Path(shared) / "hematokit"
    try:
        home = Path.home()
    except RuntimeError:
        # Nobody's home, as in some containers: a place that cannot be written, so that nothing is kept.
        return Path(os.devnull) / "hematokit"
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "hematokit"
