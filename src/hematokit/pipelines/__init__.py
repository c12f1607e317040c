"""Commands: each module combines the packages below.

Modules
-------
train, evaluate, compare, tile, detect, classify, explain, explain_field, export, demo
    One command each; ``explain_field`` is ``hematokit explain --field``.
settings, overrides
    The settings of the commands, and their typed keyword arguments (generated).
field_run, distributed
    Fields one after the other or on a cluster, for `detect` and `classify`.
check_explanations, retrain
    ``hematokit explain --sanity`` and ``--faithfulness``, the models of the data-randomisation test.
interactive, store_corrected
    For the viewer: cells piece by piece, single cells, and reviewed cells as a training set.
"""

from __future__ import annotations
