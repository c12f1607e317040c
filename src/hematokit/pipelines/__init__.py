"""One module per command: each joins the packages below into the work of that command."""

from __future__ import annotations
