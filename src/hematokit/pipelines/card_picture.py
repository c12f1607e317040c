"""The picture of a model card: cells and the pixels that the answers rest on."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from hematokit.errors import ExplanationError, HematokitError
from hematokit.explanation.running import explain_cells
from hematokit.imaging.reading import read_rgb
from hematokit.models.formats.packages import drawn_crops
from hematokit.models.predictions import prediction_frame
from hematokit.pipelines.explain import CLASSES_FIGURE
from hematokit.reports.attributions import FigureCell, class_figure, to_patch
from hematokit.reports.rendering import data_url, to_png
from hematokit.taxonomy import MATEK_21

if TYPE_CHECKING:
    from hematokit.models.classifier import Classifier

__all__ = ["CardPicture", "drawn_example", "given_example"]

_METHOD: Final = "grad-cam"
_MOST: Final = 8
_WIDEST: Final = 1600


@dataclass(frozen=True)
class CardPicture:
    """What a card shows of explanations.

    Attributes
    ----------
    words : str
        What is to be seen, or why there is nothing.
    title : str
        For those who do not see the picture.
    picture : str
        A data URL, or empty.
    """

    words: str
    title: str = ""
    picture: str = ""


def given_example(path: Path) -> CardPicture:
    """Show a picture, or the figure of classes in a folder that ``hematokit explain`` wrote.

    Raises
    ------
    ExplanationError
        If there is none.
    ImageError
        If it cannot be read as a picture.
    """
    file = path / CLASSES_FIGURE if path.is_dir() else path
    if not file.is_file():
        raise ExplanationError(f"{file} does not exist; give a folder that hematokit explain wrote, or a picture")
    words = "Cells, and below them the pixels that the model's answers rest on, as hematokit explain drew them."
    return CardPicture(words, "Cells and what the model looks at", _jpeg(read_rgb(file)))


def drawn_example(classifier: Classifier) -> CardPicture:
    """Explain drawn cells, one a class.

    Drawn ones, because a card goes with a model to anybody, and pictures of patients' cells should not go by default.

    Parameters
    ----------
    classifier : Classifier
        Computed by torch.

    Returns
    -------
    CardPicture
        Without a picture, saying why, where none of its classes can be drawn or its backbone cannot be explained.
    """
    codes = [code for code in classifier.codes if code in MATEK_21][:_MOST]
    if not codes:
        return CardPicture("None here: none of its classes can be drawn. hematokit explain explains real cells.")
    patches = drawn_crops(codes, classifier.patch_size)
    try:
        maps = to_patch(explain_cells(classifier, patches, methods=[_METHOD])[_METHOD], classifier)
    except HematokitError as error:
        return CardPicture(f"None here: {error}")
    says = prediction_frame(classifier.logits(patches), classifier.codes, classifier.temperature)
    cells = [
        FigureCell(
            code, _verdict(code, *says.loc[row, ["predicted", "probability"]]), patches[row], {_METHOD: maps[row]}
        )
        for row, code in enumerate(codes)
    ]
    content = to_png(class_figure(cells, [_METHOD]), dpi=120)
    words = (
        "Drawn cells, one a class, and below them the pixels that the model's answers rest on (Grad-CAM, Selvaraju et "
        "al. 2017). The drawings show where the model looks, not how good it is: it was not made for drawn cells. "
        "Small print is what it takes each for. Explain real cells with hematokit explain."
    )
    picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    return CardPicture(words, "Drawn cells and what the model looks at", _jpeg(picture))


def _verdict(code: str, predicted: str, probability: float) -> str:
    share = f"{100 * probability:.0f} %" if probability < 0.995 else "> 99 %"
    return f"{'' if predicted == code else 'as '}{predicted} {share}"


def _jpeg(pixels: npt.NDArray[np.uint8]) -> str:
    image = Image.fromarray(pixels)
    if image.width > _WIDEST:
        image = image.resize((_WIDEST, round(image.height * _WIDEST / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return data_url(buffer.getvalue(), "image/jpeg")
