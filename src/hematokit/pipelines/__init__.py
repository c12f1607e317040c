"""The work of the commands and of the viewer: each module joins the packages below.

Modules
-------
train, evaluate, compare, tile, detect, classify, explain, explain_field, export, demo
    One command each; ``hematokit explain --field`` is a module of its own.
field_run, distributed
    Fields one after the other or on a cluster, for `detect` and `classify`.
check_explanations, retrain
    ``hematokit explain --sanity`` and ``--faithfulness``; the models of the data-randomisation test.
interactive, store_corrected
    Cells as they come, single cells, and reviewed cells as a training set, for the viewer.
"""

from __future__ import annotations
