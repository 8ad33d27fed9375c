"""The two secret files of a data directory: `pepper` (keys the digests) and `admin.key` (the root admin token).

Made at the first start, 0600, whole or not at all. Must not know the database.
"""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from adapters.errors import ServiceError, StorageFull
from gateway import tokens

log = logging.getLogger("loragate.keys")

PEPPER = "pepper"
ADMIN_KEY = "admin.key"


class SecretFileError(ServiceError):
    """A secret file cannot be read, written or trusted; the gateway does not start."""

    code = "secret_file"


def pepper(data_dir: Path, random_bytes: Callable[[int], bytes], *, keys_exist: bool) -> bytes:
    """The installation's 32 random bytes, made at first start; SecretFileError.

    keys_exist: the database already holds keys. Then a missing file is an error: a new pepper would quietly
    turn every stored key into a stranger.
    """
    path = data_dir / PEPPER
    found = _read(path)
    if found is None:
        if keys_exist:
            raise SecretFileError(
                f"{path} is missing, but the database holds API keys that only it can check. "
                "Put it back from your backup, or start with an empty data directory."
            )
        found = _create(path, random_bytes(32))
    if len(found) != 32:
        raise SecretFileError(f"{path} should be 32 bytes but has {len(found)}. Put it back from your backup.")
    return found


def admin_key(data_dir: Path, random_bytes: Callable[[int], bytes]) -> bytes:
    """The root admin token, made when the file is missing (deleting it and restarting rotates it); SecretFileError."""
    path = data_dir / ADMIN_KEY
    found = _read(path)
    if found is None:
        found = _create(path, tokens.mint(random_bytes, tokens.ROOT_ID).token.encode("ascii") + b"\n")
    token = found.strip()
    if tokens.parse(token) != tokens.ROOT_ID:
        raise SecretFileError(f"{path} does not hold an admin key. Delete it and start again: a new one is made.")
    return token


def _read(path: Path) -> bytes | None:
    try:
        if path.stat().st_mode & 0o007:
            log.warning("every user of this machine can read or change %s: say `chmod 600 %s`", path, path)
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise SecretFileError(f"Cannot read {path}: {exc.strerror}. Give this user access to it.") from None


def _create(path: Path, content: bytes) -> bytes:
    """Write `content` beside `path` and link it into place: nobody reads half a secret, a loser takes the winner's."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600 from its first moment
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)
        finally:
            os.unlink(draft)
    except FileExistsError:
        return path.read_bytes()
    except OSError as exc:
        if exc.errno == errno.ENOSPC:
            raise StorageFull(f"No space left to write {path}. Free some and start again.") from None
        raise SecretFileError(f"Cannot write {path}: {exc.strerror}. Choose another --data-dir.") from None
    return content
