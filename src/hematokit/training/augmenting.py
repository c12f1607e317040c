"""One augmenter, or several in a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hematokit.errors import PluginError, TrainingError, naming
from hematokit.plugins import MadeAugmenter, load_plugins
from hematokit.plugins.specs import AugmenterSpec

__all__ = ["Augmenters", "declared_options", "make_augmenters", "recorded_options", "sort_options"]


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
        If there is none, or one twice: options could not say which of the two they mean.
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
        If an option is nobody's, or more than one has it.
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
    return Augmenters(tuple(registry.make(name, given[name]) for name in names))


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
