"""Functions shared by the packages for other programs: comparison, the card as a file, metadata of the model."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from hematokit._version import __version__
from hematokit.errors import HematokitError, ModelError
from hematokit.files import write_atomically
from hematokit.models.runtimes.parity import EXPORT_TOLERANCE, measure_parity

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

    from hematokit.models.classifier import Classifier

__all__ = [
    "CARD",
    "NOTICE",
    "UNSTATED",
    "about",
    "drawn_crops",
    "gate",
    "resized",
    "with_usage",
    "without_pictures",
    "write_card",
]

CARD: Final = "README.md"

NOTICE: Final = "For research use only. Not a medical device; not for diagnosis or treatment."
"""Goes with a model wherever it goes."""

UNSTATED: Final = "not stated"
"""Stands where a licence would."""

_DRAWN_SIDE: Final = 250
_PICTURE: Final = re.compile(r"!\[([^\]\n]*)\]\(data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)\)")

Patches = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


def gate(
    reference: Callable[[Patches], Logits], candidate: Callable[[Patches], Logits], samples: Patches, what: str
) -> dict[str, Any]:
    """Refuse a package that its own consumer computes differently.

    Parameters
    ----------
    reference, candidate : callable
        Patches (n, P, P, 3) uint8 to logits (n, C): what is exported, and the written file as its consumer loads it.
    samples : ndarray, shape (n, P, P, 3), uint8
    what : str
        The consumer, for the error.

    Returns
    -------
    dict
        The numbers, see `hematokit.models.runtimes.parity.Parity`.

    Raises
    ------
    ModelError
        If a logit differs by more than 1e-4 (or, if that is more, 1e-5 of the largest) or a class changes, at batches
        of 1, 2 or 7.
    """
    try:
        found = measure_parity(reference, candidate, samples, what)
    except HematokitError:
        raise
    except Exception as error:  # whatever a consumer's own code raises
        text = " ".join(str(error).split())[:200]
        raise ModelError(f"{what} cannot compute the exported model ({text}); nothing was written") from error
    if not found.within(EXPORT_TOLERANCE):
        raise ModelError(
            f"{what} does not repeat the model's answers: logits differ by up to {found.max_logit_difference:.2g} "
            f"(allowed {EXPORT_TOLERANCE:g}) and {found.classes_changed} of {found.patches} crops change class; "
            "nothing was written"
        )
    return found.to_dict()


def about(classifier: Classifier, licence: str = "") -> dict[str, Any]:
    """Return the metadata of a model, for the configuration file of each package.

    Parameters
    ----------
    classifier : Classifier
    licence : str
        Of the weights; empty: not stated.

    Raises
    ------
    ModelError
        If the classifier does not come from a bundle.
    """
    config = classifier.config
    return {
        "hematokit_version": __version__,
        "created": config.created,
        "backbone": str(config.backbone),
        "taxonomy": classifier.taxonomy.to_dict(),
        "temperature": classifier.temperature,
        "patch_size": classifier.patch_size,
        "input_size": classifier.input_spec.size,
        "fit": classifier.input_spec.fit,
        "pixel_size_um": config.pixel_size_um,
        "license": licence or UNSTATED,
        "research_use_only": True,
        "notice": NOTICE,
    }


def drawn_crops(codes: Sequence[str], side: int) -> Patches:
    """Draw a cell of each class, for tests and images that are published with a model, without cells of patients.

    Parameters
    ----------
    codes : sequence of str
        Classes of the built-in taxonomy.
    side : int
        Side of the crops in pixels.

    Returns
    -------
    ndarray, shape (n, side, side, 3), uint8
    """
    from hematokit.synthetic import synthesize_crops

    # Drawn at the size that a cell fits into, then shrunk.
    drawn = synthesize_crops(dict.fromkeys(codes, 1), size=max(side, _DRAWN_SIDE))
    crops = {crop.code: resized(crop.pixels, side) for crop in drawn}
    return np.stack([crops[code] for code in codes])


def resized(pixels: Patches, side: int) -> Patches:
    """Return a crop (P, P, 3) resized to (side, side, 3)."""
    from PIL import Image

    if len(pixels) == side:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS))


def write_card(folder: Path, card: str, metadata: ModelCardData | None = None) -> list[Path]:
    """Write a card as ``README.md``; its images become files beside it.

    Web pages that show a README remove embedded images.

    Parameters
    ----------
    folder : Path
        Where to write.
    card : str
        Markdown; images are data URLs.
    metadata : ModelCardData, optional
        Goes before it, as YAML that a hub reads.

    Returns
    -------
    list of Path
        The files written, the card first.
    """
    pictures: list[Path] = []

    def put_beside(match: re.Match[str]) -> str:
        suffix = "jpg" if match[2] == "jpeg" else match[2]
        path = folder / f"card-{len(pictures) + 1}.{suffix}"
        write_atomically(path, base64.b64decode(match[3]))
        pictures.append(path)
        return f"![{match[1]}]({path.name})"

    text = _PICTURE.sub(put_beside, card)
    if metadata is not None:
        from huggingface_hub import ModelCard

        text = str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}"))
    write_atomically(folder / CARD, text)
    return [folder / CARD, *pictures]


def with_usage(card: str, usage: str) -> str:
    """Put a section on how a package is used before a card's first one.

    Parameters
    ----------
    card : str
        Markdown.
    usage : str
        The section, with its heading.
    """
    before, heading, after = card.partition("\n## ")
    return f"{before}\n{usage.strip()}\n\n{heading.lstrip()}{after}" if heading else f"{card}\n{usage.strip()}\n"


def without_pictures(card: str) -> str:
    """Return the text of a card with a word in place of each image, for formats that contain text only."""
    return _PICTURE.sub(lambda match: f"*(picture: {match[1]})*", card)
