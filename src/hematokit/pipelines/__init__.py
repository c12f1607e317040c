"""Commands: each module combines the packages below.

Modules
-------
train, evaluate, compare, tile, detect, classify, explain, explain_field, export, demo
    One command each; ``explain_field`` is ``hematokit explain --field``.
settings
    The settings of the commands.
field_run, distributed
    Fields one after the other or on a cluster, for `detect` and `classify`.
check_explanations, retrain
    ``hematokit explain --sanity`` and ``--faithfulness``, the models of the data-randomisation test.
interactive, store_corrected
    For the viewer: cells piece by piece, single cells, and reviewed cells as a training set.
"""

from __future__ import annotations
