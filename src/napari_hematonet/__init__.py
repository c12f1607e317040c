"""The viewer of hematokit: cells of whole fields in napari, with their classes, explanations and corrections.

For research use only; not a medical device.

Modules
-------
settings, state
    The user's settings; the review, image and model of a layer of cells.
images, cell_points, cells_layer
    Layers of images as fields; cells as points; the layer of cells.
files
    Readers, writers and sample data.
models, worker, background, jobs
    Models; the process that computes; work in a thread or in this process; the work itself.
docks, forms, class_widgets, choices, following
    What docks share: their place, lists of classes, models and images to choose, the selected cell.
classify_widget, cells_coming
    "Classify field", and cells that are shown while it works.
folder_widget
    "Classify folder".
legend_widget, review_widget
    "Legend and differential" and "Review".
why_widget, explaining
    "Why", and its requests for explanations.
"""
