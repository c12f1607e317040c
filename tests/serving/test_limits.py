"""What a server does not take: bombs, bodies without end, strangers, and clients that go away."""

from __future__ import annotations

import io
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress

import httpx
import numpy as np
import psutil
import pytest
import tifffile
from PIL import Image

from hematokit.synthetic import synthesize_field
from servingkit import KEY, Server, abort, settled


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side: int, rows: int) -> bytes:
    """A PNG of side x side white pixels in RGB, as small as Deflate makes them; `rows` of them are there."""
    squeezed = zlib.compressobj(9)
    row = b"\0" + b"\xff" * (3 * side)
    packed = b"".join(squeezed.compress(row) for _ in range(rows)) + squeezed.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def tiff_bomb(side: int) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        np.full((2048, 2048, 3), 255, np.uint8),
        photometric="rgb",
        tile=(1024, 1024),
        compression="zlib",
    )
    data = bytearray(buffer.getvalue())
    # The tags that state width and height, set to far more than the tiles that follow.
    for old, tag in ((2048, 256), (2048, 257)):
        for kind, form in ((3, "<HHIH"), (4, "<HHII")):
            wanted = struct.pack(form, tag, kind, 1, old)
            place = data.find(wanted)
            if place >= 0:
                data[place : place + 12] = struct.pack("<HHII", tag, 4, 1, side)
    return bytes(data)


def peak_while(server: Server, work: Callable[[], object]) -> int:
    """How much the server's memory grows while something is done, in bytes."""
    process, peak, done = psutil.Process(server.process.pid), [0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak[0]


@pytest.mark.parametrize("path", ["/v1/cells", "/v1/fields"])
@pytest.mark.parametrize("side", [9_000, 40_000])
def test_bombs_are_refused_by_their_header(server: Server, path: str, side: int) -> None:
    bomb = png_bomb(side, 600)
    answers = []

    def drop() -> None:
        with server.client() as client:
            answers.append(client.post(path, content=bomb))

    # Decoded it would be 240 MB or 4.8 GB.
    assert peak_while(server, drop) < 60e6
    (answer,) = answers
    assert answer.status_code in (413, 422)
    assert answer.json()["reason"] in ("too-large", "wrong-size")
    assert "pixels" in answer.json()["error"] or "9000x9000 px" in answer.json()["error"]


def test_a_tiff_that_claims_too_much_is_refused(server: Server) -> None:
    with server.client() as client:
        answer = client.post("/v1/fields", params={"name": "bomb.tif"}, content=tiff_bomb(100_000))
    assert answer.status_code in (413, 422)
    assert answer.json()["error"].startswith("bomb.tif")


def test_fields_have_a_largest_size_and_a_largest_number_of_cells(strict: Server) -> None:
    def posted(pixels: np.ndarray) -> httpx.Response:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=60)
        with strict.client() as client:
            return client.post("/v1/fields", content=buffer.getvalue(), params={"name": "a.jpg", "pixel_size_um": 0.1})

    large = posted(np.full((500, 500, 3), 220, np.uint8))
    assert (large.status_code, large.json()["reason"]) == (413, "too-large")
    assert large.json()["error"] == "a.jpg is 500x500 px, more than 200,000 pixels; give a smaller image"
    crowded = posted(synthesize_field(440, 440, cells=14, seed=2).pixels)
    assert crowded.status_code == 422
    assert "more than the 3 that this server takes" in crowded.json()["error"]
    assert posted(np.full((400, 400, 3), 220, np.uint8)).json()["differential"]["all"]["cells"] == 0


def endless(size: int, piece: int = 16_384) -> Iterator[bytes]:
    for _ in range(size // piece):
        yield b"x" * piece


@pytest.mark.parametrize(("path", "limit"), [("/v1/cells", 100_000), ("/v1/fields", 400_000), ("/v1/model", 65_536)])
def test_bodies_have_a_largest_size(strict: Server, path: str, limit: int) -> None:
    with strict.client() as client:
        stated = client.post(path, content=b"x" * (limit + 1))
        assert (stated.status_code, stated.json()["reason"]) == (413, "too-large")
        assert f"{limit:,} bytes" in stated.json()["error"]
        if path != "/v1/model":
            # Without a stated length, what counts is what comes.
            unstated = client.post(path, content=endless(limit * 3))
            assert (unstated.status_code, unstated.json()["reason"]) == (413, "too-large")
            kind = {"content-type": "multipart/form-data; boundary=x"}
            form = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'
            part = client.post(path, content=iter([form, *endless(limit * 3)]), headers=kind)
            assert (part.status_code, part.json()["reason"]) == (413, "too-large")
        assert client.get("/health").status_code == 200
    assert list(strict.temporary.iterdir()) == []


def test_a_length_that_is_a_lie_costs_nothing(strict: Server) -> None:
    address = httpx.URL(strict.url)
    head = f"POST /v1/fields HTTP/1.1\r\nHost: {address.host}\r\nX-API-Key: {KEY}\r\nContent-Length: {10**15}\r\n\r\n"
    with socket.create_connection((address.host, address.port), 20) as connection:
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(4096)


def test_requests_have_a_largest_number_of_crops(strict: Server) -> None:
    with strict.client() as client:
        answer = client.post("/v1/cells", files=[("image", (f"{n}.png", b"x")) for n in range(5)])
    assert (answer.status_code, answer.json()["reason"]) == (413, "too-large")


def test_a_body_that_does_not_arrive_in_time_is_given_up(strict: Server) -> None:
    address = httpx.URL(strict.url)
    head = f"POST /v1/cells HTTP/1.1\r\nHost: {address.host}\r\nX-API-Key: {KEY}\r\nContent-Length: 5000\r\n\r\n"
    with socket.create_connection((address.host, address.port), 20) as connection:
        connection.sendall(head.encode() + b"some")
        assert b" 408 " in connection.recv(4096)


@pytest.mark.parametrize("sent", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /hea"])
def test_a_connection_that_asks_nothing_is_closed(strict: Server, sent: bytes) -> None:
    address = httpx.URL(strict.url)
    with socket.create_connection((address.host, address.port), 20) as connection:
        connection.sendall(sent)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200 " if b"health" in sent else b"")
    assert answer.count(b"HTTP/1.1") == sent.count(b"/health")


@pytest.mark.parametrize("piece", [b"X-A: " + b"a" * 5_000_000, b"X-A: a\r\n" * 50_000])
def test_a_head_has_a_largest_size(server: Server, piece: bytes) -> None:
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port), 20) as connection:
        answer = b""
        # Hung up before all of it was sent, as it should be.
        with suppress(OSError):
            connection.sendall(f"GET /health HTTP/1.1\r\nHost: {address.host}\r\n".encode() + piece)
        with suppress(OSError):
            while part := connection.recv(4096):
                answer += part
    assert b" 200 " not in answer
    assert answer[:16] in (b"", b"HTTP/1.1 431 Req", b"HTTP/1.1 400 Bad")
    # Large bodies are not meant by it, nor many requests over one connection.
    with server.client() as client:
        for _ in range(3):
            large = client.post("/v1/cells", content=b"x" * 300_000)
            assert (large.status_code, large.json()["reason"]) == (422, "unreadable")
        for _ in range(300):
            assert client.get("/health", headers={"X-A": "a" * 1000}).status_code == 200


def test_a_connection_at_work_is_not_closed(strict: Server) -> None:
    # The body takes longer than a head may.
    body = synthesize_field(400, 400, cells=1, seed=3).pixels
    buffer = io.BytesIO()
    Image.fromarray(body).save(buffer, "JPEG", quality=60)
    parts = [buffer.getvalue()[:500], buffer.getvalue()[500:]]

    def slowly() -> Iterator[bytes]:
        yield parts[0]
        time.sleep(1.5)
        yield parts[1]

    with strict.client() as client:
        assert client.post("/v1/fields", content=slowly(), params={"pixel_size_um": 0.1}).status_code == 200


def test_the_key_opens_and_nothing_else_does(strict: Server) -> None:
    with httpx.Client(base_url=strict.url, trust_env=False) as client:
        for headers in (
            {},
            {"Authorization": KEY},
            {"Authorization": f"Basic {KEY}"},
            {"Authorization": f"Bearer {KEY}x"},
            {"Authorization": f"Bearer {KEY[:-1]}"},
            {"Authorization": "Bearer"},
            {"X-API-Key": KEY.upper()},
            {"X-API-Key": ""},
            {"Cookie": f"key={KEY}"},
        ):
            for method, path in (
                ("GET", "/v1/model"),
                ("GET", "/metrics"),
                ("GET", "/openapi.json"),
                ("POST", "/v1/cells"),
                ("POST", "/v1/fields"),
                ("GET", "/nothing"),
            ):
                answer = client.request(method, path, headers=headers)
                assert (answer.status_code, answer.json()["reason"]) == (401, "unauthorised")
        assert client.get(f"/v1/model?key={KEY}").status_code == 401
        assert client.get("/v1/model", headers={"X-API-Key": KEY}).status_code == 200
        assert client.get("/v1/model", headers={"Authorization": f"bearer {KEY}"}).status_code == 200
        # What needs none: whether it lives, and the page, which has nothing in it and asks for the key.
        for path in ("/health", "/", "/page.js", "/page.css"):
            assert client.get(path).status_code == 200
        # With a key, the server may be called by any name.
        assert client.get("/v1/model", headers={"X-API-Key": KEY, "Host": "lab.example"}).status_code == 200


def test_clients_that_go_away_leave_nothing_behind(server: Server) -> None:
    address = httpx.URL(server.url)
    buffer = io.BytesIO()
    Image.fromarray(synthesize_field(900, 900, cells=25, seed=1).pixels).save(buffer, "PNG")
    body = buffer.getvalue()
    head = f"POST /v1/fields HTTP/1.1\r\nHost: {address.host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    gone = server.figure("hematokit_refusals_total", reason="gone")
    # In the middle of the upload, and after it, while the field is worked on or waits.
    for sent in (head[:30], head, head + body[: len(body) // 2], head + body, head + body, head + body):
        connection = socket.create_connection((address.host, address.port), 20)
        connection.sendall(sent)
        time.sleep(0.2)
        abort(connection)
    assert settled(server, "hematokit_waiting_fields", 0)
    assert server.figure("hematokit_refusals_total", reason="gone") > gone
    with server.client() as client:
        assert client.post("/v1/fields", content=body, params={"pixel_size_um": 0.1}).status_code == 200
    until = time.monotonic() + 20
    while list(server.temporary.iterdir()) and time.monotonic() < until:
        time.sleep(0.05)
    assert list(server.temporary.iterdir()) == []


def test_too_many_fields_at_once_are_told_to_come_back(strict: Server) -> None:
    address = httpx.URL(strict.url)
    head = f"POST /v1/fields HTTP/1.1\r\nHost: {address.host}\r\nX-API-Key: {KEY}\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection((address.host, address.port), 20) as connection, strict.client() as client:
        connection.sendall(head.encode())
        assert settled(strict, "hematokit_waiting_fields", 1)
        answer = client.post("/v1/fields", content=b"x")
        assert (answer.status_code, answer.json()["reason"]) == (503, "busy")
        assert answer.headers["retry-after"] == "1"
    assert settled(strict, "hematokit_waiting_fields", 0)
