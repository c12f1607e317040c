"""Runtimes that compute a model: torch, onnxruntime and OpenVINO.

Modules
-------
onnx_graph
    A classifier as an ONNX graph.
engines
    onnxruntime and OpenVINO behind one interface.
onnx_classifier
    The model that is an ONNX file.
exported
    Bundles that are exported to ONNX at the first use and kept.
parity
    The comparison of two ways to compute a model.
"""

from __future__ import annotations
