"""Many requests at once, and never many waiting."""

import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def in_threads(call: Callable[[Any], Any], items: Iterable, threads: int) -> Iterator[Any]:
    """call(item) of each, as they finish; `items` is read no more than a few a thread ahead.

    After an error or Ctrl-C none is begun, and those that run are not waited for.
    """
    items = iter(items)
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        running = {pool.submit(call, item) for item in itertools.islice(items, 4 * threads)}
        while running:
            done, running = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            running |= {pool.submit(call, item) for item in itertools.islice(items, len(done))}
            yield from (future.result() for future in done)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
