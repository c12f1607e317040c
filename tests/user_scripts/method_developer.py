"""Write an augmenter, test it, and train with it."""

import torch

import hematokit
from hematokit.conformance import check_plugin
from hematokit.plugins import registered


class StainStrength:
    def __init__(self, strength):
        self.strength = strength

    def __call__(self, images, generator):
        drawn = torch.rand((len(images), 1, 1, 1), generator=generator, device=generator.device)
        factor = 1 + self.strength * (2 * drawn.to(images.device) - 1)
        return images.clamp(min=1 / 255) ** factor


options = {"strength": hematokit.Option(float, 0.2, "largest change, as a share", 0.0, 1.0)}
spec = hematokit.AugmenterSpec("stain-strength", "Strength of the stain", StainStrength, options)

with registered(spec):
    results = check_plugin("stain-strength")
    for line in results:
        print(line)
    run = hematokit.train(
        "bm.zarr",
        "runs/stain",
        backbone="timm:test_resnet",
        augmenter="stain-strength,flips",
        augmenter_options={"stain-strength.strength": 0.3},
        image_size=64,
        epochs=1,
        device="cpu",
    )
print(run.summary())
