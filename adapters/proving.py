"""Holds engines to what is known of a version: what other engines said, and what the trainer saw.

Must not know loads: whoever loads asks, and decides what a failure means there.
"""

from __future__ import annotations

import asyncio
import logging

import sqlalchemy as sa

from adapters import store
from adapters.db import Database
from adapters.engine import EngineClient
from adapters.errors import NotProven, ServiceError
from adapters.lineage import utterances
from adapters.proof import Reference, Verdict, decode, encode, hold, prove

REGISTRY_S = 2.0  # requests wait for a load, and it must not wait for a database that stands still
_log = logging.getLogger(__name__)


class Prover:
    """One per gateway. Calling it is a replica's `Prove`."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.warnings: dict[str, str] = {}  # engine name → what its last proof found odd, without failing

    async def __call__(self, client: EngineClient, base: str, engine_name: str) -> bool:
        """True where `client` answers with the weights, False where they seem to change nothing.

        NotProven, EngineError.
        """
        reference, trained = await self._known(engine_name)
        proof = await prove(client, engine_name, base, reference=reference, trained=trained)
        if proof.verdict is Verdict.PASSED and not reference and not await self._keep(engine_name, proof.said):
            reference, _ = await self._known(engine_name)  # another engine was asked at the same time, and was first
            proof = hold(proof, reference)
        self.warnings.pop(engine_name, None)
        if proof.verdict is Verdict.FAILED:
            _log.warning("engine %s does not answer with %s: %s", client.url, engine_name, proof.reason)
            raise NotProven(
                f"Engine {client.url} loaded {engine_name}, but {proof.reason[:1].lower()}{proof.reason[1:]}"
            )
        if proof.reason:
            self.warnings[engine_name] = proof.reason
        return proof.verdict is not Verdict.NO_EFFECT

    async def _known(self, engine_name: str) -> tuple[Reference, Reference]:
        """What other engines said, and what the trainer did; nothing where the registry cannot be read now."""

        def read(conn: sa.Connection) -> tuple[str | None, str | None]:
            return store.proof(conn, engine_name), store.lineage(conn, engine_name)

        try:
            async with asyncio.timeout(REGISTRY_S):
                reference, made = await self._db.read(read)
        except (ServiceError, TimeoutError):
            return (), ()
        return _decoded(reference, engine_name), _decoded(utterances(made), engine_name)

    async def _keep(self, engine_name: str, said: Reference) -> bool:
        """False where another engine's is kept already."""
        try:
            async with asyncio.timeout(REGISTRY_S):
                return await self._db.write(lambda conn: store.set_proof(conn, engine_name, encode(said)))
        except (ServiceError, TimeoutError) as exc:  # the next engine's proof is kept instead
            _log.warning("the proof of %s could not be kept: %s", engine_name, exc or "the database does not answer")
            return True


def _decoded(text: str | None, engine_name: str) -> Reference:
    if text is None:
        return ()
    try:
        return decode(text)
    except ValueError:
        _log.warning("what is kept as the proof of %s cannot be read; it is proven without it", engine_name)
        return ()
