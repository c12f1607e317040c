"""Built-in explainers: Grad-CAM, SmoothGrad, integrated gradients, occlusion, guided Grad-CAM.

The factories import torch and captum; listing the explainers does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from hematokit.errors import PluginError
from hematokit.plugins.hookspecs import hookimpl
from hematokit.plugins.specs import ExplainerSpec, Option

if TYPE_CHECKING:
    from hematokit.plugins.specs import Explainer

__all__ = ["register_explainers"]

_BASELINES: Final = ("white", "black", "mean")
_LAYER: Final = Option(str, "auto", "auto (the last stage), the path of a layer (stages.1), or a size (28x28)")
_BASELINE: Final = Option(str, "white", "what stands for nothing: white (an empty bright field), black, or mean")
_PER_PASS: Final = Option(int, 32, "pictures computed at a time, which bounds the memory", 1, 4096)


def _grad_cam(**options: Any) -> Explainer:
    from hematokit.explanation.gradcam import GradCam

    return GradCam(**options)


def _smoothgrad(**options: Any) -> Explainer:
    from hematokit.explanation.gradients import SmoothGrad

    return SmoothGrad(**options)


def _integrated_gradients(**options: Any) -> Explainer:
    from hematokit.explanation.gradients import IntegratedGradients

    _check_choice("integrated-gradients.baseline", options["baseline"], _BASELINES)
    return IntegratedGradients(**options)


def _occlusion(**options: Any) -> Explainer:
    from hematokit.explanation.gradients import Occlusion

    _check_choice("occlusion.baseline", options["baseline"], _BASELINES)
    return Occlusion(**options)


def _guided_grad_cam(**options: Any) -> Explainer:
    from hematokit.explanation.gradcam import GuidedGradCamExplainer

    _check_choice("guided-grad-cam.activations", options["activations"], ("all", "relu"))
    return GuidedGradCamExplainer(**options)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise PluginError(f"option {name}: {value!r} is none of {', '.join(choices)}")


@hookimpl
def register_explainers(register: Callable[[ExplainerSpec], None]) -> None:
    """Register the built-in explainers; a version rises when, and only when, other maps come out of the same image."""
    register(
        ExplainerSpec(
            "grad-cam",
            "Which regions speak for the class (Selvaraju et al. 2017)",
            _grad_cam,
            {
                "layer": _LAYER,
                "positive": Option(bool, True, "keep only what speaks for the class, as the paper does"),
            },
            version="1",
        )
    )
    register(
        ExplainerSpec(
            "smoothgrad",
            "How much each pixel matters: mean gradient under noise (Smilkov et al. 2017)",
            _smoothgrad,
            {
                "samples": Option(int, 25, "noisy copies of each picture", 1, 10_000),
                "noise": Option(float, 0.15, "deviation of the noise as a share of the input's range", 0.0, 10.0),
                "magnitude": Option(bool, True, "absolute values; false: signed, for and against the class"),
                "seed": Option(int, 0, "seed of the noise", 0, 2**31 - 1),
                "per_pass": _PER_PASS,
            },
            version="1",
        )
    )
    register(
        ExplainerSpec(
            "integrated-gradients",
            "Shares of each pixel in the logit's rise from an empty picture (Sundararajan et al. 2017)",
            _integrated_gradients,
            {
                "steps": Option(int, 32, "points of the integration", 2, 2_000),
                "baseline": _BASELINE,
                "per_pass": _PER_PASS,
            },
            version="1",
        )
    )
    register(
        ExplainerSpec(
            "occlusion",
            "How the logit falls where a square is covered (Zeiler and Fergus 2014); needs no gradients",
            _occlusion,
            {
                "window": Option(int, 0, "side of the square in input pixels; 0: an eighth of the input", 0, 4096),
                "stride": Option(int, 0, "pixels between squares; 0: half the window", 0, 4096),
                "baseline": _BASELINE,
                "per_pass": _PER_PASS,
            },
            version="1",
        )
    )
    register(
        ExplainerSpec(
            "guided-grad-cam",
            "Grad-CAM times guided backpropagation, its rule extended to GELU and SiLU where there is no ReLU; "
            "such maps hardly depend on the weights (Adebayo et al. 2018), so check before you believe",
            _guided_grad_cam,
            {
                "layer": _LAYER,
                "activations": Option(str, "all", "all, or relu: the published method, for ReLU networks only"),
                "per_pass": _PER_PASS,
            },
            version="1",
        )
    )
