"""PostgreSQL as this program opens it: no question waits for ever, whoever else stands still. Must not know any table.

It waits without end unless it is told: for a row that a stopped process holds, for a session that went silent in the
middle of a change; and its driver does for a server that takes a question and does not answer.
"""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

READ_S = 8.0  # a gateway that cannot read says so before the others count it as gone (store_gateways.ALIVE_S)
WRITE_S = 20.0  # some statements, and other writes of this process before it
CLOSE_S = 3.0  # for what still runs at the end
# Each is shorter than what waits for it. A role's or a database's own settings stay.
_PATIENCE = {"lock_timeout": "5s", "statement_timeout": "7s", "idle_in_transaction_session_timeout": "10s"}
_SET = "SELECT " + ", ".join(
    f"CASE WHEN current_setting('{name}') = '0' THEN set_config('{name}', '{value}', false) END"
    for name, value in _PATIENCE.items()
)
_ENDLESS = "SELECT " + ", ".join(f"set_config('{name}', '0', true)" for name in _PATIENCE)
_NETWORK = {  # a machine that is gone without a word is noticed in half a minute, not in two hours
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}

_REFUSALS = {  # time changes nothing about these; what it says itself names users and addresses, which /readyz may not
    r'(database|role) "[^"]*" does not exist': "it has no such database or user",
    r"authentication failed|no password supplied": "it does not take the user and password",
    r"no pg_hba\.conf entry": "its pg_hba.conf has no entry for this machine",
}


class Sessions:
    """The connections of one engine that are open now."""

    def __init__(self, url: sa.URL, size: int) -> None:
        """size: how many at most. What `url` says about connections comes before what is said here."""
        self._open: set[Any] = set()
        network = {name: value for name, value in _NETWORK.items() if name not in url.query}
        self.engine = sa.create_engine(url, pool_size=size, max_overflow=0, pool_pre_ping=True, connect_args=network)
        event.listen(self.engine, "connect", self._opened)
        event.listen(self.engine, "close", self._closed)

    def cut(self) -> None:
        """Whoever waits for an answer is told that the connection is lost."""
        for connection in tuple(self._open):
            with suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)

    def _opened(self, connection: Any, _record: Any) -> None:
        connection.autocommit = True
        connection.execute(_SET)
        connection.autocommit = False
        self._open.add(connection)

    def _closed(self, connection: Any, _record: Any) -> None:
        self._open.discard(connection)


def refusal(said: str) -> str | None:
    """Why it will not have this gateway, where what the driver said is that; None for trouble that may pass."""
    return next((why for pattern, why in _REFUSALS.items() if re.search(pattern, said)), None)


def address(url: sa.URL) -> str:
    """Where it is, for a person."""
    host = url.host or url.query.get("host") or "its local socket"
    return f"{host}:{url.port}" if url.port else str(host)


def without_end(conn: sa.Connection) -> None:
    """This transaction may take as long as it takes: it changes the schema."""
    conn.exec_driver_sql(_ENDLESS)
