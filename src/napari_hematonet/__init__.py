"""The viewer of hematokit: cells of whole fields in napari, with their classes, reasons and corrections.

For research use only; not a medical device.
"""
