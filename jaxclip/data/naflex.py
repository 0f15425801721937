"""NaFlex of SigLIP 2 (Tschannen et al. 2025, arXiv:2502.14786, sec. 2.4.2): images as patches.

Shape letters: H height, W width.
"""

import math

import numpy as np


def naflex_patches(
    pixels_HW3: np.ndarray, patch_size: int, max_patches: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """An image of whole patches, at most `max_patches`, as these.

    Returns:
      uint8 [max_patches, patch_size * patch_size * 3], patches in row order and then zeros; and the
      numbers of rows and columns.
    """
    P = patch_size
    rows, columns = pixels_HW3.shape[0] // P, pixels_HW3.shape[1] // P
    patches = pixels_HW3.reshape(rows, P, columns, P, 3).transpose(0, 2, 1, 3, 4)
    padded = np.zeros((max_patches, P * P * 3), np.uint8)
    padded[: rows * columns] = patches.reshape(rows * columns, -1)
    return padded, (rows, columns)


def naflex_grid(height: int, width: int, patch_size: int, max_patches: int) -> tuple[int, int]:
    """Rows and columns at the largest scale whose patches, rounded up, are not too many.

    The scale is found by bisection to 1e-5, as big_vision and Hugging Face do.
    """

    def grid(scale: float) -> tuple[int, int]:
        rows, columns = (max(1, math.ceil(side * scale / patch_size)) for side in (height, width))
        return rows, columns

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(grid(middle)) <= max_patches else (low, middle)
    return grid(low)
