"""What an operator may name as the source of an adapter, taken apart and judged; nothing here is opened or fetched.

A password in a URL is refused and never repeated; what is recorded of a URL is what is left without its query.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote, unquote, urlsplit

from adapters.errors import InvalidRequest, ServiceError

ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
FORMS = "an absolute path, hf://owner/repo@revision, s3://…, gs://… or https://…/adapter.tar.gz"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HUB = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[^/@]{1,255}))?(?:/(?P<folder>[^@]*))?",
    re.ASCII,
)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}", re.ASCII)


class SourceUnavailable(ServiceError):
    """Elsewhere failed: it cannot be reached, breaks off again and again, or gives other bytes than it says."""

    status, type, code = 502, "server_error", "source_unavailable"


class SourceRefused(InvalidRequest):
    """Elsewhere says no: there is no such thing, or these credentials may not read it."""

    code = "source_refused"

    def __init__(self, message: str) -> None:
        super().__init__(message, param="source")


@dataclass(frozen=True, slots=True)
class Local:
    """A folder or an archive on the gateway's machine."""

    path: Path

    @property
    def shown(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class Hub:
    """A repository of a Hugging Face hub, or a folder in it."""

    repo: str
    revision: str | None
    folder: str

    @property
    def shown(self) -> str:
        return self.at(self.revision)

    def at(self, revision: str | None) -> str:
        """The same place at a revision, which the hub resolved: what is recorded."""
        at = f"@{quote(revision, safe='')}" if revision else ""
        return f"hf://{self.repo}{at}{'/' if self.folder else ''}{self.folder}"


@dataclass(frozen=True, slots=True)
class Bucket:
    """An object store: an archive, or a prefix that holds the two files."""

    scheme: str
    path: str  # bucket/key

    requires: ClassVar[dict[str, str]] = {"s3": "s3fs", "gs": "gcsfs"}

    @property
    def shown(self) -> str:
        return f"{self.scheme}://{self.path}"

    @property
    def is_archive(self) -> bool:
        return self.path.lower().endswith(ARCHIVES)


@dataclass(frozen=True, slots=True)
class Web:
    """An archive on a web server. `url` may carry a signature in its query: only `shown` may be seen."""

    url: str
    shown: str

    def __repr__(self) -> str:
        return f"Web({self.shown!r})"


Source = Local | Hub | Bucket | Web


def parse(text: str) -> Source:
    """What `text` names; InvalidRequest in a sentence that does not repeat it."""
    if not _SCHEME.match(text):
        path = Path(text)
        if not path.is_absolute():
            raise _invalid(f"`source` must be {FORMS}. A path is one on the gateway's machine.")
        return Local(path)
    scheme, _, rest = text.partition("://")
    match scheme.lower():
        case "hf":
            return _hub(rest)
        case "s3" | "gs" | "gcs":
            return _bucket("s3" if scheme.lower() == "s3" else "gs", rest)
        case "https" | "http":
            return _web(text)
    raise _invalid(f"Sources of this kind are not known. Give {FORMS}.")


def is_loopback(host: str | None) -> bool:
    """Whether a URL's host can only be this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _hub(rest: str) -> Hub:
    found = _HUB.fullmatch(rest.rstrip("/"))
    if found is None or "?" in rest or "#" in rest:
        raise _invalid("A hub source looks like hf://owner/repo@revision/folder; a token goes into HF_TOKEN.")
    folder, revision = found["folder"] or "", unquote(found["revision"] or "")
    if not _plain(folder) or ".." in revision or not revision.isprintable():
        raise _invalid("The revision or the folder of a hub source has parts that no repository has (such as `..`).")
    return Hub(found["repo"], revision or None, folder)


def _bucket(scheme: str, rest: str) -> Bucket:
    bucket, _, key = rest.rstrip("/").partition("/")
    if "@" in bucket or ":" in bucket:
        raise _invalid(f"Leave user and password out of the {scheme}:// source: credentials come from the environment.")
    if not _BUCKET.fullmatch(bucket) or not key or not _plain(key):
        raise _invalid(
            f"An object store's source looks like {scheme}://bucket/prefix or {scheme}://bucket/name.tar.gz."
        )
    return Bucket(scheme, f"{bucket}/{key}")


def _web(url: str) -> Web:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")  # what the resolver does, too late for a sentence about the address
    except ValueError:  # a port beyond 65535, half an IPv6 address
        raise _invalid("This URL is not an address such as https://example.org/adapter.tar.gz.") from None
    if parts.username is not None or parts.password is not None:
        raise _invalid("Leave user and password out of the URL: a gateway never keeps or shows them.")
    if not host or not url.isascii() or not url.isprintable() or " " in url:
        raise _invalid("This URL is not an address such as https://example.org/adapter.tar.gz.")
    if parts.scheme.lower() == "http" and not is_loopback(host):
        raise _invalid(
            "http:// is taken from this machine only: anyone on the way could change the weights. Use https."
        )
    if not parts.path.lower().endswith(ARCHIVES):
        raise _invalid(f"A URL must name an archive ({', '.join(ARCHIVES)}).")
    name = f"[{host}]" if ":" in host else host
    return Web(url, f"{parts.scheme.lower()}://{name}{'' if port is None else f':{port}'}{parts.path}")


def _plain(path: str) -> bool:
    return path.isprintable() and all(part not in ("", ".", "..") for part in path.split("/") if path)


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="source")
