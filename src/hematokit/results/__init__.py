"""Results folders of whole-field runs: layout, reading and writing.

Modules
-------
fields
    The folder of each field, and its files.
folder
    The folder of a run: its fields, its settings, and which fields are done.
reading
    Reading such a folder, as the viewer does.
"""

from __future__ import annotations
