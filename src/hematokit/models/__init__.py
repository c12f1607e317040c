"""Classifiers (preparation, normalisation, backbone, calibration) and the bundles they are kept in.

The names are imported when first used: a model that another runtime computes opens without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
