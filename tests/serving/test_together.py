"""Crops of many clients and whole fields at one time, with clients that leave and a server that is told to stop."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

import hematokit
from hematokit.synthetic import synthesize_field
from servingkit import Server, abort, command, settled

CLIENTS = 32
ASKED = {"pixel_size_um": 0.1, "name": "field.png"}


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def own(tiny_run: Path, tmp_path: Path) -> Iterator[Server]:
    """A server that is only this test's, and whose log is kept."""
    (tmp_path / "tmp").mkdir()
    words = command("serve", tiny_run, "--port", "0", "--json", "--runtime", "torch", "--device", "cpu")
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        assert process.stdout is not None
        try:
            text = ""
            while not text.endswith("\n}\n"):
                text += process.stdout.readline() or pytest.fail((tmp_path / "log").read_text())
            yield Server(json.loads(text)["url"], process, tmp_path / "tmp")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def test_crops_and_fields_at_once_and_then_the_end(
    own: Server, tiny_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    patches = hematokit.open_store(tiny_store).read_rows(np.arange(40))
    expected = hematokit.load_model(tiny_run, device="cpu").predict(patches)["predicted"].tolist()
    crops = [png(patch) for patch in patches]
    body = png(synthesize_field(1400, 1600, cells=70, seed=4).pixels)
    over = threading.Event()
    answered: list[float] = []

    def client(number: int) -> list[tuple[int, str]]:
        said = []
        with own.client() as asking:
            while not over.is_set():
                number = (number + 7) % len(crops)
                try:
                    answer = asking.post("/v1/cells", content=crops[number])
                except httpx.TransportError:
                    assert stopping.is_set()
                    break
                if answer.status_code == 503 and stopping.is_set():
                    break
                assert answer.status_code == 200, answer.text
                said.append((number, answer.json()["cells"][0]["predicted"]))
                answered.append(time.monotonic())
        return said

    stopping = threading.Event()
    with own.client() as asking, ThreadPoolExecutor(CLIENTS + 1) as pool:
        alone = asking.post("/v1/fields", params=ASKED, content=body).json()
        assert len(alone["cells"]["features"]) > 32
        clients = [pool.submit(client, number) for number in range(CLIENTS)]
        try:
            began = time.monotonic()
            beside = asking.post("/v1/fields", params=ASKED, content=body).json()
            ended = time.monotonic()
            # The field found its way through the crops, and the crops went on beside it.
            assert _classes(beside) == _classes(alone)
            assert sum(began < moment < ended for moment in answered) >= CLIENTS
            # Who leaves, with a field, or in the middle of a crop, leaves no work.
            address = httpx.URL(own.url)
            for path, whole, sent in (("fields", body, len(body)), ("cells", crops[0], 40)):
                head = f"POST /v1/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(whole)}\r\n\r\n"
                connection = socket.create_connection((address.host, address.port), 20)
                connection.sendall(head.encode() + whole[:sent])
                if path == "fields":
                    assert settled(own, "hematokit_waiting_fields", 1)
                abort(connection)
            assert settled(own, "hematokit_waiting_fields", 0)
            # Told to stop, it answers the field that it has.
            last = pool.submit(
                httpx.post, f"{own.url}/v1/fields", params=ASKED, content=body, timeout=60, trust_env=False
            )
            assert settled(own, "hematokit_waiting_fields", 1)
            stopping.set()
            own.process.send_signal(signal.SIGTERM)
            assert _classes(last.result().json()) == _classes(alone)
            assert own.process.wait(60) == 0
        finally:
            stopping.set()
            over.set()
        said = [each for one in clients for each in one.result()]
    assert len(said) >= CLIENTS
    assert all(expected[number] == code for number, code in said)
    assert list(own.temporary.iterdir()) == []
    assert "Traceback" not in (tmp_path / "log").read_text()


def _classes(answer: dict[str, object]) -> list[tuple[str, str]]:
    features = answer["cells"]["features"]  # type: ignore[index]
    return [(each["id"], each["properties"]["classification"]["name"]) for each in features]
