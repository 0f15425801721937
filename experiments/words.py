"""Numbers as people write them."""

import math


def number(value: float) -> str:
    """1234567 -> "1.23M", 0.04567 -> "0.0457"."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "unknown"
    if abs(value) >= 1e15:
        return f"{value:.3g}".replace("e+", "e")
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
