"""The one place that knows coordinates.

Integer pixels of the full-resolution field, row first. A box is ``(y0, x0, height, width)``, half-open: it covers rows
``y0 .. y0 + height - 1``. A centre ``(y, x)`` is in the same units with pixel *corners* on the integers, so the centre
of a box of 250 px that starts at 0 is 125.0, which is also the row where the second half begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Box", "pad_to_square", "whole_image_box"]


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open box in integer pixels of a field.

    Attributes
    ----------
    y0, x0 : int
        First row and first column; negative where the box begins outside the field.
    height, width : int
        Size in pixels, at least 1.
    """

    y0: int
    x0: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a box needs a height and width of at least 1 pixel, not {self.height}x{self.width}")

    @property
    def centre(self) -> tuple[float, float]:
        """Centre ``(y, x)`` in pixels."""
        return self.y0 + self.height / 2, self.x0 + self.width / 2


def whole_image_box(height: int, width: int) -> Box:
    """Return the box of a crop that is its own field: it starts at the origin and covers all of the image."""
    return Box(0, 0, height, width)


def pad_to_square(image: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Pad an image by reflection to ``size x size``, keeping it in the middle.

    Where the missing pixels are odd in number, the extra row or column goes to the bottom or right.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        Image no larger than `size` in either direction.
    size : int
        Side of the result in pixels.

    Returns
    -------
    ndarray of uint8, shape (size, size, 3)

    Raises
    ------
    ValueError
        If the image is larger than `size`.
    """
    height, width = image.shape[:2]
    if height > size or width > size:
        raise ValueError(f"an image of {width}x{height} px cannot be padded to {size} px: it is larger")
    top, left = (size - height) // 2, (size - width) // 2
    margins = ((top, size - height - top), (left, size - width - left), (0, 0))
    return np.pad(image, margins, mode="reflect")
