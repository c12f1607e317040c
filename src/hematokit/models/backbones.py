"""Built-in backbones, all through timm: CoAtNet, EfficientNetV2, ResNeXt50 and any other timm model by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hematokit.errors import PluginError
from hematokit.plugins.hookspecs import hookimpl
from hematokit.plugins.specs import BackboneSpec, InputSpec, Option, Variant

if TYPE_CHECKING:
    import torch

__all__ = ["register_backbones"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# No defaults: options that are not set are not passed, because not every timm model accepts them.
OPTIONS = {
    "drop_rate": Option(float, None, "dropout before the head, 0 to 1", 0.0, 1.0),
    "drop_path_rate": Option(float, None, "stochastic depth, 0 to 1", 0.0, 1.0),
}


@dataclass(frozen=True)
class _TimmFactory:
    """Make a timm model; `overlays` change the configuration of some of them.

    A class rather than a closure, so that a spec prints readably.
    """

    overlays: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)

    def __call__(
        self, model: str, *, num_classes: int, input_size: int, pretrained: bool = False, **options: Any
    ) -> torch.nn.Module:
        """Return the module: ``(B, 3, input_size, input_size)`` to logits ``(B, num_classes)``."""
        import timm

        name, overlay = self.overlays.get(model, (model, {}))
        given = {key: value for key, value in options.items() if value is not None}
        arguments: dict[str, Any] = {"num_classes": num_classes, "pretrained": pretrained, **overlay, **given}
        try:
            # Attention over positions is built for one size; convolutional models refuse the argument.
            module: torch.nn.Module = timm.create_model(name, img_size=input_size, **arguments)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            module = timm.create_model(name, **arguments)
        return module


def _last_stage(module: torch.nn.Module) -> torch.nn.Module:
    """The last layer with spatial extent, from timm's own description of the model's features."""
    described = getattr(module, "feature_info", None)
    # A plain list of dictionaries on most models, an object with a list inside on some.
    entries = getattr(described, "info", described)
    if not entries:
        raise PluginError(
            f"{type(module).__name__} names no feature layers, so attributions that need one cannot be made for it"
        )
    return module.get_submodule(entries[-1]["module"])


def _timm_variant(name: str) -> Variant:
    """Look up any timm model; imports timm, so it is called only for a model that a user names."""
    import timm

    if not timm.is_model(name.split(".")[0]):
        near = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:5]
        hint = f"close names: {', '.join(near)}" if near else "timm.list_models() lists them"
        raise PluginError(f"timm has no model {name!r}; {hint}")
    config = timm.get_pretrained_cfg(name)
    size, mean, std, pretrained = 224, IMAGENET_MEAN, IMAGENET_STD, False
    if config is not None:
        size = int(config.input_size[-1])
        mean, std = tuple(config.mean), tuple(config.std)
        pretrained = bool(config.hf_hub_id or config.url)
    return Variant(name, InputSpec(size, mean=mean, std=std), pretrained, "timm model")


# timm's CoAtNets take mean and deviation 0.5, but for the one below that does not.
def _coatnet(model: str, size: int = 224, *, pretrained: bool = False, description: str = "") -> Variant:
    return Variant(model, InputSpec(size), pretrained, description)


COATNET = {
    "0": _coatnet("coatnet_0_224", description="CoAtNet-0 of the HematoNet paper's Table 1"),
    "1": _coatnet("coatnet_1_224", description="CoAtNet-1 of Table 1"),
    "2": _coatnet("coatnet_2_224", description="CoAtNet-2 of Table 1"),
    "3": _coatnet("coatnet_3_224", description="CoAtNet-3 of Table 1"),
    "4": _coatnet("coatnet_4_224", description="CoAtNet-4 of Table 1"),
    "nano": _coatnet("coatnet_nano_rw_224", pretrained=True, description="15 M parameters"),
    "pico": _coatnet("coatnet_pico_rw_224", 128, description="10 M parameters, for one CPU"),
    "femto": _coatnet("femto", 96, description="1.3 M parameters, for a try on two CPU cores"),
    "rw-0": _coatnet("coatnet_0_rw_224", pretrained=True, description="CoAtNet-0 with weights"),
    "rw-1": _coatnet("coatnet_1_rw_224", pretrained=True, description="CoAtNet-1 with weights"),
    "rw-2": _coatnet("coatnet_2_rw_224", pretrained=True, description="CoAtNet-2 with weights"),
    "rw-3": _coatnet("coatnet_3_rw_224", pretrained=True, description="CoAtNet-3 with weights"),
    "bn-rw-0": Variant(
        "coatnet_bn_0_rw_224",
        InputSpec(224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        True,
        "CoAtNet-0, batch norm throughout",
    ),
    "rmlp-nano": _coatnet("coatnet_rmlp_nano_rw_224", pretrained=True, description="relative position by MLP"),
    "rmlp-1": _coatnet("coatnet_rmlp_1_rw_224", pretrained=True, description="relative position by MLP"),
    "rmlp-1-rw2": _coatnet("coatnet_rmlp_1_rw2_224", pretrained=True, description="relative position by MLP"),
    "rmlp-2": _coatnet("coatnet_rmlp_2_rw_224", pretrained=True, description="relative position by MLP"),
    "rmlp-2-384": _coatnet("coatnet_rmlp_2_rw_384", 384, pretrained=True, description="the same at 384 px"),
}
# The same blocks as pico, half as wide and shallower: timm builds it from pico's configuration with these changes.
FEMTO = {
    "femto": ("coatnet_pico_rw_224", {"embed_dim": (32, 64, 128, 256), "depths": (1, 2, 3, 1), "stem_width": (16, 32)})
}

EFFICIENTNETV2 = {
    "s": Variant("tf_efficientnetv2_s", InputSpec(224), True, "EfficientNetV2-S, 20 M parameters"),
    "m": Variant("tf_efficientnetv2_m", InputSpec(224), True, "EfficientNetV2-M, 53 M parameters"),
    "b0": Variant(
        "tf_efficientnetv2_b0",
        InputSpec(192, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        True,
        "EfficientNetV2-B0, 6 M parameters, for one CPU",
    ),
}

RESNEXT50 = {
    "32x4d": Variant(
        "resnext50_32x4d", InputSpec(224, mean=IMAGENET_MEAN, std=IMAGENET_STD), True, "ResNeXt-50, 23 M parameters"
    ),
}


@hookimpl
def register_backbones(register: Callable[[BackboneSpec], None]) -> None:
    """Register the built-in backbones."""
    for name, description, variants, default, overlays in (
        ("coatnet", "Convolution and attention (Dai et al. 2021), the HematoNet paper's model", COATNET, "0", FEMTO),
        ("efficientnetv2", "EfficientNetV2 (Tan and Le 2021)", EFFICIENTNETV2, "s", {}),
        ("resnext50", "ResNeXt-50 (Xie et al. 2017)", RESNEXT50, "32x4d", {}),
    ):
        register(
            BackboneSpec(
                name=name,
                description=description,
                factory=_TimmFactory(overlays),
                options=OPTIONS,
                variants=variants,
                default_variant=default,
                attribution_layer=_last_stage,
            )
        )
    register(
        BackboneSpec(
            name="timm",
            description="Any model of the timm library: timm:<name>",
            factory=_TimmFactory(),
            options=OPTIONS,
            attribution_layer=_last_stage,
            find_variant=_timm_variant,
        )
    )
