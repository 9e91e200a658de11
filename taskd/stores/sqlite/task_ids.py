"""Which ids new tasks are given in a SQLite store."""

from __future__ import annotations

import sqlite3

_LAST_ID = "SELECT seq FROM sqlite_sequence WHERE name = 'tasks'"


class TaskIds:
    """Gives ids. Knows the last one.

    They are given here rather than by SQLite, so that many rows need not be asked
    back for theirs. AUTOINCREMENT notes the highest all the same, which keeps
    ids of purged tasks from being given again after a restart.

    Args:
        connection: to the database.
        multi_process: other processes give ids as well, so the last one is read anew each time.
    """

    def __init__(self, connection: sqlite3.Connection, *, multi_process: bool = False) -> None:
        self._multi_process = multi_process
        self._last = _last_id(connection)

    def upcoming(self, connection: sqlite3.Connection, count: int) -> range:
        """So many ids that were not given yet; `give` gives them."""
        if self._multi_process:
            self._last = _last_id(connection)
        return range(self._last + 1, self._last + 1 + count)

    def give(self, ids: range) -> None:
        """Their tasks were added."""
        self._last += len(ids)


def _last_id(connection: sqlite3.Connection) -> int:
    row = connection.execute(_LAST_ID).fetchone()
    return 0 if row is None else int(row[0])
