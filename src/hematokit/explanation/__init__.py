"""Explanations of predictions: running explainers over cells, storing their maps, and checks of the explainers.

Modules
-------
explainers
    The built-in explainers as specs, without their imports.
gradients, gradcam
    The built-in explainers.
selection
    The cells to explain, and the class that is explained.
running
    Explainers over cells, batch by batch.
field_map
    Maps in pixels of a patch or a field; a layer for a whole field.
at_cells
    Single cells of an open field, for the viewer.
folder
    Folders of explanations.
checks
    Whether maps depend on the model, and whether the pixels that they mark matter to it.
"""
