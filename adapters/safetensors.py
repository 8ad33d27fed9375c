"""Our own reader of safetensors files: a strict header, then one pass that hashes, looks for NaN, and copies.

No torch, no numpy: the file is hostile until it has passed here. Must not know what the tensors are for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO, NoReturn

from adapters.errors import AdapterRejected

MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_TENSORS = 100_000
MAX_NAME = 512
MAX_DIMENSIONS = 8
MAX_DIMENSION = 2**31
# 64 KiB: about 1 GiB/s for the NaN test on one core (256 KiB: half of that, the integers leave the cache),
# and never more than 0.2 ms between two points where other threads get the interpreter.
CHUNK = 64 * 1024
_SIZES = {"F32": 4, "F16": 2, "BF16": 2}
_EXPONENTS = {"F32": (0x7F800000, 0x00800000), "F16": (0x7C00, 0x0400), "BF16": (0x7F80, 0x0080)}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of the header. `begin` and `end` count from the first byte behind the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: tensors in file order, covering the data without gap or overlap."""

    raw: bytes  # length prefix and JSON, as in the file
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """What one pass over the data found."""

    digest: str  # sha256 over (name, dtype, shape, sha256 of the bytes) sorted by name: file order does not matter
    zeros: frozenset[str]  # names of tensors that hold nothing but zeros


def read_header(file: BinaryIO, size: int) -> Header:
    """Read and check the header of `file`, `size` bytes long; AdapterRejected with reason safetensors_*."""
    prefix = _exactly(file, 8) if size >= 8 else _refuse("safetensors_header", "it is shorter than 8 bytes")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        _refuse("safetensors_header", f"its header claims {length} bytes, more than {MAX_HEADER_BYTES}")
    if length < 2 or 8 + length > size:
        _refuse("safetensors_truncated", "its header does not fit into the file")
    raw = _exactly(file, length)
    entries = _parse(raw)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse("safetensors_header", "its metadata is not a table of texts")
    if not entries:
        _refuse("safetensors_empty", "it holds no tensors")
    if len(entries) > MAX_TENSORS:
        _refuse("safetensors_header", f"it lists {len(entries)} tensors, more than {MAX_TENSORS}")
    tensors = sorted((_tensor(*entry) for entry in entries.items()), key=lambda each: each.begin)
    _check_layout(tensors, size - 8 - length)
    return Header(prefix + raw, tuple(tensors))


def scan(file: BinaryIO, header: Header, sink: Callable[[bytes], object] | None = None) -> Contents:
    """Pass once over the data behind the header: hash it, refuse NaN and infinity, hand every byte to `sink`.

    What is hashed and tested is exactly what `sink` gets, so a file changed meanwhile cannot slip through.
    Raises AdapterRejected with reason not_finite or safetensors_truncated.
    """
    if sink is not None:
        sink(header.raw)
    masks = {dtype: _Mask(dtype) for dtype in {tensor.dtype for tensor in header.tensors}}
    digests: dict[str, list[object]] = {}
    zeros: set[str] = set()
    for tensor in header.tensors:
        sha, zero, mask = hashlib.sha256(), True, masks[tensor.dtype]
        for begin in range(tensor.begin, tensor.end, CHUNK):
            chunk = _exactly(file, min(CHUNK, tensor.end - begin))
            sha.update(chunk)
            number = int.from_bytes(chunk, "little")
            if mask.hit_by(number):
                raise AdapterRejected(
                    f"Tensor {tensor.name} holds NaN or infinity: the training run diverged. "
                    "Train again with a lower learning rate, or register an earlier checkpoint.",
                    reason="not_finite",
                )
            zero = zero and number == 0
            if sink is not None:
                sink(chunk)
        if zero:
            zeros.add(tensor.name)
        digests[tensor.name] = [tensor.dtype, list(tensor.shape), sha.hexdigest()]
    total = hashlib.sha256(json.dumps(digests, sort_keys=True, ensure_ascii=True).encode())
    return Contents(total.hexdigest(), frozenset(zeros))


class _Mask:
    """Tests a whole chunk, read as one large integer, for floats whose exponent bits are all ones.

    Masked to its exponent, a float plus the exponent's lowest bit carries into the sign bit only if all were
    ones. A shorter chunk is a smaller integer: its missing floats read as zero and never carry.
    """

    def __init__(self, dtype: str) -> None:
        size = _SIZES[dtype]
        exponent, lowest = _EXPONENTS[dtype]
        lanes = CHUNK // size
        self._exponents = int.from_bytes(exponent.to_bytes(size, "little") * lanes, "little")
        self._lowest = int.from_bytes(lowest.to_bytes(size, "little") * lanes, "little")
        self._signs = int.from_bytes((1 << (8 * size - 1)).to_bytes(size, "little") * lanes, "little")

    def hit_by(self, number: int) -> bool:
        return ((number & self._exponents) + self._lowest) & self._signs != 0


def _parse(raw: bytes) -> dict[str, Any]:
    if raw[:1] != b"{":
        _refuse("safetensors_header", "its header does not begin with '{'")
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        _refuse("safetensors_header", f"its header is not valid JSON ({type(exc).__name__})")
    if not isinstance(header, dict):
        _refuse("safetensors_header", "its header is not a table")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        _refuse("safetensors_duplicate", "a name appears twice in its header")
    return table


def _no_constant(text: str) -> NoReturn:
    raise ValueError(text)


def _tensor(name: str, entry: Any) -> Tensor:
    if len(name) > MAX_NAME or not name.isascii() or not name.isprintable():
        _refuse("safetensors_header", "a tensor's name is not short printable ASCII")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse("safetensors_header", f"the entry of {name} is not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise AdapterRejected(
            f"Tensor {name} has a type other than F32, F16 or BF16. Save the adapter in bfloat16 and register that.",
            reason="dtype",
        )
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        _refuse("safetensors_header", f"shape or offsets of {name} are not whole numbers")
    if len(shape) > MAX_DIMENSIONS or not all(0 < size < MAX_DIMENSION for size in shape):
        _refuse("safetensors_shape", f"the shape of {name} is empty or too large")
    begin, end = offsets
    if end - begin != prod(shape) * _SIZES[dtype]:
        _refuse("safetensors_shape", f"the shape of {name} does not match its length in the file")
    return Tensor(name, dtype, tuple(shape), begin, end)


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)


def _check_layout(tensors: list[Tensor], size: int) -> None:
    reached = 0
    for tensor in tensors:
        if tensor.begin != reached:
            how = "overlap" if tensor.begin < reached else "leave a gap"
            _refuse("safetensors_layout", f"tensors {how} at {tensor.name}")
        reached = tensor.end
    if reached > size:
        _refuse("safetensors_truncated", "its tensors go on behind the end of the file")
    if reached < size:
        _refuse("safetensors_layout", "there are bytes behind the last tensor")


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        _refuse("safetensors_truncated", "it ended while it was read")
    return data


def _refuse(reason: str, what: str) -> NoReturn:
    raise AdapterRejected(
        f"adapter_model.safetensors cannot be used: {what}. Save or copy the adapter again.", reason=reason
    )
