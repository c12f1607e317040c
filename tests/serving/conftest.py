"""The servers that the tests talk to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from servingkit import KEY, STRICT, Server, command, running


@pytest.fixture(scope="session")
def server(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """``hematokit serve`` as it comes."""
    words = command("serve", tiny_run, "--port", "0", "--json", "--runtime", "torch", "--device", "cpu")
    with running(words, tmp_path_factory.mktemp("serving") / "tmp") as made:
        yield made


@pytest.fixture(scope="session")
def strict(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a key and narrow limits."""
    words = [sys.executable, "-c", STRICT, str(tiny_run)]
    with running(words, tmp_path_factory.mktemp("strict") / "tmp", KEY) as made:
        yield made
