"""Reports for people, and the verbs that write them: evaluations, comparisons, classified fields, explanations.

The names are imported when first used: detecting cells must not wait for what evaluating needs.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
