"""The view as of now, for many who ask at once.

A broker learns of changes some ten milliseconds after they were made at another one. Whoever is
asked about a topic that is not known looks again before it says so: the topic may be that new. One
reading serves everybody who came before it began.
"""

from collections.abc import Callable

import trio

from tailrace.broker.catalog import Catalog
from tailrace.broker.cluster_view import ClusterView
from tailrace.broker.views import Views

WAIT_S = 2.0  # then it is not waited for


class Latest:
    """Invariant: one reading at a time."""

    def __init__(self, views: Views, catalog: Callable[[], Catalog]) -> None:
        """``catalog``: by which this broker answers; it follows the view."""
        self._views = views
        self._catalog = catalog
        self._begun = 0  # readings
        self._done = 0  # the newest that came to its end
        self._running: trio.Event | None = None  # set when it has ended
        self._followed = trio.Event()
        views.on_followed.append(self._tell)

    async def read(self) -> None:
        """Return when what the store said after this call is known here, or after ``WAIT_S``.

        T100 if the store is away.
        """
        with trio.move_on_after(WAIT_S):
            await self._read()
            while self._catalog().by_id.keys() != self._views.view.catalog.by_id.keys():
                await self._followed.wait()

    async def _read(self) -> None:
        wanted = self._begun + 1
        while self._done < wanted:
            if self._running is not None:
                await self._running.wait()
                continue
            self._begun += 1
            number, running = self._begun, trio.Event()
            self._running = running
            try:
                await self._views.read()
                self._done = number
            finally:
                self._running = None
                running.set()

    def _tell(self, view: ClusterView) -> None:
        self._followed.set()
        self._followed = trio.Event()
