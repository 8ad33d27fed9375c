"""A file in an object store (s3://, gs://) through fsspec, in pieces that a broken connection costs at most one of.

The packages for it are extras, imported when one is asked for. Credentials come from the environment only.
"""

from __future__ import annotations

import asyncio
import base64
import importlib
import re
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from adapters.sources.progress import Progress, Stopped
from adapters.sources.source import Bucket, SourceRefused
from adapters.sources.transfer import Body, Broken, Missing

PIECE = 8 * 1024 * 1024
POLL_S = 0.1
TIMEOUTS = {"connect_timeout": 15, "read_timeout": 60}
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')


@dataclass(frozen=True, slots=True)
class BucketFile:
    """`path` is bucket/key of one object."""

    store: Any
    scheme: str
    path: str

    @property
    def label(self) -> str:
        return f"{self.scheme}://{self.path}"

    @contextmanager
    def open(self, at: int, tag: str | None, progress: Progress) -> Iterator[Body]:
        """See transfer.Remote."""
        try:
            size, found, stated = self._stat(progress)
            begin = at if found == tag else 0
            yield Body(begin, size, found, self._pieces(begin, size, progress), stated)
            if self._stat(progress)[1] != found:
                raise Broken("it was changed while it was fetched")
        except (FileNotFoundError, NotADirectoryError):
            raise Missing from None
        except PermissionError:
            raise self._forbidden() from None

    def below(self, name: str) -> BucketFile:
        """Of a prefix: the object of that name."""
        return BucketFile(self.store, self.scheme, f"{self.path}/{name}")

    def exists(self, progress: Progress) -> bool:
        """Whether it is there for these credentials; also False where they may not ask."""
        try:
            self._stat(progress)
        except (FileNotFoundError, NotADirectoryError, PermissionError, SourceRefused, Broken):
            return False
        return True

    def _pieces(self, at: int, size: int, progress: Progress) -> Iterator[bytes]:
        for start in range(at, size, PIECE):
            end = min(start + PIECE, size)
            yield self._asked(progress, self.store._cat_file(self.path, start=start, end=end))

    def _stat(self, progress: Progress) -> tuple[int, str | None, dict[str, str]]:
        """Size, what changes with the content, and the md5 where the store states it."""
        if self.scheme == "s3":
            bucket, _, key = self.path.partition("/")
            head = self._asked(progress, self.store._call_s3("head_object", Bucket=bucket, Key=key))
            md5 = _MD5.fullmatch(head.get("ETag", ""))
            # Of an object in several parts, or encrypted with a key of KMS or the customer's, it is no md5.
            plain = head.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in head
            return int(head["ContentLength"]), head.get("ETag"), {"md5": md5[1]} if md5 and plain else {}
        info = self._asked(progress, self.store._info(self.path))
        if info.get("type") != "file":
            raise FileNotFoundError
        md5 = info.get("md5Hash")
        return int(info["size"]), str(info.get("generation")), {"md5": base64.b64decode(md5).hex()} if md5 else {}

    def _asked(self, progress: Progress, asking: Coroutine[Any, Any, Any]) -> Any:
        """What the store answers, on fsspec's own thread: a store that says nothing holds up nobody who is to stop."""
        working = asyncio.run_coroutine_threadsafe(asking, self.store.loop)
        try:
            while not wait([working], POLL_S).done:
                progress.check()
            return working.result()
        except Stopped:
            working.cancel()
            raise
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            raise
        except Exception as exc:  # of four libraries, none of which may be imported here
            kinds = {kind.__name__ for kind in type(exc).__mro__}
            if kinds & {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError"}:
                raise self._forbidden() from None
            if kinds & {"ParamValidationError", "ValueError"}:
                raise SourceRefused(f"{self.label} is not a name that this store takes. Check the source.") from None
            if _status(exc) in (400, 401, 403):
                raise self._forbidden() from None
            raise Broken(f"the object store does not answer ({type(exc).__name__})") from None

    def _forbidden(self) -> SourceRefused:
        names = {"s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "gs": "GOOGLE_APPLICATION_CREDENTIALS"}
        where = f"{names[self.scheme]} in the gateway's environment"
        return SourceRefused(f"{self.label} may not be read. Check {where}, and whether they have expired.")


def _status(error: Exception) -> int | None:
    """What the store answered: botocore keeps it in the cause, gcsfs in the error's code or, of a 403, in its text."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return found if isinstance(found, int) else None
    code = getattr(error, "code", None)
    if isinstance(code, int):
        return code
    return 403 if isinstance(error, OSError) and str(error).startswith("Forbidden") else None


@contextmanager
def opened(bucket: Bucket, environ: Mapping[str, str]) -> Iterator[Any]:
    """The object store of `bucket`, closed on the way out; SourceRefused where its package is not installed."""
    package = bucket.requires[bucket.scheme]
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise SourceRefused(
            f"{bucket.scheme}:// needs the extra loragate[{bucket.scheme}], which is not installed. "
            f"Run `pip install {package}` in the gateway's environment and start the gateway again."
        ) from None
    if bucket.scheme == "s3":
        store = module.S3FileSystem(
            key=environ.get("AWS_ACCESS_KEY_ID"),
            secret=environ.get("AWS_SECRET_ACCESS_KEY"),
            token=environ.get("AWS_SESSION_TOKEN"),
            endpoint_url=environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL"),
            client_kwargs={"region_name": environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")},
            config_kwargs=TIMEOUTS | {"retries": {"max_attempts": 1}},
            use_listings_cache=False,
            skip_instance_cache=True,
        )
    else:
        store = module.GCSFileSystem(
            endpoint_url=environ.get("STORAGE_EMULATOR_HOST"), use_listings_cache=False, skip_instance_cache=True
        )
    try:
        yield store
    finally:
        if bucket.scheme == "s3" and getattr(store, "_s3creator", None) is not None:
            store.close_session(store.loop, store._s3creator)
