"""Real servers, each a process of its own on a free port of this machine, and clients of them."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

KEY = "a-key-that-nobody-guesses"

STRICT = f"""
import sys
from hematokit.serving import ServeSettings, serve
settings = ServeSettings(
    port=0, api_key={KEY!r}, field_bytes=400_000, crop_bytes=100_000, field_pixels=200_000, field_cells=3, most_crops=4,
    upload_seconds=2, head_seconds=1, most_waiting_fields=1,
)
serve(sys.argv[1], settings, runtime="torch", device="cpu", started=lambda url, about: print(url, flush=True))
"""


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen[str]
    temporary: Path
    key: str = ""

    def client(self, **more: Any) -> httpx.Client:
        """A client that shows the key, if the server has one."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, **more)

    def figure(self, name: str, /, **labels: str) -> float:
        """One figure of the metrics; 0 where it is not there yet."""
        with self.client() as client:
            return figure(client.get("/metrics").text, name, **labels) or 0.0


def figure(text: str, name: str, /, **labels: str) -> float | None:
    """One figure of metrics in Prometheus' text format."""
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return next((sample.value for sample in samples if (sample.name, sample.labels) == (name, labels)), None)


def command(*words: object) -> list[str]:
    """A command line of hematokit for another process."""
    return [sys.executable, "-m", "hematokit", *map(str, words)]


@contextmanager
def running(words: list[str], temporary: Path, key: str = "") -> Iterator[Server]:
    """Start a server and end it."""
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        if said.startswith("{"):
            while not said.endswith("\n}\n"):
                said += process.stdout.readline()
            said = json.loads(said)["url"]
        yield Server(said.strip(), process, temporary, key)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def settled(server: Server, name: str, value: float) -> bool:
    """Wait until a figure of the metrics has a value; False where it does not come to it."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if server.figure(name) == value:
            return True
        time.sleep(0.05)
    return False


def abort(connection: socket.socket) -> None:
    """Reset a connection, as the death of a client does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
