"""Progress of long work, for a program that shows it and may stop it.

with listening(show):  # show(what, done, total); it may raise `Cancelled`
    map_image(recording)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, int, int | None], None]
# A variable of the context belongs to one thread, so two threads do not hear each other's work.
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


class Cancelled(Exception):
    """The listener asked the work to stop."""


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` for every step that the work in the block reports, in this thread."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell_progress(what: str, done: int, total: int | None = None) -> None:
    """Tell the listener, if there is one, that `done` of `total` steps are done; None: unknown.

    Raises
    ------
    Cancelled
        If the listener raises it; the work then ends without a result.
    """
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)
