"""Checks of explanations: sanity, data randomisation, faithfulness and localisation.

Modules
-------
similarity
    Similarity of two maps.
sanity
    Whether maps depend on the parameters of the model.
data_randomisation
    Whether maps depend on the labels that the model learned from.
faithfulness
    Whether the pixels that a map marks matter to the model.
localisation
    Whether a map is on the cell.
"""

from __future__ import annotations
