"""Keeps what a node remembers of applications as they are.

::

    AppChanged, from any node ──► forgotten at once, and read anew when next asked for
    every REFRESH_EVERY_S     ──► the 250 whose reading is the longest ago are read anew

Nothing changes an application yet, so no notice is sent: whoever writes such a change is to
announce it (`Bus.announce`) once it is durable.

Requests find their application in the Store's cache, and the dispatcher remembers the origin
of each. A notice ends what both remember as soon as it comes. A notice may be lost
(`taskd.ports.bus.Announcing`): without one, an application is out of date for at most
`REFRESH_EVERY_S` for each 250 that the node remembers, and the time of the reading. That is
1 s for most, 40 s for the 10,000 that are remembered at most.

The reading is done beside the requests. If each request looked at an age instead, some would
wait for the Store, and the time that they take would tell that an application exists.
"""

from __future__ import annotations

import logging

import trio

from taskd.engine.dispatcher import Dispatcher
from taskd.errors import StoreUnavailable
from taskd.ports.bus import Bus, Notice
from taskd.ports.store import Store
from taskd.runtime.ticks import next_tick

logger = logging.getLogger("taskd.engine")

REFRESH_EVERY_S = 1.0


class AppChanges:
    """See the module.

    Args:
        store, bus: see their ports.
        dispatcher: remembers where the tasks of applications go.
    """

    def __init__(self, *, store: Store, bus: Bus, dispatcher: Dispatcher) -> None:
        self._store = store
        self._dispatcher = dispatcher
        bus.on_notice(self._note)

    async def run(self) -> None:
        """Read anew what is remembered, until cancelled."""
        while True:
            await trio.sleep_until(next_tick(REFRESH_EVERY_S))
            try:
                changed = await self._store.refresh_apps()
            except StoreUnavailable as error:
                # The timer tells of it, and no request succeeds meanwhile.
                logger.debug("applications can't be read anew: %s", error)
            else:
                for app_id in changed:
                    self._dispatcher.forget_app(app_id)

    def _note(self, notice: Notice) -> None:
        # The Store first: the dispatcher asks it.
        self._store.forget_app(notice.app_id)
        self._dispatcher.forget_app(notice.app_id)
