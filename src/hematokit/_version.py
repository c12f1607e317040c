"""The version of hematokit: read by the build, by the package and by everything that records it."""

__version__ = "0.2.0"
