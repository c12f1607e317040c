"""Classifiers (preparation, normalisation, backbone, calibration) and the bundles they are kept in.

The names are imported when first used: a model that another runtime computes opens without torch.

Modules
-------
config
    `ModelConfig` and `TrainingRecord`.
model
    The protocol of every model.
classifier
    The model that torch computes.
backbones, construction
    The built-in backbones as specs; from a backbone's name to a module with weights.
integrity, bundle
    Whether files are those that were saved; bundles.
runtimes
    onnxruntime and OpenVINO.
loading
    A model from a bundle, a run or an ONNX file; the cache of models.
field_cells
    The cells of a field: patches at the scale of the model, and their classes.
formats
    Formats that other programs read.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
