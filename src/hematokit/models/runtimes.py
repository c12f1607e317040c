"""What computes a classifier: torch; or onnxruntime or OpenVINO on the CPU, which are faster and start without torch.

A bundle is exported to ONNX once, held against torch on a few patches with every engine that is installed, and kept in
the user's cache folder under a name that changes with the weights, the configuration and the versions of everything
involved; which engine is faster is measured and kept beside it. The cache may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np

from hematokit.errors import ModelError
from hematokit.files import TEMPORARY_PREFIX, user_folder, write_atomically, write_json
from hematokit.models.bundle import CONFIG, WEIGHTS, BundleConfig, check_bundle, read_config
from hematokit.models.engines import ENGINES, INSTALL, is_installed, stream_count, thread_count
from hematokit.models.integrity import file_sha256
from hematokit.models.loading import Runtime, load_torch
from hematokit.models.onnx_classifier import BATCH, OnnxClassifier, read_onnx
from hematokit.models.parity import Logits, Patches, check_agreement, sample_patches
from hematokit.models.timing import Timing, time_engines

if TYPE_CHECKING:
    import torch

    from hematokit.models.classifier import Classifier

__all__ = ["cache_folder", "load_with_runtime"]

_log = logging.getLogger(__name__)

_UNUSED_DAYS: Final = 90
_LOCK_SECONDS: Final = 600
_LOOK_SECONDS: Final = 5
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
        if len(installed) > 1:
            return _faster(path, installed)
        runtime = installed[0]
    _check_installed(runtime)
    return OnnxClassifier(path, engine=runtime)


def _faster(path: Path, installed: list[str]) -> OnnxClassifier:
    """Open an ONNX file with the faster engine, as measured on this machine; onnxruntime judges the other's answers."""
    content = read_onnx(path)
    key = hashlib.sha256(f"{hashlib.sha256(content).hexdigest()} {_versions()}".encode()).hexdigest()
    notes_path = cache_folder() / "onnx" / f"{key}.json"
    notes = _kept(notes_path)
    if not set(installed) <= set(notes.get("engines", {})):
        reference = OnnxClassifier(path)
        notes = _judge(reference.logits, reference.patch_size, lambda engine: OnnxClassifier(content, engine=engine))
        _keep(notes_path, notes)
    return _open_best(notes, notes_path, lambda engine: OnnxClassifier(content, engine=engine))


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


Notes = dict[str, dict[str, Any]]
"""``engines``: name to ``{"max_logit_difference": ...}`` or ``{"refused": why}``; ``timing``: threads to `Timing`."""

Make = Callable[[str], OnnxClassifier]


def _judge(reference: Callable[[Patches], Logits], side: int, make: Make) -> Notes:
    """Hold every engine that is installed against the reference."""
    found: dict[str, Any] = {}
    for engine in filter(is_installed, ENGINES):
        try:
            found[engine] = {"max_logit_difference": check_agreement(reference, make(engine).logits, side, engine)}
        except ModelError as error:
            found[engine] = {"refused": str(error)}
    return {"engines": found, "timing": {}}


def _open_best(notes: Notes, path: Path, make: Make) -> OnnxClassifier:
    """Open the model with the faster of the engines that give the right answers; measure them where that is not known.

    Parameters
    ----------
    notes : dict
        What is known, at least of one engine.
    path : Path
        File of these notes: what is measured is added there.
    make : callable
        Opens the model with an engine.

    Raises
    ------
    ModelError
        If no engine gives the right answers.
    """
    _check_refused(notes, None)
    right = [name for name, said in notes["engines"].items() if "refused" not in said and is_installed(name)]
    if not right:
        raise ModelError("none of the engines that this model was checked with is installed any more")
    threads = str(thread_count())
    timing = Timing.from_dict(notes["timing"].get(threads))
    if timing.is_settled(right):
        return make(timing.fastest(right) or right[0])
    opened = {engine: make(engine) for engine in right}
    patches = sample_patches(opened[right[0]].patch_size)

    def computing(model: OnnxClassifier) -> Callable[[int], object]:
        model.logits(patches)  # the first batch of a size takes longer than any other
        return lambda count: model.logits(patches[np.arange(count) % len(patches)])

    timing = time_engines(
        {name: computing(model) for name, model in opened.items()}, timing, 2 * stream_count(), BATCH * stream_count()
    )
    _keep(path, notes | {"timing": notes["timing"] | {threads: timing.to_dict()}})
    return opened[timing.fastest(right) or right[0]]


def _from_cache(path: Path, config: BundleConfig, engine: str | None) -> OnnxClassifier | None:
    """The exported model, if there is one that opens; a damaged one is made again."""
    notes = _kept(path.with_suffix(".json"))
    if not notes or (engine is not None and engine not in notes["engines"]):
        return None
    _check_refused(notes, engine)
    try:
        data = path.read_bytes()
        with contextlib.suppress(OSError):
            os.utime(path)  # when it was last of use
            os.utime(path.with_suffix(".json"))
        if engine is not None:
            return OnnxClassifier(data, config, engine)
        return _open_best(notes, path.with_suffix(".json"), lambda name: OnnxClassifier(data, config, name))
    except (OSError, ModelError):
        return None


def _check_refused(notes: Notes, engine: str | None) -> None:
    """Raise what is wrong with the engine asked for, or with all."""
    said = notes["engines"] if engine is None else {engine: notes["engines"][engine]}
    reasons = [str(entry["refused"]) for entry in said.values() if "refused" in entry]
    if reasons and len(reasons) == len(said):
        raise ModelError(reasons[0])


def _kept(path: Path) -> Notes:
    """What was found out before; empty if nothing was."""
    try:
        said: Notes = json.loads(path.read_text(encoding="utf-8"))
        whole = isinstance(said["timing"], dict) and all(
            "refused" in entry or entry["max_logit_difference"] >= 0 for entry in said["engines"].values()
        )
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}
    return said if whole and said["engines"] else {}


def _keep(path: Path, notes: Notes) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, notes)


def _export(folder: Path, config: BundleConfig, path: Path, engine: str | None) -> OnnxClassifier:
    """Export, check, keep; without `engine`, time."""
    from hematokit.models.exporting import onnx_bytes

    reference = load_torch(folder, "cpu")
    data = onnx_bytes(reference)

    def make(name: str) -> OnnxClassifier:
        return OnnxClassifier(data, config, name)

    notes = _judge(reference.logits, reference.patch_size, make)
    _check_refused(notes, engine)
    try:
        _clear_unused(path.parent)
        write_atomically(path, data)
        write_json(path.with_suffix(".json"), notes)
    except OSError as error:
        reason = error.strerror or error
        _log.warning(
            "%s cannot be written (%s): the model is exported anew each time; set HEMATOKIT_CACHE", path, reason
        )
    return make(engine) if engine is not None else _open_best(notes, path.with_suffix(".json"), make)


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold other processes back that want to make the same file; where that cannot be done, each makes its own."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_suffix(".lock"))
    holder = path.with_suffix(".holder")
    # Writing is atomic anyway: the lock saves work, it is not needed.
    with contextlib.suppress(OSError, NotImplementedError):
        path.parent.mkdir(parents=True, exist_ok=True)
        for waited in range(0, _LOCK_SECONDS, _LOOK_SECONDS):
            try:
                lock.acquire(timeout=_LOOK_SECONDS)
            except Timeout:
                if _is_gone(holder):
                    break
                if not waited:
                    _log.warning(
                        "waiting for %s, which makes the same model for this computer's engines (%s)",
                        _who(holder) or "another process",
                        lock.lock_file,
                    )
            else:
                holder.write_text(f"{os.getpid()} {platform.node()}", encoding="utf-8")
                break
    try:
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                holder.unlink()
        lock.release()


def _who(holder: Path) -> str:
    """Who holds the lock, in words; empty where that is not known."""
    with contextlib.suppress(OSError, ValueError):
        pid, node = holder.read_text(encoding="utf-8").split()
        return f"process {pid} on {node}"
    return ""


def _is_gone(holder: Path) -> bool:
    """Whether the process that took the lock has ended: one it had forked may hold the lock on, and never let go."""
    import psutil

    with contextlib.suppress(OSError, ValueError):
        pid, node = holder.read_text(encoding="utf-8").split()
        return node == platform.node() and not psutil.pid_exists(int(pid))
    return False


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
    return user_folder("HEMATOKIT_CACHE", "XDG_CACHE_HOME", ".cache", "Library/Caches")
