"""Formats that a trained model is written in for other programs; one module a format."""
