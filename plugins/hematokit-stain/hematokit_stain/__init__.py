"""Augmenters, a normalising backbone and a command for differences in staining between laboratories.

Read at every start of hematokit, so nothing heavy is imported here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hematokit import AugmenterSpec, BackboneSpec, Option, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    import typer

    from hematokit import Variant

__all__ = ["normalise"]

HEMATOKIT_HOOKS = "1.1"

_COMMON = {
    "share": Option(float, 1.0, "share of the images whose stain is changed", 0.0, 1.0),
}
_MEASURED = {
    "references": Option(
        str, "", "picture, or folder of pictures, to draw towards; else at random around the image", path="existing"
    ),
    "reach": Option(float, 1.0, "with references: largest part of the way to one", 0.0, 1.0),
    "light": Option(float, 0.05, "largest change of each colour of the background, as a share", 0.0, 0.5),
}


def _hed(**options: Any) -> Any:
    from hematokit_stain.augmenters import HedJitter

    return HedJitter(**options)


def _reinhard(**options: Any) -> Any:
    from hematokit_stain.augmenters import ReinhardJitter

    return ReinhardJitter(**options)


def _macenko(**options: Any) -> Any:
    from hematokit_stain.augmenters import MacenkoJitter

    return MacenkoJitter(**options)


@hookimpl
def register_augmenters(register: Callable[[AugmenterSpec], None]) -> None:
    """Register the three augmenters."""
    register(
        AugmenterSpec(
            name="stain-hed",
            description="Strength of each stain (Tellez et al. 2018), on scikit-image's stain matrices",
            factory=_hed,
            options={
                "stains": Option(str, "hed", "scikit-image's matrix: hed, bex (Giemsa: methylene blue and eosin), ..."),
                "scale": Option(float, 0.2, "largest change of a stain, as a share of it", 0.0, 1.0),
                "bias": Option(float, 0.05, "largest amount added to a stain, in optical density", 0.0, 1.0),
                **_COMMON,
            },
        )
    )
    register(
        AugmenterSpec(
            name="stain-reinhard",
            description="Mean and deviation in CIELAB (Reinhard et al. 2001), at random or towards references",
            factory=_reinhard,
            options={
                "lightness": Option(float, 8.0, "largest shift of the mean lightness, 0 to 100", 0.0, 100.0),
                "colour": Option(float, 8.0, "largest shift of the means of a* and b*", 0.0, 100.0),
                "contrast": Option(float, 0.2, "largest change of the deviations, as a share", 0.0, 0.9),
                **_MEASURED,
                **_COMMON,
            },
        )
    )
    register(
        AugmenterSpec(
            name="stain-macenko",
            description="Colour and amount of the two stains found in the image (Macenko et al. 2009)",
            factory=_macenko,
            options={
                "turn": Option(float, 0.1, "largest change of each of a stain's three absorptions", 0.0, 0.5),
                "strength": Option(float, 0.3, "largest change of a stain's amount, in natural logarithms", 0.0, 1.0),
                **_MEASURED,
                **_COMMON,
            },
        )
    )


def _find_variant(name: str) -> Variant:
    from hematokit_stain.backbone import find_variant

    return find_variant(name)


def _wrap(model: str, **options: Any) -> torch.nn.Module:
    from hematokit_stain.backbone import wrap

    return wrap(model, **options)


def _attribution_layer(module: torch.nn.Module) -> torch.nn.Module:
    from hematokit_stain.backbone import attribution_layer

    return attribution_layer(module)


@hookimpl
def register_backbones(register: Callable[[BackboneSpec], None]) -> None:
    """Register the wrapper that normalises the stain before any other backbone."""
    register(
        BackboneSpec(
            name="stain-normalised",
            description="Another backbone, behind stain normalisation: stain-normalised:coatnet:nano",
            factory=_wrap,
            options={
                "method": Option(str, "reinhard", "whose method", choices=("reinhard", "macenko")),
                "reference": Option(str, "", "numbers from: hematokit stain-reference PICTURES; else built-in ones"),
            },
            # A backbone of a size that a CPU bears, so that the family can be tried without naming one.
            default_variant="efficientnetv2:b0",
            attribution_layer=_attribution_layer,
            find_variant=_find_variant,
        )
    )


@hookimpl
def register_commands(app: typer.Typer) -> None:
    """Add ``hematokit stain-reference``."""
    from hematokit_stain.command import add_command

    add_command(app)


def __getattr__(name: str) -> Any:
    # The public function, imported when it is used: it needs torch.
    if name != "normalise":
        raise AttributeError(f"module 'hematokit_stain' has no attribute {name!r}")
    from hematokit_stain.normalising import normalise

    return normalise
