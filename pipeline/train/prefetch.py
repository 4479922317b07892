"""Batches made one step ahead by a thread, so that the model does not wait for them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
AHEAD = 2  # steps made before they are asked for


class Prefetch(Generic[T]):
    """make(first), make(first+1), …, make(end-1), in order; an error in `make` is raised by `next`."""

    def __init__(self, make: Callable[[int], T], first: int, end: int) -> None:
        self._made: queue.Queue[T | BaseException] = queue.Queue(maxsize=AHEAD)
        self._held: list[T] = []  # by `wait`
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(make, first, end), name="prefetch", daemon=True)
        self._thread.start()

    def _work(self, make: Callable[[int], T], first: int, end: int) -> None:
        try:
            for step in range(first, end):
                if not self._put(make(step)):
                    return
        except BaseException as error:  # handed to the training thread, which raises it
            self._put(error)

    def _put(self, item: T | BaseException) -> bool:
        while not self._closed.is_set():
            try:
                self._made.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def wait(self) -> None:
        """Return when the next item is made; an error in making it is raised."""
        if not self._held:
            self._held.append(self.next())

    def next(self) -> T:
        """The next item, waiting for it if need be."""
        if self._held:
            return self._held.pop()
        item = self._made.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()
