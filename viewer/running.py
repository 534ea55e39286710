"""One piece of work at a time in a thread, with its progress, time left and a way to stop it."""

import time
from collections.abc import Callable
from typing import Any

from napari.qt.threading import create_worker
from qtpy.QtCore import QObject, Signal

from common.progress import Cancelled, listening
from psf.errors import InputError

SHOWN_EVERY_S = 0.05  # progress; more often would only keep the window busy


class Running(QObject):
    """Runs functions in a thread; signals arrive in the thread of the window."""

    progress = Signal(str, int, int)  # what, steps done, all steps (0: unknown)
    failed = Signal(str)  # a line for the user
    cancelled = Signal()
    ended = Signal()  # after any of these

    def __init__(self) -> None:
        super().__init__()
        self.is_running = False
        self._stop = False

    def start(self, work: Callable[[], Any], use: Callable[[Any], None]) -> None:
        """Run `work` in a thread, and then `use` on its result in the window's thread.

        Mistakes of the user and a cancel arrive as signals; any other error is a bug, which napari
        shows.
        """
        self.is_running, self._stop, self._shown = True, False, 0.0
        worker = create_worker(self._caught, work, _start_thread=False)
        worker.returned.connect(lambda outcome: self._take(outcome, use))
        worker.finished.connect(self._end)
        worker.start()

    def stop(self) -> None:
        """Stop the work at its next step."""
        self._stop = True

    def _caught(self, work: Callable[[], Any]) -> tuple[Any, Exception | None]:
        with listening(self._listen):
            try:
                return work(), None
            except (InputError, Cancelled) as error:
                return None, error  # a result that is an error would be raised by the worker

    def _listen(self, what: str, done: int, total: int | None) -> None:
        if self._stop:
            raise Cancelled
        if time.monotonic() - self._shown > SHOWN_EVERY_S:
            self._shown = time.monotonic()
            self.progress.emit(what, done, total or 0)

    def _take(self, outcome: tuple[Any, Exception | None], use: Callable[[Any], None]) -> None:
        result, error = outcome
        if error is None:
            use(result)
        elif isinstance(error, Cancelled):
            self.cancelled.emit()
        else:
            self.failed.emit(" ".join(str(error).splitlines()))

    def _end(self) -> None:
        self.is_running = False
        self.ended.emit()
