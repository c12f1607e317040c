"""HTML pages, figures and overlays, rendered from the results they are given.

Modules
-------
rendering, text
    Functions shared by all reports: figures, pages, numbers as text.
evaluation
    The report of an evaluation and of a comparison of runs.
fields
    The report on a run of fields.
overlay
    A field with its cells outlined.
attributions
    Figures of attribution maps.
checks, check_figures
    The report of the checks of explanations.
model_card
    The card of an exported model.
"""

from __future__ import annotations
