"""A trained model behind HTTP: classes of crops, cells and differential of fields, and a web page.

`build_app` returns the application of one loaded model, `serve` runs it. The model is chosen when the server starts;
requests cannot load another one. Requires the extra ``hematokit[serve]``, which is imported at first use.

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
