"""That hostile text takes time linear in its length."""

import time
from collections.abc import Callable
from typing import Any


def is_linear(call: Callable[[Any], Any], make: Callable[[int], Any], size: int) -> bool:
    """Compares CPU seconds for `size` and four times as much: 4 apart if linear, 16 if quadratic.

    The lower of three of each, as other programs run here.
    """

    def seconds(argument: Any) -> float:
        def once() -> float:
            start = time.process_time()
            call(argument)
            return time.process_time() - start

        return min(once() for _ in range(3))

    return seconds(make(4 * size)) < 9 * seconds(make(size)) + 0.005
