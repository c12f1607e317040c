"""From a backbone's name to a module, with weights from the hub, from a file, or none."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hematokit.errors import HematokitError, ModelError, PluginError, naming
from hematokit.models.classifier import ORIGIN
from hematokit.plugins import PluginChoice, load_plugins
from hematokit.plugins.hookspecs import PROJECT
from hematokit.plugins.specs import BackboneSpec, InputSpec, Variant

__all__ = ["BackboneChoice", "build_backbone", "choose_backbone", "load_weights", "read_tensor_file"]


@dataclass(frozen=True)
class BackboneChoice(PluginChoice[BackboneSpec]):
    """A backbone with its options, a variant and an input size; it is not built yet.

    Attributes
    ----------
    variant_name : str
    variant : Variant
        As registered.
    input : InputSpec
        The variant's, with the chosen size.
    """

    variant_name: str
    variant: Variant
    input: InputSpec

    @property
    def full_name(self) -> str:
        """Name and variant: ``"coatnet:nano"``."""
        return f"{self.name}:{self.variant_name}"

    @property
    def title(self) -> str:
        """For messages: ``backbone coatnet:nano of package hematokit``."""
        return f"backbone {self.full_name} of package {self.package}"


def choose_backbone(
    name: str,
    variant: str | None = None,
    image_size: int | None = None,
    options: Mapping[str, object] | None = None,
) -> BackboneChoice:
    """Resolve and check a user's choice of backbone; builds nothing.

    Parameters
    ----------
    name : str
        ``"coatnet"``, ``"coatnet:nano"``, ``"timm:resnet18"``.
    variant : str, optional
        Variant, if the name does not hold it.
    image_size : int, optional
        Side of the input in pixels; the variant's own where not given.
    options : mapping, optional
        Options of the backbone.

    Raises
    ------
    PluginError
        If the backbone, variant or an option does not exist.
    ModelError
        If the size does not fit the backbone.
    """
    spec, variant_name, found = load_plugins().backbone(name, variant)
    given = found.input
    size = image_size or given.size
    if size % given.divisor or size < 2 * given.divisor:
        below = max(size // given.divisor, 2) * given.divisor
        raise ModelError(
            f"image size {size} does not fit backbone {spec.name}: a multiple of {given.divisor} of at least "
            f"{2 * given.divisor}; for example {below} or {below + given.divisor}"
        )
    resolved = InputSpec(size, given.divisor, given.mean, given.std, given.fit)
    chosen = load_plugins().backbones.choose(spec.name, options)
    return BackboneChoice(spec, chosen.package, chosen.version, chosen.options, variant_name, found, resolved)


def build_backbone(
    choice: BackboneChoice, num_classes: int, *, pretrained: bool = False, weights: str | Path | None = None
) -> torch.nn.Module:
    """Build the module.

    Parameters
    ----------
    choice : BackboneChoice
        From `choose_backbone`.
    num_classes : int
        Number of logits.
    pretrained : bool
        Start from weights that the backbone's authors published (fetched from a hub once, then cached).
    weights : path, optional
        Start from a local file instead: safetensors, or a timm checkpoint that holds tensors only.

    Returns
    -------
    torch.nn.Module
        ``(B, 3, size, size) float32 -> (B, num_classes)``.

    Raises
    ------
    ModelError
        If there are no published weights, the hub is out of reach, or the file does not fit.
    """
    name = choice.full_name
    if pretrained and weights is not None:
        raise ModelError("--pretrained and --weights both name a start; give one of them")
    if pretrained and not choice.variant.pretrained:
        having = [key for key, item in choice.spec.variants.items() if item.pretrained]
        hint = (
            f"variants that have some: {', '.join(having)}" if having else "train from scratch or give --weights FILE"
        )
        raise ModelError(f"no pretrained weights exist for {name}; {hint}")
    try:
        with _quiet_hub():
            module: torch.nn.Module = choice.spec.factory(
                choice.variant.model,
                num_classes=num_classes,
                input_size=choice.input.size,
                pretrained=pretrained,
                **choice.options,
            )
    except HematokitError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        if pretrained and _is_download(error):
            raise ModelError(
                f"pretrained weights of {name} cannot be fetched ({type(error).__name__}: {text}); "
                "connect to the hub, or download them elsewhere and give --weights FILE"
            ) from error
        raise PluginError(
            f"{choice.title} failed to build ({type(error).__name__}: {text}); check its options and image size"
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise PluginError(f"{choice.title} is a {type(module).__name__}, not a torch.nn.Module; tell its author")
    if choice.package != PROJECT:
        # For messages: errors inside name the package.
        setattr(module, ORIGIN, choice.title)
    if weights is None:
        return module
    if choice.spec.load_weights is None:
        load_weights(module, Path(weights))
        return module
    if not Path(weights).is_file():
        raise _no_file(Path(weights))
    with naming(choice.title):
        choice.spec.load_weights(module, Path(weights))
    return module


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep the hub's library from logging every attempt; the result is reported once."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "timm", "httpx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _is_download(error: BaseException | None) -> bool:
    """Whether an error comes from fetching: the hub's libraries raise many types, chained in several ways."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        origin = type(error).__module__.split(".")[0]
        if origin in {"huggingface_hub", "httpx", "httpcore", "requests", "urllib3", "urllib"}:
            return True
        if isinstance(error, OSError):
            return True
        error = error.__cause__ or error.__context__
    return False


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """Load a local weights file into a backbone, leaving a head of another size as it is.

    Parameters
    ----------
    module : torch.nn.Module
        The backbone.
    path : Path
        ``.safetensors``, or a checkpoint as timm writes them. Nothing but tensors is unpickled. The
        ``model.safetensors`` of a bundle works too.

    Raises
    ------
    ModelError
        If the file is missing, holds more than tensors, or leaves a part of the backbone without weights.
    """
    if not path.is_file():
        raise _no_file(path)
    from timm.models import load_state_dict

    try:
        state = dict(load_state_dict(str(path), use_ema=True, weights_only=True))
    except Exception as error:
        text = " ".join(str(error).split())[:160]
        raise ModelError(
            f"weights file {path} cannot be read safely ({type(error).__name__}: {text}); "
            "give a safetensors file or a checkpoint that holds tensors only"
        ) from error
    state = {key.removeprefix("backbone."): value for key, value in state.items() if isinstance(value, torch.Tensor)}
    # timm's families know how to bring published checkpoints (older names, other input sizes) into today's form.
    remap = getattr(sys.modules.get(type(module).__module__), "checkpoint_filter_fn", None)
    if remap is not None:
        try:
            state = dict(remap(state, module))
        except Exception as error:
            raise ModelError(
                f"weights file {path} is not of a {type(module).__name__} ({type(error).__name__}); "
                "give weights of the chosen backbone and variant"
            ) from error
    own = module.state_dict()
    # Counters are not learned; old checkpoints lack them.
    wanted = {key for key in own if not key.endswith("num_batches_tracked")}
    head = _head_keys(module) & set(own)
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    missing = sorted(wanted - set(fitting) - head)
    if missing:
        raise ModelError(
            f"weights file {path} does not fit the backbone: {len(missing)} of {len(wanted)} tensors are missing or of "
            f"another shape ({missing[0]}, ...); give weights of the chosen backbone, variant and image size"
        )
    module.load_state_dict(fitting, strict=False)


def _no_file(path: Path) -> ModelError:
    return ModelError(f"weights file {path} does not exist; give a .safetensors file or a timm checkpoint")


def _head_keys(module: torch.nn.Module) -> set[str]:
    """Names of the final linear layer's tensors, which depend on the number of classes."""
    get = getattr(module, "get_classifier", None)
    head = get() if callable(get) else None
    if not isinstance(head, torch.nn.Module):
        return set()
    ids = {id(parameter) for parameter in head.parameters()}
    return {name for name, parameter in module.named_parameters() if id(parameter) in ids}


def read_tensor_file(path: Path, give: str) -> Any:
    """Read a ``.safetensors`` file, or what ``torch.save`` wrote; nothing else is unpickled.

    For plugins whose weights have a form of their own; `load_weights` reads timm's.

    Parameters
    ----------
    path : Path
    give : str
        Remedy, for the message.

    Returns
    -------
    Any
        Mostly a dict of tensors, or one with such a dict inside: the caller looks.

    Raises
    ------
    ModelError
        If it cannot be read so.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # The message of torch recommends the unsafe option.
        reason = " ".join(str(error).split())[:100]
        raise ModelError(
            f"weights file {path} cannot be read safely ({type(error).__name__}: {reason}); give {give}"
        ) from error
