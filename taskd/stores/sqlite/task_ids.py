"""Gives new tasks of a SQLite store their ids."""

from __future__ import annotations

import sqlite3

_LAST_ID = "SELECT seq FROM sqlite_sequence WHERE name = 'tasks'"


class TaskIds:
    """Gives ids, and remembers the last one.

    If SQLite gave them, the ids of many rows would have to be read back. AUTOINCREMENT
    notes the highest id all the same, so the ids of purged tasks are not given again after a
    restart.

    Args:
        connection: to the database.
        multi_process: whether other processes give ids too; the last is then read each time.
    """

    def __init__(self, connection: sqlite3.Connection, *, multi_process: bool = False) -> None:
        self._multi_process = multi_process
        self._last = _last_id(connection)

    def upcoming(self, connection: sqlite3.Connection, count: int) -> range:
        """Return this many ids that were not given yet; `give` gives them."""
        if self._multi_process:
            self._last = _last_id(connection)
        return range(self._last + 1, self._last + 1 + count)

    def give(self, ids: range) -> None:
        """Count these ids as given: their tasks were added."""
        self._last += len(ids)


def _last_id(connection: sqlite3.Connection) -> int:
    row = connection.execute(_LAST_ID).fetchone()
    return 0 if row is None else int(row[0])
