"""For plugins written for hooks 1.x, which may import from here; new ones: ``from hematokit import hookimpl``."""

from hematokit.plugins.hookspecs import HOOKS, PROJECT, hookimpl, hookspec

__all__ = ["HOOKS", "PROJECT", "hookimpl", "hookspec"]
