"""Who runs which test, for pytest-xdist: all that needs PostgreSQL goes to one process, so that one cluster is made,
and all that reads the whole source to another.

By name, because pytest 9.2 no longer lets pytest-xdist 3.8 write a test's `xdist_group` into its id: without this,
every process makes a cluster of its own (2 s of CPU each), and nothing says so.
"""

from __future__ import annotations

from xdist.scheduler import LoadGroupScheduling  # type: ignore[import-untyped]


class Sharing(LoadGroupScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        """The group of a test, its own id for one that needs nothing shared."""
        if "[postgresql" in nodeid or "/test_postgres.py::" in nodeid:
            return "postgresql"
        if "/test_architecture.py::" in nodeid:
            return "architecture"
        return str(super()._split_scope(nodeid))
