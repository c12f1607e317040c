"""Specs, which plugins register: small, immutable descriptions that are cheap to list.

A spec has a name and a `factory`, which makes the plugin. Modules, weights and heavy imports are loaded only when
the factory is called, so listing plugins imports neither torch nor a plugin's own dependencies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Protocol

from hematokit.errors import PluginError
from hematokit.files import hash_path
from hematokit.yaml_text import read_value

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

__all__ = [
    "DETECTION_COLUMNS",
    "AnySpec",
    "Augmenter",
    "AugmenterSpec",
    "BackboneSpec",
    "Detector",
    "DetectorSpec",
    "Explainer",
    "ExplainerSpec",
    "InputSpec",
    "Option",
    "PathKind",
    "Variant",
    "complete_explainer",
]

Fit = Literal["resize", "reflect-pad", "crop", "auto"]
PathKind = Literal["file", "folder", "existing", "any"]


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a plugin, set with ``--set backbone.NAME=VALUE``.

    Attributes
    ----------
    type : type
        ``int``, ``float``, ``bool`` or ``str``; values are converted to it. Text stays as it was typed for ``str``.
    default : object
        Default value; ``None`` leaves the choice to the plugin.
    description : str
        One line for ``--help`` and error messages.
    minimum, maximum : float or None
        Inclusive limits of a number.
    choices : tuple
        The only values that are taken; empty where all are. A drop-down, where there are forms.
    path : str or None
        For ``str``: the text is a path, relative to the working directory. ``"file"`` and ``"folder"`` must exist,
        ``"existing"`` is either of them, ``"any"`` need not exist. Empty text is no path and is not looked for. A
        bundle leaves out a backbone's paths, because they mean nothing elsewhere: it is built with the default there,
        and whatever came from the file must be in its weights.
    """

    type: type
    default: Any
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] = ()
    path: PathKind | None = None

    def convert(self, name: str, value: object) -> Any:
        """Return `value` as this option's type.

        Raises
        ------
        PluginError
            If the value is not of the type, is outside the limits, is not among the choices, or no such path exists.
        """
        given = value
        if isinstance(value, str) and self.type is not str:
            value = read_value(value)
        if value is None:
            return self.default
        try:
            if self.type is bool:
                converted: Any = _as_bool(value)
            elif self.type is not str and isinstance(value, bool):
                raise ValueError
            elif self.type is int:
                if isinstance(value, float) and not value.is_integer():
                    raise ValueError
                converted = int(value)  # type: ignore[call-overload]
            else:
                converted = self.type(value)
        except (TypeError, ValueError):
            raise PluginError(f"option {name}: {given!r} is not {_article(self.type)}; {self.description}") from None
        if isinstance(converted, int | float):
            low = self.minimum if self.minimum is not None else float("-inf")
            high = self.maximum if self.maximum is not None else float("inf")
            # Written this way round so that not-a-number fails too.
            if not low <= converted <= high:
                raise PluginError(f"option {name}: {given!r} is outside {low:g} to {high:g}; {self.description}")
        if self.choices and converted not in self.choices:
            known = ", ".join(map(str, self.choices))
            raise PluginError(f"option {name}: {given!r} is none of {known}; {self.description}")
        if self.path is not None and converted:
            converted = self._find(name, converted)
        return converted

    def _find(self, name: str, given: str) -> str:
        """Return a path with the home folder written out, if it is there."""
        try:
            found = Path(given).expanduser()
        except RuntimeError:
            found = Path(given)  # a home folder of an unknown user
        is_there = {"file": found.is_file, "folder": found.is_dir, "existing": found.exists}.get(self.path or "any")
        if is_there is not None and not is_there():
            what = "file or folder" if self.path == "existing" else self.path
            raise PluginError(f"option {name}: there is no {what} {given}; {self.description}")
        return str(found)


def _existing(text: str) -> Path | None:
    """Return the file or folder that a text names; None also for text that cannot be a path, as a long one."""
    try:
        path = Path(text).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):  # the second where '~' is of no user
        return None


def _as_bool(value: object) -> bool:
    if value not in (0, 1):
        raise ValueError
    return bool(value)


def _article(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, f"a {kind.__name__}")


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How a patch becomes the network's input.

    Attributes
    ----------
    size : int
        Side of the square input in pixels.
    divisor : int
        The size must be a multiple of this, and at least twice it.
    mean, std : tuple of float
        Normalisation per channel, in units of [0, 1].
    fit : str
        ``"resize"`` (bilinear, antialiased), ``"reflect-pad"`` (no resampling; the input is larger than the patch),
        ``"crop"`` (centre crop; the input is smaller), or ``"auto"``: pad where the input is up to an eighth larger
        than the patch, else resize.

    Raises
    ------
    PluginError
        If a number of `mean` is not finite, or one of `std` not positive and finite.
    """

    size: int
    divisor: int = 32
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    fit: Fit = "auto"

    def __post_init__(self) -> None:
        """Check the normalisation."""
        if not all(map(math.isfinite, self.mean)):
            raise PluginError(f"mean {self.mean} of an input is not possible; give three finite numbers")
        if not all(0 < value < math.inf for value in self.std):
            raise PluginError(f"std {self.std} of an input is not possible; give three positive, finite numbers")

    def fit_of(self, side: int) -> str:
        """Return how a patch of `side` pixels is fitted: ``"none"``, ``"resize"``, ``"reflect-pad"`` or ``"crop"``."""
        if side == self.size:
            return "none"
        if self.fit == "auto":
            # A narrow reflected margin costs no sharpness; a wide one would only add pixels to compute.
            return "reflect-pad" if side < self.size <= side + side // 8 else "resize"
        return self.fit

    def region(self, side: int) -> tuple[int, int]:
        """Return the square of a patch that the input shows.

        Parameters
        ----------
        side : int
            Side of the patch in pixels.

        Returns
        -------
        start, length : int
            First row and column, and side, in pixels of the patch. `start` is negative where the input has a
            reflected margin.
        """
        fit = self.fit_of(side)
        if fit == "reflect-pad" and self.size > side:
            return -((self.size - side) // 2), self.size
        if fit == "crop" and self.size < side:
            return (side - self.size) // 2, self.size
        return 0, side


@dataclass(frozen=True, slots=True)
class Variant:
    """One size or flavour of a backbone.

    Attributes
    ----------
    model : str
        The name that the factory understands (for the built-in ones, timm's).
    input : InputSpec
        Input of the network.
    pretrained : bool
        Whether weights trained elsewhere exist.
    description : str
        One line.
    """

    model: str
    input: InputSpec
    pretrained: bool = False
    description: str = ""


class Augmenter(Protocol):
    """Changes a batch at random, on the batch's device, with parameters drawn per image."""

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return the augmented batch.

        Parameters
        ----------
        images : Tensor, shape (B, 3, H, W), float32 in [0, 1]
        generator : torch.Generator
            The only source of chance, on the CPU or on the images' device.
        """


class Explainer(Protocol):
    """An explainer attributes a prediction to the pixels of the patch.

    Only `attribute` has to be written: a class that inherits from `Explainer` has defaults of the other methods.
    Explainers that do not inherit and lack them, such as those written for hooks 1.0, work too: `complete_explainer`
    adds the defaults.
    """

    def attribute(self, classifier: Any, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return attributions, shape (B, H, W), float32, unnormalised, for images (B, 3, H, W) in [0, 1]."""

    def attribute_many(self, classifier: Any, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return attributions, shape (B, T, H, W), float32, for several classes of each image.

        The default calls `attribute` once per class. Override it where one forward pass can serve all classes.

        Parameters
        ----------
        classifier : Classifier
        images : Tensor, shape (B, 3, H, W), float32 in [0, 1]
        targets : Tensor, shape (B, T), int64
        """
        maps = [self.attribute(classifier, images, column) for column in targets.unbind(1)]
        # Stacked without torch.stack, since this module never imports torch: listing plugins has to be fast.
        stacked = maps[0].new_empty((len(maps), *maps[0].shape))
        for position, one in enumerate(maps):
            stacked[position] = one
        return stacked.transpose(0, 1)

    def notes(self, classifier: Any) -> Sequence[str]:
        """Return remarks on the maps of a classifier, one line each; the default has none."""
        return ()


class _CompletedExplainer(Explainer):
    """An explainer with only some of the methods, completed with the defaults of `Explainer`."""

    def __init__(self, explainer: Any) -> None:
        self._explainer = explainer
        for name in _OPTIONAL_METHODS:
            if callable(method := getattr(explainer, name, None)):
                setattr(self, name, method)

    def attribute(self, classifier: Any, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self._explainer.attribute(classifier, images, targets)
        return maps


_OPTIONAL_METHODS: Final = ("attribute_many", "notes")


def complete_explainer(explainer: Any) -> Explainer:
    """Return an explainer that has all methods of `Explainer`.

    Parameters
    ----------
    explainer : object
        Has `attribute`, and perhaps other methods of `Explainer`.

    Returns
    -------
    Explainer
        `explainer` itself where it has all methods, else an adapter that adds the defaults.
    """
    if all(callable(getattr(explainer, name, None)) for name in _OPTIONAL_METHODS):
        complete: Explainer = explainer
        return complete
    return _CompletedExplainer(explainer)


class Detector(Protocol):
    """A detector of the cells of a field."""

    def detect(self, field: np.ndarray, pixel_size_um: float | None) -> pd.DataFrame:
        """Return one row per cell: the geometry columns, ``score`` and, where there is one, a contour."""


DETECTION_COLUMNS: Final = ("y", "x", "y0", "x0", "height", "width", "score", "area", "touches_border", "contour")
"""What a detector says of a cell: centre and box in pixels of the field, score in [0, 1], area of the nucleus in
square pixels, whether the border of the field cuts it, and the nucleus's outline (n, 2) as ``(y, x)``, or None."""

_NO_OPTIONS: Mapping[str, Option] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _Spec:
    """Attributes of all specs.

    Attributes
    ----------
    name : str
        Name in commands: lower-case letters, digits, ``-``, ``_`` and ``.``.
    description : str
        One line for listings.
    factory : callable
        Makes it from its options; heavy imports belong inside.
    options : mapping of str to Option
        What ``--set`` can change, by the factory's names.
    """

    kind: ClassVar[str]
    """``"backbone"``, ``"augmenter"``, ``"explainer"`` or ``"detector"``; for messages."""

    name: str
    description: str
    factory: Callable[..., Any]
    options: Mapping[str, Option] = field(default_factory=lambda: _NO_OPTIONS)

    def resolve_options(self, given: Mapping[str, object] | None) -> dict[str, Any]:
        """Check and complete a user's options.

        Raises
        ------
        PluginError
            If an option is unknown or its value does not fit.
        """
        given = given or {}
        unknown = sorted(set(given) - set(self.options))
        if unknown:
            known = ", ".join(sorted(self.options)) or "none"
            raise PluginError(f"{self.name} has no option {unknown[0]!r}; its options: {known}")
        return {name: option.convert(name, given.get(name)) for name, option in self.options.items()}

    def declared_options(self, given: Mapping[str, object]) -> dict[str, Any]:
        """Return a user's options, and no others, as their declared types; raises as `resolve_options` does."""
        resolved = self.resolve_options(given)
        return {name: resolved[name] for name in given}

    def portable_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options as they make sense on another machine: paths are back at their defaults."""
        return {name: self.options[name].default if self._is_path(name) else value for name, value in options.items()}

    def recorded_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options as a document may show them: of a path only the last part, as folder names may be private."""
        return {name: Path(value).name if value and self._is_path(name) else value for name, value in options.items()}

    def deciding_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options as they decide a result: instead of the path of a file or folder, the SHA-256 of its content.

        A text option that does not declare a path counts as one where it names a file that exists.
        """
        deciding = dict(options)
        for name, value in options.items():
            path = _existing(value) if isinstance(value, str) and value else None
            if path is not None and (path.is_file() or (self._is_path(name) and path.is_dir())):
                try:
                    deciding[name] = f"sha256:{hash_path(path)}"
                except OSError as error:
                    cause = error.strerror or error
                    raise PluginError(f"{self.name}: {name} {path} cannot be read ({cause}); check the path") from error
        return deciding

    def _is_path(self, name: str) -> bool:
        return name in self.options and self.options[name].path is not None


@dataclass(frozen=True, slots=True)
class AugmenterSpec(_Spec):
    """An augmenter; ``factory(**options) -> Augmenter``."""

    kind: ClassVar[str] = "augmenter"


@dataclass(frozen=True, slots=True)
class _VersionedSpec(_Spec):
    """A spec of an algorithm whose results are kept.

    Attributes
    ----------
    version : str
        Of the algorithm, not of the package: another one says that the same input and options give other results. A
        folder of results of another version is not continued. Empty: the version of the package.
    """

    version: str = ""


@dataclass(frozen=True, slots=True)
class ExplainerSpec(_VersionedSpec):
    """An explainer; ``factory(**options) -> Explainer``."""

    kind: ClassVar[str] = "explainer"


@dataclass(frozen=True, slots=True)
class DetectorSpec(_VersionedSpec):
    """A detector; ``factory(**options) -> Detector``."""

    kind: ClassVar[str] = "detector"


@dataclass(frozen=True, slots=True)
class BackboneSpec(_Spec):
    """A family of networks.

    Attributes
    ----------
    factory : callable
        ``factory(model, *, num_classes, input_size, pretrained, **options) -> torch.nn.Module`` that maps
        ``(B, 3, H, W) float32`` to logits ``(B, C)``. `model` is the chosen variant's.
    variants : mapping of str to Variant
        The sizes that can be chosen.
    default_variant : str
        Used where the user names none; empty if the variant must be named.
    attribution_layer : callable
        ``attribution_layer(module) -> torch.nn.Module`` whose output is ``(B, c, h, w)``.
    find_variant : callable or None
        ``find_variant(name) -> Variant`` for families whose variants cannot all be listed; raises `PluginError`.
    load_weights : callable or None
        ``load_weights(module, path)`` for backbones whose published checkpoints have a form of their own: what
        ``--weights FILE`` does, in place of hematokit's loader. The weights are in the bundle afterwards and the file
        is not needed again, which is why it is no option. Raises a `HematokitError` for a file that does not fit.
    """

    kind: ClassVar[str] = "backbone"

    variants: Mapping[str, Variant] = field(default_factory=dict)
    default_variant: str = ""
    attribution_layer: Callable[[torch.nn.Module], torch.nn.Module] | None = None
    find_variant: Callable[[str], Variant] | None = None
    load_weights: Callable[[torch.nn.Module, Path], object] | None = None

    def variant(self, name: str | None) -> tuple[str, Variant]:
        """Resolve a variant's name (``None``: the default).

        Raises
        ------
        PluginError
            If there is no such variant.
        """
        chosen = name or self.default_variant
        if chosen in self.variants:
            return chosen, self.variants[chosen]
        if self.find_variant is not None and chosen:
            return chosen, self.find_variant(chosen)
        known = ", ".join(self.variants) or f"write {self.name}:NAME"
        raise PluginError(f"backbone {self.name} has no variant {chosen!r}; its variants: {known}")


AnySpec = BackboneSpec | AugmenterSpec | ExplainerSpec | DetectorSpec
