"""Training: settings, class balance, the loop, run folders, and the built-in augmenters.

Modules
-------
settings
    `TrainSettings`: everything that decides what a training does.
data
    The cells of each split, and their patches in batches on the device.
dataset
    A store as a data set of torch.
augmenters
    The built-in augmenters; several in a row.
balance
    The cells that an epoch draws, and the loss.
runs
    The run folder and its checkpoints.
loop
    Epochs of steps, validation, checkpoints.
"""

from __future__ import annotations
