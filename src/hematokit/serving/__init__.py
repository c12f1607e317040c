"""A trained model behind HTTP: crops to classes, fields to cells and their differential, and a page to try it on.

`build_app` makes the application of one loaded model, `serve` runs it. Which model it is, is decided when the server
starts; no request can load another. Needs the extra ``hematokit[serve]``, imported when first used.

Modules
-------
settings
    `ServeSettings`: address, key, detector and limits.
uploads
    Images from requests.
batching
    Patches of several requests in one batch.
fieldwork
    One uploaded field: cells, classes, differential.
app
    The routes and their answers.
guard
    Access control, size limits and metrics, in front of the application.
running
    `serve`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
