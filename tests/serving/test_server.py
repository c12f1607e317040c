"""A real server with real clients: what it answers is what the functions say that it puts behind HTTP."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import hematokit
from hematokit.cli.main import main
from hematokit.imaging.reading import read_rgb
from hematokit.pipelines.export import export
from hematokit.synthetic import PIXEL_SIZE_UM, synthesize_field
from servingkit import KEY, Server, command, running


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def crops(tiny_store: Path) -> list[bytes]:
    """Crops of the tiny store, as PNG."""
    return [png(patch) for patch in hematokit.open_store(tiny_store).read_rows(np.arange(40))]


@pytest.fixture(scope="module")
def field() -> np.ndarray:
    return synthesize_field(600, 800, cells=8, seed=5).pixels


def test_a_crop_gets_the_probabilities_that_the_model_gives(server: Server, crops: list[bytes], tiny_run: Path) -> None:
    model = hematokit.load_model(tiny_run, device="cpu")
    expected = model.predict(read_rgb(crops[3])[None]).iloc[0]
    with server.client() as client:
        said = client.post("/v1/cells", params={"name": "x.png"}, content=crops[3]).json()
    assert "research use only" in said["research_use_only"].lower()
    (cell,) = said["cells"]
    assert (cell["name"], cell["predicted"]) == ("x.png", expected["predicted"])
    for code in model.codes:
        assert cell["probabilities"][code] == pytest.approx(expected[f"p_{code}"], abs=2e-5)
    assert cell["low_confidence"] is bool(cell["probability"] < 0.5)


def test_a_batch_keeps_its_order_and_says_which_image_is_bad(server: Server, crops: list[bytes]) -> None:
    bad = {
        "text.png": b"not an image",
        "empty.png": b"",
        "small.png": png(np.zeros((20, 20, 3), np.uint8)),
        "grey.png": png(np.zeros((64, 64), np.uint8)),
        "damaged.png": crops[1][:200] + bytes(512) + crops[1][712:],
    }
    files = [("image", (name, data, "image/png")) for name, data in bad.items()]
    files.insert(2, ("other", ("good.png", crops[0], "image/png")))
    with server.client() as client:
        alone = client.post("/v1/cells", content=crops[0]).json()["cells"][0]
        cells = client.post("/v1/cells", files=files).json()["cells"]
        all_bad = client.post("/v1/cells", content=b"not an image")
    assert [cell["name"] for cell in cells] == [*list(bad)[:2], "good.png", *list(bad)[2:]]
    reasons = [cell.get("reason") for cell in cells]
    assert reasons == ["unreadable", "unreadable", None, "wrong-size", "not-rgb", "unreadable"]
    assert cells[2]["predicted"] == alone["predicted"]
    assert "64x64" in cells[3]["error"]
    assert all_bad.status_code == 422
    assert all_bad.json()["reason"] == "unreadable"


def test_32_clients_at_once_each_get_their_own_answer(server: Server, crops: list[bytes], tiny_run: Path) -> None:
    model = hematokit.load_model(tiny_run, device="cpu")
    expected = model.predict(np.stack([read_rgb(crop) for crop in crops]))
    batches = server.figure("hematokit_batch_patches_count")
    patches = server.figure("hematokit_patches_total")

    def client(number: int) -> list[tuple[int, dict[str, float]]]:
        mine = [(number * 7 + turn) % len(crops) for turn in range(5)]
        with server.client() as asking:
            return [
                (crop, asking.post("/v1/cells", content=crops[crop]).json()["cells"][0]["probabilities"])
                for crop in mine
            ]

    with ThreadPoolExecutor(32) as pool:
        answers = [answer for part in pool.map(client, range(32)) for answer in part]
    assert len(answers) == 160
    for crop, probabilities in answers:
        wanted = [expected.loc[crop, f"p_{code}"] for code in model.codes]
        assert [probabilities[code] for code in model.codes] == pytest.approx(wanted, abs=2e-5)
    assert server.figure("hematokit_patches_total") - patches == 160
    # They were batched: far fewer batches than crops.
    assert server.figure("hematokit_batch_patches_count") - batches < 100


def test_a_field_gets_what_the_command_writes(
    server: Server, field: np.ndarray, tiny_run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "smear 3.png"
    file.write_bytes(png(field))
    written = hematokit.classify([file], tiny_run, tmp_path / "out", pixel_size_um=0.1, runtime="torch", device="cpu")
    with server.client() as client:
        answer = client.post(
            "/v1/fields",
            params={"pixel_size_um": 0.1, "picture": True},
            files={"image": ("C:\\lab\\smear 3.png", file.read_bytes(), "image/png")},
        ).json()
        geojson = client.post(
            "/v1/fields",
            params={"pixel_size_um": 0.1, "answer": "geojson", "name": "smear 3.png"},
            content=file.read_bytes(),
        )
    expected = json.loads(next((tmp_path / "out").rglob("cells.geojson")).read_text())
    assert len(expected["features"]) > 2
    assert geojson.headers["content-type"] == "application/geo+json"
    for found in (answer["cells"], geojson.json()):
        assert [each["id"] for each in found["features"]] == [each["id"] for each in expected["features"]]
        assert [each["geometry"] for each in found["features"]] == [each["geometry"] for each in expected["features"]]
        for one, other in zip(found["features"], expected["features"], strict=True):
            assert one["properties"]["classification"] == other["properties"]["classification"]
            assert one["properties"]["measurements"] == pytest.approx(other["properties"]["measurements"], abs=2e-5)
    assert written.differential is not None
    counts = [
        (each["code"], each["count"], each["low_confidence"]) for each in answer["differential"]["all"]["classes"]
    ]
    assert counts == [
        (each["code"], each["count"], each["low_confidence"])
        for each in written.differential.to_dict()["all"]["classes"]
    ]
    assert (answer["field"]["height"], answer["field"]["width"]) == (600, 800)
    assert answer["field"]["pixel_size_source"] == "given"
    assert answer["picture"]["data"].startswith("data:image/jpeg;base64,")
    assert list(server.temporary.iterdir()) == []


def test_a_field_is_rescaled_to_the_model_or_the_answer_warns(
    server: Server, field: np.ndarray, measured_run: Path, tiny_run: Path, tmp_path: Path
) -> None:
    body, coarse = png(field[::2, ::2]), {"pixel_size_um": 2 * PIXEL_SIZE_UM, "name": "field.png"}
    (tmp_path / "field.png").write_bytes(body)
    hematokit.classify(
        [tmp_path / "field.png"],
        tiny_run,
        tmp_path / "out",
        pixel_size_um=2 * PIXEL_SIZE_UM,
        model_pixel_size_um=PIXEL_SIZE_UM,
        runtime="torch",
        device="cpu",
    )
    expected = json.loads(next((tmp_path / "out").rglob("cells.geojson")).read_text())
    words = command("serve", measured_run, "--port", 0, "--runtime", "torch", "--device", "cpu", "--json")
    with running(words, tmp_path / "temporary") as measured, measured.client() as client:
        answer = client.post("/v1/fields", params=coarse, content=body).json()
        unknown = client.post("/v1/fields", params={"name": "field.png"}, content=body).json()
        assert client.get("/v1/model").json()["pixel_size_um"] == PIXEL_SIZE_UM
    assert len(expected["features"]) > 2
    for one, other in zip(answer["cells"]["features"], expected["features"], strict=True):
        assert one["properties"]["measurements"] == pytest.approx(other["properties"]["measurements"], abs=2e-5)
    assert answer["warnings"] == []
    assert ["1 field is not known" in warning for warning in unknown["warnings"]] == [True]
    assert "give it with pixel_size_um" in unknown["warnings"][0]
    with server.client() as client:
        warnings = client.post("/v1/fields", params=coarse, content=body).json()["warnings"]
    assert ["the model was trained at is not known" in warning for warning in warnings] == [True]


def test_a_tiff_brings_its_pixel_size(server: Server, field: np.ndarray, tmp_path: Path) -> None:
    file = tmp_path / "field.ome.tif"
    tifffile.imwrite(
        file, field, tile=(256, 256), metadata={"axes": "YXS", "PhysicalSizeX": 0.125, "PhysicalSizeY": 0.125}
    )
    with server.client() as client:
        answer = client.post("/v1/fields", files={"image": ("field.ome.tif", file.read_bytes())}).json()
    assert (answer["field"]["field_id"], answer["field"]["pixel_size_um"]) == ("field", 0.125)
    assert answer["field"]["pixel_size_source"] == "metadata"
    assert answer["cells"]["type"] == "FeatureCollection"


def test_what_the_server_says_of_itself(server: Server, tiny_run: Path) -> None:
    with server.client() as client:
        assert client.get("/health").json() == {"status": "ok"}
        about = client.get("/v1/model").json()
        paths = client.get("/openapi.json").json()["paths"]
        page = client.get("/")
    assert about["sha256"] == hematokit.load_model(tiny_run, device="cpu").identity
    assert [entry["code"] for entry in about["classes"]] == ["BLA", "NGS", "LYT"]
    assert (about["patch_size"], about["runtime"], about["detector"]) == (64, "torch", "nuclei")
    assert {"/v1/cells", "/v1/fields", "/v1/model", "/health", "/metrics"} <= set(paths)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    # Nothing of the page is loaded from elsewhere.
    assert "://" not in page.text


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/nothing", 404, "not-found"),
        ("GET", "/v1/cells", 405, "not-found"),
        ("POST", "/v1/cells/", 404, "not-found"),
        # Their pages would be loaded from elsewhere.
        ("GET", "/docs", 404, "not-found"),
        ("GET", "/redoc", 404, "not-found"),
        ("POST", "/health", 405, "not-found"),
        ("POST", "/v1/cells", 422, "no-image"),
        ("POST", "/v1/cells?min_probability=2", 422, "bad-parameter"),
        ("POST", "/v1/fields?pixel_size_um=-1", 422, "bad-parameter"),
        ("POST", "/v1/fields?pixel_size_um=nan", 422, "bad-parameter"),
        ("POST", "/v1/fields?model=/etc/passwd", 422, "no-image"),
        ("GET", "/page.js/../../app.py", 404, "not-found"),
        ("GET", "/%2e%2e/settings.py", 404, "not-found"),
    ],
)
def test_requests_that_cannot_be_answered(server: Server, method: str, path: str, status: int, reason: str) -> None:
    with server.client() as client:
        answer = client.request(method, path)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert "\n" not in answer.json()["error"]


FORM = b'--z\r\nContent-Disposition: form-data; name="a"\r\n\r\n'


def test_a_form_that_was_cut_short_is_not_half_answered(server: Server, crops: list[bytes]) -> None:
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="image"; filename="{number}.png"\r\n\r\n'.encode()
        + crops[number]
        + b"\r\n"
        for number in range(3)
    ]
    whole = b"".join(parts) + b"--b--\r\n"
    kind = {"content-type": 'multipart/form-data; boundary="b"'}
    with server.client() as client:
        assert len(client.post("/v1/cells", content=whole, headers=kind).json()["cells"]) == 3
        for cut in (len(whole) - 5, len(whole) - len(parts[2]), len(parts[0]) + 70, 9):
            answer = client.post("/v1/cells", content=whole[:cut], headers=kind)
            assert (answer.status_code, answer.json()["reason"]) == (400, "bad-form")
            assert "its end is missing" in answer.json()["error"]


def test_forms_that_are_damaged(server: Server) -> None:
    kinds = {
        "multipart/form-data": b"anything",
        "multipart/form-data; boundary=x": b"--x\r\nContent-Disposition: form-data\r\n\r\nno name\r\n--x--\r\n",
        "multipart/form-data; boundary=y": b"--y\r\nbroken",
        "multipart/form-data; boundary=z": FORM + b"more than 16" + 17 * (b"\r\n" + FORM) + b"\r\n--z--\r\n",
        "application/x-www-form-urlencoded": b"image=abc",
    }
    with server.client() as client:
        for kind, body in kinds.items():
            answer = client.post("/v1/cells", content=body, headers={"content-type": kind})
            assert answer.status_code in (400, 415, 422), kind
            assert set(answer.json()) == {"error", "reason"}


def test_names_of_files_are_only_shown(server: Server, crops: list[bytes]) -> None:
    names = ["../../../tmp/evil", "a\x1b[31m\nb.png", "<img src=x onerror=alert(1)>.png", "", "😀" * 500]
    with server.client() as client:
        cells = [client.post("/v1/cells", params={"name": name}, content=crops[0]).json()["cells"][0] for name in names]
    assert [cell["name"] for cell in cells[:4]] == [
        "evil",
        "a\\x1b[31m\\nb.png",
        "<img src=x onerror=alert(1)>.png",
        "image",
    ]
    assert len(cells[4]["name"]) <= 200
    assert list(server.temporary.iterdir()) == []


def test_other_names_and_other_sites_are_turned_away(server: Server, crops: list[bytes]) -> None:
    address = httpx.URL(server.url)
    with server.client() as client:
        for host in (
            "evil.example",
            "evil.example:80",
            "127.0.0.1.evil.example",
            "169.254.1.1",
            "[::2]",
            "[::1",
            "evil@localhost",
            "",
        ):
            assert client.get("/v1/model", headers={"Host": host}).status_code in (400, 421), host
        for host in (f"localhost:{address.port}", "127.0.0.1", "[::1]:80"):
            assert client.get("/v1/model", headers={"Host": host}).status_code == 200, host
        for origin in ("http://evil.example", "null", "http://localhost:1", "http://[::1"):
            refused = client.post("/v1/cells", content=crops[0], headers={"Origin": origin})
            assert (refused.status_code, refused.json()["reason"]) == (403, "wrong-origin")
        assert client.post("/v1/cells", content=crops[0], headers={"Origin": server.url}).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_told_to_stop_answers_first_and_ends_well(
    tiny_run: Path, crops: list[bytes], number: signal.Signals
) -> None:
    words = command("serve", tiny_run, "--port", "0", "--runtime", "torch", "--device", "cpu", "--access-log")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    address = httpx.URL(next(word for word in lines[1].split() if word.startswith("http")))
    head = f"POST /v1/cells HTTP/1.1\r\nHost: {address.host}\r\nContent-Length: {len(crops[0])}\r\n\r\n"
    with socket.create_connection((address.host, address.port), 30) as connection:
        connection.sendall(head.encode() + crops[0][:100])
        # Answered after the other connection's first bytes have come.
        assert httpx.get(f"{address}/health", trust_env=False).status_code == 200
        process.send_signal(number)
        # Nobody new is let in, and who was there is answered.
        until = time.monotonic() + 20
        while _open(address) and time.monotonic() < until:
            time.sleep(0.05)
        assert not _open(address)
        connection.sendall(crops[0][100:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b" 200 " in answer.partition(b"\r\n")[0]
    assert b'"predicted"' in answer
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "GET /health" in errors
    assert "Traceback" not in errors
    assert "leaked" not in errors
    assert "research use only" in lines[3]


def _open(address: httpx.URL) -> bool:
    try:
        socket.create_connection((address.host, address.port), 5).close()
    except OSError:
        return False
    return True


def test_a_server_that_cannot_start_says_why_in_one_line(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short").write_text("short")
    (tmp_path / "good").write_text("k" * 30)
    elsewhere = ("--host", "no.such.host.invalid", "--api-key-file", tmp_path / "good")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        wrong: list[tuple[str, tuple[object, ...]]] = [
            ("another program has it", (tiny_run, "--port", taken.getsockname()[1])),
            ("port 99999 does not exist", (tiny_run, "--port", 99999)),
            ("port abc is no number", (tiny_run, "--port", "abc")),
            ("the host is empty", (tiny_run, "--host", "")),
            ("cannot listen on no.such.host.invalid", (tiny_run, *elsewhere)),
            ("API key is needed", (tiny_run, "--host", "0.0.0.0")),
            ("short has 5 characters", (tiny_run, "--api-key-file", tmp_path / "short")),
            ("no-such-run", (tmp_path / "no-such-run", "--port", 0)),
            ("no-such-detector", (tiny_run, "--port", 0, "--detector", "no-such-detector", "--runtime", "torch")),
        ]
        for expected, words in wrong:
            assert main(["serve", *map(str, words)]) == 2
            said = capsys.readouterr()
            assert expected in said.err
            assert len(said.err.splitlines()) == 1
            assert said.out == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::1]"])
def test_the_address_that_is_told_can_be_opened(tiny_run: Path, tmp_path: Path, host: str) -> None:
    if ":" in host:
        try:
            with socket.socket(socket.AF_INET6) as tried:
                tried.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    (tmp_path / "key").write_text(KEY)
    words = command("serve", tiny_run, "--port", "0", "--host", host, "--api-key-file", tmp_path / "key")
    process = subprocess.Popen([*words, "--runtime", "torch", "--device", "cpu"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(5 - (host == "[::1]"))]
        url = next(word for word in lines[1].split() if word.startswith("http"))
        assert httpx.URL(url).host == ("::1" if host == "[::1]" else "127.0.0.1")
        assert httpx.URL(url).port
        assert httpx.get(f"{url}/health", trust_env=False).json() == {"status": "ok"}
        text = "".join(lines)
        assert ("every network interface" in text and socket.gethostname() in text) is (host != "[::1]")
        assert "X-API-Key" in text
        assert f"http://{host}:" not in text or host == "[::1]"
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_without_the_extra_it_says_what_to_install(tiny_run: Path) -> None:
    script = (
        "import sys; sys.modules['fastapi'] = None; from hematokit.cli.main import main; "
        f"sys.exit(main(['serve', {str(tiny_run)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "pip install 'hematokit[serve]'" in done.stderr


def test_a_model_that_gives_no_numbers_is_a_failure_of_the_server(
    tiny_run: Path, crops: list[bytes], field: np.ndarray
) -> None:
    """Not a class: 500, in one line."""
    from fastapi.testclient import TestClient

    from hematokit.serving import build_app

    model = hematokit.load_model(tiny_run, device="cpu", runtime="torch")
    with torch.no_grad():
        model.backbone.get_classifier().bias[1] = float("nan")
    with TestClient(build_app(model), base_url="http://localhost") as client:
        for path, body in (("/v1/cells", crops[0]), ("/v1/fields?pixel_size_um=0.1", png(field))):
            answer = client.post(path, content=body)
            assert answer.status_code == 500
            assert answer.json()["reason"] == "model"
            assert "not finite" in answer.text
            assert "predicted" not in answer.text


WITHOUT_TORCH = """
import asyncio, json, sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "captum"):
            raise ModuleNotFoundError(f"no {name} here")

sys.meta_path.insert(0, NoTorch())
import httpx
from hematokit.models import load_model
from hematokit.serving import build_app

async def ask(path, *files):
    app = build_app(load_model(path))
    transport = httpx.ASGITransport(app)
    client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
    async with app.router.lifespan_context(app), client:
        for url, file in zip(("/v1/cells", "/v1/fields?pixel_size_um=0.1"), files):
            answer = await client.post(url, content=open(file, "rb").read())
            print(json.dumps(answer.json()))

asyncio.run(ask(*sys.argv[1:]))
"""


def test_an_exported_model_is_served_without_torch(
    tiny_run: Path, crops: list[bytes], field: np.ndarray, tmp_path: Path
) -> None:
    export(tiny_run, tmp_path / "model.onnx", format="onnx")
    (tmp_path / "crop.png").write_bytes(crops[7])
    (tmp_path / "field.png").write_bytes(png(field))
    files = [str(tmp_path / name) for name in ("model.onnx", "crop.png", "field.png")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *files], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    crop, whole = map(json.loads, done.stdout.splitlines())
    model = hematokit.load_model(tiny_run, device="cpu")
    expected = model.predict(read_rgb(crops[7])[None]).iloc[0]
    assert crop["cells"][0]["probability"] == pytest.approx(expected["probability"], abs=2e-4)
    assert len(whole["cells"]["features"]) > 2
