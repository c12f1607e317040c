"""Metrics with intervals, calibration, predictions over a store or a folder, and the comparison of runs.

Modules
-------
intervals
    95 % intervals of figures measured on cells in groups.
calibration
    The temperature of a model, and its calibration error.
metrics
    The scores of predictions.
sources
    The cells to evaluate: a split of a store, or a folder of images.
evaluating
    Predictions for these cells, and their scores.
files
    The files of an evaluation.
comparison
    Several models on the same cells.
"""
