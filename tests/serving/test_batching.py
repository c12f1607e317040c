"""Batching: patches of many callers reach the model together and come back to whom they belong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hematokit.errors import BusyError, ServingError
from hematokit.models.model import prediction_frame
from hematokit.serving.batching import Batcher, QueuedModel
from hematokit.taxonomy import MATEK_21

CODES = ("BLA", "LYT", "NGS")


class Model:
    """Says of a patch the class that its brightness stands for; holds each batch until it may go on."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.begun = threading.Event()

    def predict(self, patches: np.ndarray) -> pd.DataFrame:
        self.begun.set()
        self.go_on.wait(30)
        self.batches.append(len(patches))
        if (patches[:, 0, 0, 0] == 255).any():
            raise RuntimeError("this patch breaks the model")
        logits = np.zeros((len(patches), 3), np.float32)
        logits[np.arange(len(patches)), patches[:, 0, 0, 0] % 3] = 4
        return prediction_frame(logits, CODES)


@pytest.fixture
def model() -> Iterator[Model]:
    made = Model()
    yield made
    made.go_on.set()


def patches(*values: int) -> np.ndarray:
    return np.stack([np.full((4, 4, 3), value, np.uint8) for value in values])


def started(model: Model, **settings: object) -> Batcher:
    return Batcher(model.predict, **{"largest": 8, "window_s": 0.0, **settings})  # type: ignore[arg-type]


def test_every_caller_gets_their_own_rows(model: Model) -> None:
    batcher = started(model)
    random = np.random.default_rng(0)
    asked = [random.integers(0, 200, random.integers(1, 8)) for _ in range(60)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda values: batcher.submit(patches(*values)).result(30), asked))
    batcher.close()
    for values, rows in zip(asked, answers, strict=True):
        wanted = [CODES[value % 3] for value in values]
        assert [entry["predicted"] for entry in rows.entries] == wanted
        assert rows.frame()["predicted"].tolist() == wanted
        assert sum(rows.entries[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_what_waits_becomes_one_batch(model: Model) -> None:
    batcher = started(model)
    model.go_on.clear()
    first = batcher.submit(patches(1))
    assert model.begun.wait(10)
    others = [batcher.submit(patches(value, value)) for value in (0, 1, 2, 3)]
    one_more = batcher.submit(patches(2))
    assert batcher.waiting == 9
    model.go_on.set()
    for answer in (first, *others, one_more):
        answer.result(10)
    batcher.close()
    # Eight fit; the ninth is the next batch.
    assert model.batches == [1, 8, 1]


def test_the_first_patch_waits_for_others(model: Model) -> None:
    batcher = started(model, window_s=20.0, largest=3)
    answers = [batcher.submit(patches(value)) for value in range(3)]
    for answer in answers:
        answer.result(10)  # long before the window has passed: the batch is full
    batcher.close()
    assert model.batches == [3]


def test_too_much_work_is_refused_and_work_let_in_is_not(model: Model) -> None:
    batcher = started(model, most_waiting=4)
    model.go_on.clear()
    batcher.submit(patches(0))
    assert model.begun.wait(10)
    waiting = batcher.submit(patches(1, 2, 3, 4))
    with pytest.raises(BusyError, match="try again"):
        batcher.submit(patches(5))
    patient = batcher.submit(patches(5), patient=True)
    model.go_on.set()
    assert len(waiting.result(10)) == 4
    assert len(patient.result(10)) == 1
    batcher.close()


def test_a_patch_that_breaks_the_model_hurts_nobody_else(model: Model) -> None:
    batcher = started(model)
    model.go_on.clear()
    batcher.submit(patches(0))
    assert model.begun.wait(10)
    good, bad, also_good = (batcher.submit(patches(value)) for value in (1, 255, 2))
    model.go_on.set()
    assert good.result(10).entries[0]["predicted"] == "LYT"
    assert also_good.result(10).entries[0]["predicted"] == "NGS"
    with pytest.raises(RuntimeError, match="breaks the model"):
        bad.result(10)
    assert batcher.submit(patches(0)).result(10).entries[0]["predicted"] == "BLA"
    batcher.close()


def test_a_model_that_loses_rows_is_an_error() -> None:
    batcher = Batcher(lambda given: prediction_frame(np.zeros((len(given) - 1, 3)), CODES), largest=4, window_s=0)
    with pytest.raises(RuntimeError, match="1 rows for 2 patches"):
        batcher.submit(patches(1, 2)).result(10)
    batcher.close()


def test_cancelled_work_is_not_computed(model: Model) -> None:
    batcher = started(model)
    model.go_on.clear()
    batcher.submit(patches(0))
    assert model.begun.wait(10)
    given_up, kept = batcher.submit(patches(1, 2, 3)), batcher.submit(patches(4))
    assert given_up.cancel()
    model.go_on.set()
    kept.result(10)
    batcher.close()
    assert model.batches == [1, 1]


def test_closing_refuses_what_waits_and_what_comes(model: Model) -> None:
    batcher = started(model)
    model.go_on.clear()
    working = batcher.submit(patches(0))
    assert model.begun.wait(10)
    waiting = batcher.submit(patches(1))
    closing = threading.Thread(target=batcher.close)
    closing.start()
    with pytest.raises(ServingError, match="stopping"):
        waiting.result(10)
    model.go_on.set()
    closing.join(10)
    assert len(working.result(10)) == 1
    with pytest.raises(ServingError, match="stopping"):
        batcher.submit(patches(2))


def test_a_field_takes_its_place_in_the_line(model: Model) -> None:
    batcher = started(model)
    whole: Any = SimpleNamespace(
        **dict.fromkeys(("config", "identity", "temperature", "pixel_size_um", "runtime", "device")),
        **{"taxonomy": MATEK_21, "codes": MATEK_21.codes, "patch_size": 4},
    )
    queued = QueuedModel(whole, batcher)
    values = list(range(21))
    table = queued.predict(patches(*values), batch_size=64)
    assert table["predicted"].tolist() == [CODES[value % 3] for value in values]
    assert list(table.columns) == ["predicted", "probability", "p_BLA", "p_LYT", "p_NGS"]
    assert table.index.tolist() == values
    assert max(model.batches) <= 8
    assert queued.predict(np.zeros((0, 4, 4, 3), np.uint8)).shape == (0, 2 + len(MATEK_21))
    batcher.close()
