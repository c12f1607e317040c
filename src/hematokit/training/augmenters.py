"""Augmenters: one or several in a row, their options, and the built-in ones.

Built in are ``hematonet`` (the HematoNet paper's set in one warp), ``flips`` and ``none``. Plugins are listed without
torch, so it is imported where images are changed.
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from hematokit.errors import PluginError, TrainingError, naming
from hematokit.plugins import MadeAugmenter, load_plugins
from hematokit.plugins.hookspecs import hookimpl
from hematokit.plugins.specs import AugmenterSpec, Option

if TYPE_CHECKING:
    import torch

__all__ = [
    "Augmenters",
    "FlipsAugmenter",
    "HematonetAugmenter",
    "NoAugmenter",
    "SeededTransform",
    "declared_options",
    "make_augmenter",
    "make_augmenters",
    "recorded_options",
    "register_augmenters",
    "sort_options",
]


@dataclass(frozen=True)
class Augmenters:
    """Augmenters in the order in which they change the images.

    Attributes
    ----------
    parts : tuple of MadeAugmenter
    """

    parts: tuple[MadeAugmenter, ...]

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Change a batch (B, 3, H, W) of float32 in [0, 1]; see `hematokit.plugins.specs.Augmenter`.

        Raises
        ------
        PluginError
            If one of them fails or returns something else than such a batch; it is named.
        """
        import torch

        for augmenter in self.parts:
            who = augmenter.title
            with naming(who):
                changed = augmenter.value(images, generator)
            if not isinstance(changed, torch.Tensor) or changed.shape != images.shape:
                what = tuple(changed.shape) if isinstance(changed, torch.Tensor) else type(changed).__name__
                raise PluginError(f"{who} returned {what}, not images {tuple(images.shape)}; tell its author")
            images = changed
        return images


def augmenter_names(text: str) -> list[str]:
    """Split ``"stain-hed,hematonet"``.

    Raises
    ------
    TrainingError
        If there is none, or one is named twice, as its options would be ambiguous.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names:
        raise TrainingError("augmenter names nothing; write none for no augmentation")
    if twice:
        raise TrainingError(f"augmenter {text!r} names {twice[0]} twice; name each once")
    return names


def sort_options(names: Sequence[str], options: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Give each augmenter its options.

    Parameters
    ----------
    names : sequence of str
        As registered.
    options : mapping
        By option (``{"rotation": 20}``), by augmenter and option (``{"stain-hed.scale": 0.1}``), or nested
        (``{"stain-hed": {"scale": 0.1}}``). One without an augmenter's name goes to the only one that has it.

    Returns
    -------
    dict of str to dict
        By augmenter.

    Raises
    ------
    PluginError
        If no augmenter has an option, or more than one has it.
    """
    found: dict[str, dict[str, object]] = {name: {} for name in names}
    # The command line writes '_' for '-'.
    spelt = {name.replace("-", "_"): name for name in names}
    for key, value in options.items():
        owner, dot, option = key.rpartition(".")
        if isinstance(value, Mapping):
            found[_whose(key, spelt)] |= {str(inner): given for inner, given in value.items()}
        elif dot:
            found[_whose(owner, spelt)][option] = value
        elif len(names) == 1:
            found[names[0]][key] = value
        else:
            having = [name for name in names if key in load_plugins().augmenters.get(name).options]
            if len(having) != 1:
                who = "several of these have" if having else "none of these has"
                raise PluginError(
                    f"augmenter option {key!r}: {who} it ({', '.join(having or names)}); write NAME.{key} with an "
                    "augmenter's name, as hematokit plugins lists them"
                )
            found[having[0]][key] = value
    return found


def _whose(name: str, spelt: Mapping[str, str]) -> str:
    owner = spelt.get(name.replace("-", "_"))
    if owner is None:
        raise PluginError(
            f"option of augmenter {name!r}, which is not used here; used are: {', '.join(spelt.values())}"
        )
    return owner


def make_augmenters(text: str, options: Mapping[str, object]) -> Augmenters:
    """Make one augmenter or several.

    Parameters
    ----------
    text : str
        Names with commas, first things first.
    options : mapping
        See `sort_options`.

    Raises
    ------
    TrainingError, PluginError
        If one does not exist or cannot be made, or an option does not fit.
    """
    registry = load_plugins().augmenters
    names = augmenter_names(text)
    for name in names:
        registry.get(name)
    given = sort_options(names, options)
    return Augmenters(tuple(make_augmenter(name, given[name]) for name in names))


def make_augmenter(name: str, options: Mapping[str, object]) -> MadeAugmenter:
    """Make one augmenter; a transform that takes no generator becomes a `SeededTransform`.

    Parameters
    ----------
    name : str
        As registered.
    options : mapping
        Its options, which are checked and completed.

    Raises
    ------
    PluginError
        If it does not exist or cannot be made, or an option does not fit.
    """
    made = load_plugins().augmenters.make(name, options)
    return made if _takes_generator(made.value) else replace(made, value=SeededTransform(cast(Any, made.value)))


# --- transforms without a generator -----------------------------------------------------------------------------------


def _takes_generator(augmenter: Any) -> bool:
    """Return whether an augmenter can be called with images and a generator, as far as its signature shows."""
    import torch

    is_module = isinstance(augmenter, torch.nn.Module)
    try:
        parameters = list(inspect.signature(augmenter.forward if is_module else augmenter).parameters.values())
    except (TypeError, ValueError):
        return True
    if any(parameter.name == "generator" for parameter in parameters):
        return True
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    if is_module:
        # The further arguments of torchvision's and kornia's transforms are optional, and are not generators.
        return sum(parameter.default is parameter.empty for parameter in positional) > 1
    return len(positional) > 1 or any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)


@dataclass(frozen=True)
class SeededTransform:
    """A transform that draws from the global generators, as an augmenter: ``torchvision.transforms.v2``, ``kornia``.

    The global generators of torch, NumPy and Python are seeded from the augmenter's generator while the transform runs,
    and have their former state afterwards. The transform is called once per image, because those of torchvision draw
    one set of parameters per call. Those of kornia, which draw for each image of a batch (unless ``same_on_batch``),
    are called once per batch.

    Attributes
    ----------
    transform : callable
        Takes and returns images (n, 3, H, W), float32 in [0, 1]; results are clipped to that range.
    """

    transform: Callable[[torch.Tensor], Any]

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Change a batch (B, 3, H, W); see `hematokit.plugins.specs.Augmenter`.

        Raises
        ------
        PluginError
            If the transform returns something other than images of the same shape.
        """
        import torch

        if isinstance(self.transform, torch.nn.Module):
            self.transform.to(images.device)
        # kornia's augmentations have this attribute.
        parts = torch.split(images, 1) if getattr(self.transform, "same_on_batch", True) is True else (images,)
        seeds = torch.randint(2**32, (len(parts),), generator=generator, device=generator.device).tolist()
        changed = []
        with _global_generators_kept(images.device):
            for part, seed in zip(parts, seeds, strict=True):
                _seed_global_generators(seed, images.device)
                # A copy, since the transform may change its images in place.
                found = self.transform(part.clone())
                if not isinstance(found, torch.Tensor) or found.shape != part.shape:
                    what = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
                    raise PluginError(
                        f"{type(self.transform).__name__} made {what} of images {tuple(part.shape)}; use a transform "
                        "that keeps the shape of the images"
                    )
                changed.append(found)
        return torch.cat(changed).to(images.device, torch.float32).clamp(0, 1)


@contextmanager
def _global_generators_kept(device: torch.device) -> Iterator[None]:
    """Give the global generators of torch (CPU and `device`), NumPy and Python their state back at the end."""
    import numpy as np
    import torch

    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what transforms draw from
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


def _seed_global_generators(seed: int, device: torch.device) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - what transforms draw from
    # Not torch.manual_seed, which would seed the generators of all devices.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def declared_options(text: str, options: Mapping[str, object]) -> dict[str, Any]:
    """Options of augmenters as the types that these declare, nested where there are several.

    Raises
    ------
    PluginError
        As `make_augmenters` does.
    """
    return _of_each(text, options, lambda spec, given: spec.declared_options(given))


def recorded_options(text: str, options: Mapping[str, object]) -> dict[str, Any]:
    """Options of augmenters as a bundle records them: of paths the last part, and nested where there are several."""
    return _of_each(text, options, lambda spec, given: spec.recorded_options(given))


def _of_each(
    text: str, options: Mapping[str, object], change: Callable[[AugmenterSpec, Mapping[str, object]], dict[str, Any]]
) -> dict[str, Any]:
    given = sort_options(augmenter_names(text), options)
    found = {name: change(load_plugins().augmenters.get(name), values) for name, values in given.items()}
    if len(found) == 1:
        return found.popitem()[1]
    return {name: values for name, values in found.items() if values}


# --- built in ---------------------------------------------------------------------------------------------------------


def _uniform(low: float, high: float, count: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    import torch

    # Drawn where the generator lives and then moved: the same seed gives the same batch.
    drawn = torch.rand(count, generator=generator, device=generator.device)
    return (low + (high - low) * drawn).to(device)


@dataclass(frozen=True)
class HematonetAugmenter:
    """Rotation, zoom, flips and translation of the HematoNet paper (Tripathi et al. 2022), as one affine warp.

    One warp resamples once, where a chain of operations would blur the cell several times. Borders are reflected. The
    translation of each image is capped so that, at its zoom, the central `cell_extent` of the patch stays in view:
    the labelled cell is the one in the middle.

    Parameters
    ----------
    rotation : float
        Largest rotation in degrees; angles are uniform in [0, rotation].
    zoom_out, zoom_in : float
        Smallest and largest magnification; uniform in the logarithm, so that halving is as likely as doubling.
    translation : float
        Largest shift as a share of the image's side, in both directions.
    flip : bool
        Flip horizontally and vertically, each with probability one half.
    cell_extent : float
        Share of the patch's side that the labelled cell may fill.
    """

    rotation: float = 90.0
    zoom_out: float = 0.8
    zoom_in: float = 1.25
    translation: float = 0.1
    flip: bool = True
    cell_extent: float = 0.7

    def __post_init__(self) -> None:
        if self.zoom_out > self.zoom_in:
            raise PluginError(
                f"augmenter hematonet: zoom_out {self.zoom_out:g} is larger than zoom_in {self.zoom_in:g}; swap them"
            )

    def matrices(self, count: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
        """Draw one inverse warp per image.

        Returns
        -------
        Tensor, shape (count, 2, 3), float32
            From output to input coordinates in [-1, 1], as `torch.nn.functional.affine_grid` takes them.
        """
        import torch

        angle = _uniform(0.0, math.radians(self.rotation), count, generator, device)
        zoom = _uniform(math.log(self.zoom_out), math.log(self.zoom_in), count, generator, device).exp()
        # In [-1, 1] the side is 2 long. The cell reaches cell_extent * zoom from the centre of the output; what is
        # left up to the border is what it may be moved by.
        cap = (1.0 - self.cell_extent * zoom).clamp(min=0.0, max=2.0 * self.translation)
        shift_x = _uniform(-1.0, 1.0, count, generator, device) * cap
        shift_y = _uniform(-1.0, 1.0, count, generator, device) * cap
        ones = torch.ones(count, device=device)
        if self.flip:
            flip_x = torch.where(_uniform(0, 1, count, generator, device) < 0.5, -ones, ones)
            flip_y = torch.where(_uniform(0, 1, count, generator, device) < 0.5, -ones, ones)
        else:
            flip_x, flip_y = ones, ones
        # Output = shift + zoom * rotate * flip * input, inverted: input = flip * rotate^T / zoom * (output - shift).
        cosine, sine = angle.cos() / zoom, angle.sin() / zoom
        a, b = flip_x * cosine, flip_x * sine
        c, d = flip_y * -sine, flip_y * cosine
        return torch.stack(
            [
                torch.stack([a, b, -(a * shift_x + b * shift_y)], dim=1),
                torch.stack([c, d, -(c * shift_x + d * shift_y)], dim=1),
            ],
            dim=1,
        )

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Warp a batch (B, 3, H, W) of float32 in [0, 1]; see `hematokit.plugins.specs.Augmenter`."""
        import torch
        from torch.nn import functional

        matrices = self.matrices(len(images), generator, images.device).to(images.dtype)
        # affine_grid's matrix product costs a third of the warp on a CPU; the sum is separable into rows and columns.
        y, x = (((2 * torch.arange(n, device=images.device) + 1) / n - 1).to(images.dtype) for n in images.shape[2:])
        along_rows = matrices[:, None, None, :, 1] * y[:, None, None] + matrices[:, None, None, :, 2]
        grid = matrices[:, None, None, :, 0] * x[:, None] + along_rows
        return functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


@dataclass(frozen=True)
class FlipsAugmenter:
    """Horizontal and vertical flips, each with probability one half; no pixel is resampled."""

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Flip a batch (B, 3, H, W); see `hematokit.plugins.specs.Augmenter`."""
        import torch

        for axis in (2, 3):
            chosen = _uniform(0, 1, len(images), generator, images.device) < 0.5
            images = torch.where(chosen[:, None, None, None], images.flip(axis), images)
        return images


@dataclass(frozen=True)
class NoAugmenter:
    """Leaves the batch as it is."""

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return `images`."""
        return images


@hookimpl
def register_augmenters(register: Callable[[AugmenterSpec], None]) -> None:
    """Register the built-in augmenters."""
    register(
        AugmenterSpec(
            name="hematonet",
            description="The paper's: rotation, zoom, flips, translation, in one warp with reflected borders",
            factory=HematonetAugmenter,
            options={
                "rotation": Option(float, 90.0, "largest rotation in degrees", 0.0, 360.0),
                "zoom_out": Option(float, 0.8, "smallest magnification", 0.2, 1.0),
                "zoom_in": Option(float, 1.25, "largest magnification", 1.0, 5.0),
                "translation": Option(float, 0.1, "largest shift as a share of the side", 0.0, 0.5),
                "flip": Option(bool, True, "flip in both directions"),
                "cell_extent": Option(float, 0.7, "share of the side that stays in view", 0.0, 1.0),
            },
        )
    )
    register(AugmenterSpec("flips", "Horizontal and vertical flips only", FlipsAugmenter))
    register(AugmenterSpec("none", "No augmentation", NoAugmenter))
