"""hematokit: a plugin-based toolkit for bone-marrow and blood cytology. Research use only.

The names here are the public Python interface; they are imported when first used, so that ``import hematokit`` is
quick.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
