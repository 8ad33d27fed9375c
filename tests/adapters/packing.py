"""Archives made by code: a good adapter in every format, and the means to spoil one."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES: Mapping[str, bytes] = {CONFIG: b'{"r": 8}', WEIGHTS: bytes(range(256)) * 64}


def entry(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    """One tar header; fields: as tarfile.TarInfo has them."""
    made = tarfile.TarInfo(name)
    made.type = kind
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def tar(
    files: Mapping[str, bytes] = FILES,
    *more: tarfile.TarInfo,
    top: str = "",
    format: int = tarfile.PAX_FORMAT,
) -> bytes:
    """A tar of `files` below `top`, with more headers (without data) behind them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as made:
        for name, data in files.items():
            made.addfile(entry(top + name, size=len(data)), io.BytesIO(data))
        for header in more:
            made.addfile(header)
    return out.getvalue()


def unended(data: bytes) -> bytes:
    """A tar without the zeros that end it."""
    whole = data.rstrip(b"\0")
    return whole + bytes(-len(whole) % 512)


def gz(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=1, mtime=0)


def zipped(
    files: Mapping[str, bytes] = FILES,
    top: str = "",
    method: int = zipfile.ZIP_DEFLATED,
    change: Callable[[zipfile.ZipInfo], None] = lambda info: None,
) -> bytes:
    """A zip; `change` may spoil the description of each file before it is written."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for name, data in files.items():
            info = zipfile.ZipInfo(top + name)
            info.compress_type = method
            change(info)
            made.writestr(info, data)
    return out.getvalue()


def of_folder(folder: Path, top: str = "") -> bytes:
    """The files of a folder on disk, as tar.gz."""
    return gz(tar({path.name: path.read_bytes() for path in sorted(folder.iterdir())}, top=top))
