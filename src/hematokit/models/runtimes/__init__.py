"""Runtimes that compute a model: torch, onnxruntime and OpenVINO."""

from __future__ import annotations
