"""Metrics with intervals, calibration, predictions over a store or a folder, and the comparison of runs."""
