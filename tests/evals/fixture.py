"""What other libraries gave on random inputs; see make_fixtures.py."""

import pathlib

import numpy as np

FILE = pathlib.Path(__file__).parent / "fixtures" / "metrics.npz"


def expected(part: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(inputs, outputs of the libraries)."""
    with np.load(FILE) as arrays:
        return tuple(
            {k.removeprefix(prefix): arrays[k] for k in arrays.files if k.startswith(prefix)}
            for prefix in (f"{part}/in/", f"{part}/out/")
        )
