"""What a caller may do: the explicit policy that every route of the admin port declares.

    Admin   the caller's key, which has the scope admin: Annotated[Key, Depends(admin)]
    public  no key at all; only for the paths in guard.OPEN

A test walks all routes and fails on one that declares neither.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from adapters.service import OPERATOR
from gateway.errors import Forbidden, Unauthenticated
from gateway.keys import Key
from gateway.tokens import ROOT_ID

CALLER = "loragate.caller"  # where the edge leaves the key that it admitted


def admin(request: Request) -> Key:
    """The caller, with the right to administer; Forbidden without it."""
    caller = request.scope.get(CALLER)
    if not isinstance(caller, Key):
        raise Unauthenticated("This needs the admin key.", retryable=False)  # the guard would have said so before
    if "admin" not in caller.scopes:
        raise Forbidden("This key lacks the scope admin.", param=None, retryable=False)
    return caller


def public() -> None:
    """Anyone, without a key."""


Admin = Annotated[Key, Depends(admin)]


def reaches(caller: Key, adapter: str) -> bool:
    """Whether the caller may administer an adapter of that name: with a list of models only those."""
    return caller.models is None or adapter in caller.models


def who(caller: Key) -> str:
    """Whom the history names."""
    return OPERATOR if caller.id == ROOT_ID else caller.id


def may_register(caller: Key, adapter: str) -> None:
    """Forbidden for a name that is not the caller's."""
    if not reaches(caller, adapter):
        raise Forbidden("Your key may use some models only, and this is none of them.", param="name", retryable=False)
