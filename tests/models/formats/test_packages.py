"""What the packages share: the gate and the card."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCardData

from hematokit.errors import ModelError
from hematokit.models.formats.packages import gate, without_pictures, write_card

PICTURE = b"\x89PNG\r\n not really"
CARD = f"# card\n\n![what is to be seen](data:image/png;base64,{base64.b64encode(PICTURE).decode()})\n\nend\n"


def answers(patches: np.ndarray) -> np.ndarray:
    return (patches.mean((1, 2)) / 255).astype(np.float32)


def samples() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (9, 8, 8, 3), dtype=np.uint8)


def test_equal_answers_pass_with_their_numbers() -> None:
    facts = gate(answers, lambda patches: answers(patches) + np.float32(5e-5), samples(), "it")
    assert facts["max_logit_difference"] == pytest.approx(5e-5, rel=0.5)
    assert (facts["classes_changed"], facts["patches"]) == (0, 9)


@pytest.mark.parametrize("offset", [2e-4, np.nan])
def test_answers_that_are_off_are_refused_with_the_numbers(offset: float) -> None:
    with pytest.raises(ModelError, match="it does not repeat the model's answers: logits differ by up to"):
        gate(answers, lambda patches: answers(patches) + np.float32(offset), samples(), "it")


def test_a_consumer_that_fails_at_some_batch_is_one_line() -> None:
    def of_two_only(patches: np.ndarray) -> np.ndarray:
        if len(patches) != 2:
            raise RuntimeError("expected 2\nbut got another number")
        return answers(patches)

    with pytest.raises(ModelError, match="it cannot compute the exported model") as caught:
        gate(answers, of_two_only, samples(), "it")
    assert "\n" not in str(caught.value)


def test_pictures_of_a_card_become_files_beside_it(tmp_path: Path) -> None:
    card, picture = write_card(tmp_path, CARD, ModelCardData(front="matter"))
    assert card.read_text() == "---\nfront: matter\n---\n\n# card\n\n![what is to be seen](card-1.png)\n\nend\n"
    assert picture.read_bytes() == PICTURE


def test_a_card_for_places_that_hold_text_only() -> None:
    assert without_pictures(CARD) == "# card\n\n*(picture: what is to be seen)*\n\nend\n"
