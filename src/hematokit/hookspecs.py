"""For plugins written for hooks 1.x, which may import from here; new ones: ``from hematokit import hookimpl``."""

from hematokit.plugins.hookspecs import HOOKS, hookimpl

__all__ = ["HOOKS", "hookimpl"]
