"""The upload page, in a real browser."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hematokit
from browserkit import Page, browser
from hematokit.synthetic import synthesize_field
from servingkit import KEY, Server

EVIL = "<img src=x onerror=document.title=1>.png"
SHOWN = "!document.querySelector('{}').hidden"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile") / "new") as made:
        yield made


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn field with a name that is no good as HTML."""
    file = tmp_path_factory.mktemp("field") / EVIL
    Image.fromarray(synthesize_field(600, 800, cells=8, seed=5).pixels).save(file)
    return file


def words(page: Page) -> str:
    text = page.run("document.body.innerText")
    assert isinstance(text, str)
    return text


def test_a_field_is_shown_with_its_cells(page: Page, server: Server, field: Path, tmp_path: Path) -> None:
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.open(server.url)
    page.wait("document.querySelector('#model').textContent.includes('3 classes')")
    assert "research use only" in words(page).lower()
    assert page.run("document.querySelector('#run').disabled") is True
    page.choose("#files", field)
    page.run("document.querySelector('#pixel-size').value = '0.1'")
    page.click("#run")
    page.wait(SHOWN.format("#field"))
    # The same cells as without the page, drawn where they are.
    with server.client() as client:
        answer = client.post(
            "/v1/fields", params={"pixel_size_um": 0.1, "name": field.name}, content=field.read_bytes()
        ).json()
    features = answer["cells"]["features"]
    assert page.run("document.querySelectorAll('#overlay path').length") == len(features) > 2
    box = page.run(
        "(() => { const s = document.querySelector('#picture').getBoundingClientRect();"
        "const p = document.querySelectorAll('#overlay path')[1].getBoundingClientRect();"
        "return [(p.x - s.x) / s.width, (p.y - s.y) / s.height,"
        " (p.right - s.x) / s.width, (p.bottom - s.y) / s.height]; })()"
    )
    ring = np.array(features[1]["geometry"]["coordinates"][0]) / [800, 600]
    assert box == pytest.approx([*ring.min(axis=0), *ring.max(axis=0)], abs=0.01)
    code = features[1]["properties"]["classification"]["name"]
    colours = {entry.code: entry.colour for entry in hematokit.MATEK_21}
    assert page.run("document.querySelectorAll('#overlay path')[1].getAttribute('stroke')") == colours[code]
    # The table counts what the answer counts.
    counted = {entry["code"]: entry["count"] for entry in answer["differential"]["all"]["classes"]}
    rows = page.run(
        "[...document.querySelectorAll('#classes tbody tr')]"
        ".map(row => [row.dataset.code, parseInt(row.cells[1].textContent)])"
    )
    assert dict(rows) == counted
    # A cell tells its probabilities; a class hides the others.
    page.click("#overlay path:nth-child(2)")
    assert features[1]["properties"]["name"] in page.run("document.querySelector('#cell').innerText")
    page.click(f"tr[data-code={code}]")
    seen = page.run(
        "[...document.querySelectorAll('#overlay path')]"
        ".filter(path => path.style.display !== 'none').map(path => path.dataset.code)"
    )
    assert set(seen) == {code}
    page.click("#save-geojson")
    until = time.monotonic() + 20
    while not (saved := list(tmp_path.glob("*.geojson"))) and time.monotonic() < until:
        time.sleep(0.05)
    assert len(json.loads(saved[0].read_text())["features"]) == len(features)


def press(page: Page, key: str) -> None:
    number = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38}
    number |= {"ArrowRight": 39, "ArrowDown": 40}
    # The character makes Enter press buttons.
    down = {"type": "keyDown", "text": "\r"} if key == "Enter" else {"type": "rawKeyDown"}
    for kind in (down, {"type": "keyUp"}):
        page.call("Input.dispatchKeyEvent", **kind, key=key, code=key, windowsVirtualKeyCode=number[key])


AT = "[...document.querySelectorAll('#overlay path')].indexOf(document.activeElement)"
DETAILS = "document.querySelector('#cell').innerText"


def test_cells_are_reached_by_keyboard_as_one_stop(page: Page, server: Server, field: Path) -> None:
    page.open(server.url)
    page.wait("document.querySelector('#model').textContent.includes('3 classes')")
    page.choose("#files", field)
    page.run("document.querySelector('#pixel-size').value = '0.1'")
    page.click("#run")
    page.wait(SHOWN.format("#field"))
    cells = page.run("document.querySelectorAll('#overlay path').length")
    page.run("document.querySelector('#run').focus()")
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=5, y=5)
    press(page, "Tab")
    assert page.run(AT) == 0
    first = page.run(DETAILS)
    assert "%" in first
    # To the next, to the last, not beyond it, and back.
    press(page, "ArrowRight")
    assert page.run(AT) == 1
    assert page.run(DETAILS) != first
    for key in ("End", "ArrowRight"):
        press(page, key)
        assert page.run(AT) == cells - 1
    press(page, "ArrowLeft")
    assert page.run(AT) == cells - 2
    press(page, "Home")
    # Down goes to a cell that lies below, up to one above.
    height = "document.activeElement.getBoundingClientRect()"
    before = page.run(f"{height}.y + {height}.height / 2 + window.scrollY")
    press(page, "ArrowDown")
    assert page.run(f"{height}.y + {height}.height / 2 + window.scrollY") > before
    assert page.run("document.activeElement.matches(':focus-visible')") is True
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    # It says what it is, and that it is the one.
    at = page.run(AT)
    code = page.run("document.activeElement.dataset.code")
    label = page.run("document.activeElement.getAttribute('aria-label')")
    assert label.startswith(code)
    assert f"cell {at + 1} of {cells}" in label
    chosen = "[...document.querySelectorAll('#overlay [aria-selected=true]')]"
    assert page.run(f"{chosen}.length === 1 && {chosen}[0] === document.activeElement") is True
    # Escape closes the details, Enter opens them again.
    press(page, "Escape")
    assert page.run(f"{chosen}.length") == 0
    assert "Point at a cell" in page.run(DETAILS)
    assert page.run(AT) == at
    press(page, "Enter")
    assert "%" in page.run(DETAILS)
    # Of the classes one is a stop, too, and hides the cells of the others from the arrow keys.
    press(page, "Tab")
    assert page.run("document.activeElement.closest('tr').rowIndex") == 1
    page.run(f"document.querySelector('tr[data-code={code}] button').focus()")
    press(page, "Enter")
    assert page.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    stops = page.run('document.querySelectorAll(\'#overlay [tabindex="0"], #classes [tabindex="0"]\').length')
    assert stops == 2
    assert page.run("document.querySelector('#overlay [tabindex=\"0\"]').dataset.code") == code
    press(page, "Tab")
    assert page.run("document.activeElement.id") == "save-geojson"


def test_other_peoples_words_are_shown_as_words(page: Page, server: Server, field: Path) -> None:
    page.open(server.url)
    page.wait("document.querySelector('#model').textContent.length > 3")
    page.run("document.querySelector('input[value=cells]').click()")
    page.choose("#files", field)
    page.click("#run")
    page.wait("document.querySelector('#status').textContent.includes('64x64')")
    # The name is there to read, and nothing of it became an element.
    assert EVIL in words(page)
    assert page.run("document.querySelectorAll('img[src=\"x\"]').length") == 0
    assert page.run("document.title") == "hematokit"


def test_crops_are_shown_beside_their_classes(page: Page, server: Server, tiny_store: Path, tmp_path: Path) -> None:
    files = []
    for number, patch in enumerate(hematokit.open_store(tiny_store).read_rows(np.arange(3))):
        files.append(tmp_path / f"crop{number}.png")
        Image.fromarray(patch).save(files[-1])
    (tmp_path / "broken.png").write_text("no image")
    page.open(server.url)
    page.wait("document.querySelector('#model').textContent.length > 3")
    page.run("document.querySelector('input[value=cells]').click()")
    page.choose("#files", *files, tmp_path / "broken.png")
    page.click("#run")
    page.wait(SHOWN.format("#crops"))
    items = page.run("[...document.querySelectorAll('#crop-list li')].map(item => item.innerText)")
    assert len(items) == 4
    assert all(f"crop{number}.png" in items[number] and "%" in items[number] for number in range(3))
    assert "cannot be decoded" in items[3]
    assert page.wait("[...document.querySelectorAll('#crop-list img')].every(i => i.naturalWidth === 64)")


def test_the_page_asks_for_the_key(page: Page, strict: Server, tmp_path: Path) -> None:
    page.open(strict.url)
    page.wait("document.querySelector('#status').textContent.includes('requires an API key')")
    page.run(
        f"{{ const box = document.querySelector('#key'); box.value = {KEY!r};box.dispatchEvent(new Event('change')); }}"
    )
    page.wait("document.querySelector('#model').textContent.includes('3 classes')")
    Image.new("RGB", (900, 900), (220, 210, 215)).save(tmp_path / "large.png")
    page.choose("#files", tmp_path / "large.png")
    page.click("#run")
    page.wait("document.querySelector('#status').textContent.includes('more than 200,000 pixels')")
    assert page.run("document.querySelector('#status').classList.contains('error')") is True


def test_the_page_asks_nobody_else_and_nothing_fails_in_it(page: Page, server: Server, strict: Server) -> None:
    asked = {address for address in page.addresses() if not address.startswith(("data:", "blob:", "about:"))}
    assert {address.split("/")[2] for address in asked} == {server.url.split("/")[2], strict.url.split("/")[2]}
    # Refusals, which the browser logs, too, were wanted.
    complaints = [line for line in page.complaints() if "Failed to load resource" not in line]
    assert complaints == []
