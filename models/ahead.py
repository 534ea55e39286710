"""Work done ahead of time in a thread, so that the caller does not wait for it."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

# Results that wait for the caller. One is enough on average; a few bridge a slow disk access, and
# four batches of 64 patches take 16 MB.
AHEAD = 4

Result = TypeVar("Result")


def made_ahead(make: Callable[[int], Result], count: int) -> Iterator[Result]:
    """`make(0)`, `make(1)` ... `make(count - 1)` in this order, made by one thread ahead of time.

    An exception of `make` reaches the caller in place of the result. Closing the iterator drops
    the work that has not begun.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        waiting = deque(pool.submit(make, index) for index in range(min(AHEAD, count)))
        for index in range(count):
            result = waiting.popleft().result()
            if index + AHEAD < count:
                waiting.append(pool.submit(make, index + AHEAD))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
