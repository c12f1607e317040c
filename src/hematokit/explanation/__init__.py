"""Explanations of predictions: running explainers over cells, storing their maps, and checks of the explainers."""
