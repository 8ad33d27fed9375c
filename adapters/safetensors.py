"""Our own reader of safetensors files: a strict header, then one pass that hashes, looks for NaN, and copies.

No torch, no numpy: the file is hostile until it has passed here. Must not know what the tensors are for.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO, NoReturn

from adapters.verdict import Rejected

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
# No trained LoRA has a weight of 65,536: what has, overflows to NaN in a model's layers, and vLLM 0.32 then answers
# NaN for a while to requests for other adapters as well (tried: its key-value cache hands the NaN on).
_TOO_LARGE = {"F32": 127 + 16, "F16": 31, "BF16": 127 + 16}  # the exponent field from which on a weight is refused
_OTHER_DTYPE = re.compile("F64|C64|[IU](64|32|16|8)|BOOL|F8_[A-Z0-9]{1,12}|F[46]")
_AGAIN = "Save or copy the adapter again."
_EARLIER = "Train again with a lower learning rate, or register an earlier checkpoint."


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
    """Read and check the header of `file`, `size` bytes long; Rejected with reason safetensors_*."""
    prefix = _exactly(file, 8) if size >= 8 else _refuse("safetensors_header", "it is shorter than 8 bytes")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        _refuse("safetensors_header", f"its header claims {length} bytes, more than {MAX_HEADER_BYTES}")
    if length < 2 or 8 + length > size:
        _refuse("safetensors_truncated", "its header does not fit into the file")
    raw = _exactly(file, length)
    entries = _parse(raw)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(map(_is_text, (*metadata, *metadata.values()))):
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
    Raises Rejected with reason not_finite, out_of_range or safetensors_truncated.
    """
    if sink is not None:
        sink(header.raw)
    masks: dict[tuple[str, int], _Mask] = {}
    digests: dict[str, list[object]] = {}
    zeros: set[str] = set()
    for tensor in header.tensors:
        sha, zero, mask = hashlib.sha256(), True, _mask(tensor, masks)
        for begin in range(tensor.begin, tensor.end, CHUNK):
            chunk = _exactly(file, min(CHUNK, tensor.end - begin))
            sha.update(chunk)
            number = int.from_bytes(chunk, "little")
            if mask.hit_by(number):
                raise _diverged(tensor.name, mask.without_end(number))
            zero = zero and number == 0
            if sink is not None:
                sink(chunk)
        if zero:
            zeros.add(tensor.name)
        digests[tensor.name] = [tensor.dtype, list(tensor.shape), sha.hexdigest()]
    return Contents(_total(digests), frozenset(zeros))


def _total(digests: dict[str, list[object]]) -> str:
    """Of one JSON table, piece by piece: with the 37,000 tensors of a large mixture of experts, one call would hold up

    every request for a third of a second.
    """
    total, between = hashlib.sha256(b"{"), ""
    for name in sorted(digests):
        total.update(f"{between}{json.dumps(name)}: {json.dumps(digests[name])}".encode())
        between = ", "
    total.update(b"}")
    return total.hexdigest()


def _diverged(name: str, endless: bool) -> Rejected:
    reason, what = ("not_finite", "NaN or infinity") if endless else ("out_of_range", "weights beyond 65,504")
    message = f"Tensor {name} holds {what}: the training run diverged."
    return Rejected(message, _EARLIER, reason=reason)


def _mask(tensor: Tensor, masks: dict[tuple[str, int], _Mask]) -> _Mask:
    """No longer than twice the tensor: 100,000 tensors of one number would cost 10 s with one of 64 KiB."""
    width = min(CHUNK, 1 << max(6, (tensor.end - tensor.begin - 1).bit_length()))
    return masks.get((tensor.dtype, width)) or masks.setdefault((tensor.dtype, width), _Mask(tensor.dtype, width))


class _Mask:
    """Tests a whole chunk, read as one large integer, for floats whose exponent is too large.

    Masked to its exponent, a float plus what its exponent lacks of the first too large one's end carries into the
    sign bit only if it is that large. A shorter chunk is a smaller integer: its missing floats read as zero and
    never carry.
    """

    def __init__(self, dtype: str, width: int) -> None:
        size = _SIZES[dtype]
        self._size, self._lanes = size, width // size
        exponent, lowest = _EXPONENTS[dtype]
        fields = exponent // lowest + 1  # how many values the exponent has
        self._exponents = self._wide(exponent)
        self._lacking = self._wide((fields - _TOO_LARGE[dtype]) * lowest)
        self._lowest = self._wide(lowest)
        self._signs = self._wide(1 << (8 * size - 1))

    def hit_by(self, number: int) -> bool:
        """Whether any float is 65,536 or more either way, infinite or NaN."""
        return ((number & self._exponents) + self._lacking) & self._signs != 0

    def without_end(self, number: int) -> bool:
        """Whether any float is infinite or NaN."""
        return ((number & self._exponents) + self._lowest) & self._signs != 0

    def _wide(self, number: int) -> int:
        return int.from_bytes(number.to_bytes(self._size, "little") * self._lanes, "little")


def _parse(raw: bytes) -> dict[str, Any]:
    if raw[:1] != b"{":
        _refuse("safetensors_header", "its header does not begin with '{'")
    _check_density(raw)
    try:
        header = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_natural
        )
    except (ValueError, RecursionError) as exc:
        _refuse("safetensors_header", f"its header is not valid JSON ({type(exc).__name__})")
    if not isinstance(header, dict):
        _refuse("safetensors_header", "its header is not a table")
    return header


def _check_density(raw: bytes) -> None:
    """Before anything is built from it: 16 MiB of `[],` or `"":0,` would be 0.5 GB of Python objects.

    A tensor has one `data_offsets`, four colons, three brackets and at most 13 commas; metadata may hold some more.
    """
    tensors = raw.count(b'"data_offsets"')
    if tensors > MAX_TENSORS:
        _refuse("safetensors_header", f"it lists {tensors} tensors, more than {MAX_TENSORS}")
    brackets = raw.count(b"[") + raw.count(b"{")
    if raw.count(b":") > 4 * tensors + 50_000 or brackets > 3 * tensors + 50_000:
        _refuse("safetensors_header", "its header holds more than a list of tensors")
    if raw.count(b",") > 13 * tensors + 100_000:
        _refuse("safetensors_header", "its header holds more than a list of tensors")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        _refuse("safetensors_duplicate", "a name appears twice in its header")
    return table


def _is_text(value: Any) -> bool:
    """Not half of a surrogate pair either, which the engines' reader refuses."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= each <= "\udfff" for each in value))


def _natural(text: str) -> int:
    if text[0] == "-":  # also -0, which is a fraction to the engines' reader
        raise ValueError(text)
    return int(text)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(text)


def _tensor(name: str, entry: Any) -> Tensor:
    if len(name) > MAX_NAME or not name.isascii() or not name.isprintable():
        _refuse("safetensors_header", "a tensor's name is not short printable ASCII")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse("safetensors_header", f"the entry of {name} is not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        shown = dtype if isinstance(dtype, str) and _OTHER_DTYPE.fullmatch(dtype) else "of an unknown type"
        raise Rejected(
            f"Tensor {name} is {shown}; F32, F16 and BF16 are served.",
            "Save the adapter in bfloat16 and register that.",
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
    raise Rejected(f"adapter_model.safetensors cannot be used: {what}.", _AGAIN, reason=reason)
