"""Formats that a trained model is written in for other programs, one module per format.

Modules
-------
packages
    Export formats.
onnx_file, quantising
    An ONNX file; its weights as float16 or int8.
huggingface, bioimageio, wsinfer
    The formats of the Hugging Face hub, of the BioImage Model Zoo, and of WSInfer and QuPath.
"""
