"""The safetensors reader: digest, NaN test and copy agree with the format, and no bytes make it fall over."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters import safetensors
from adapters.errors import AdapterRejected
from adapters.safetensors import CHUNK, Contents, read_header, scan
from tests.adapters.folders import Tensors, bf16, header_of, numbers, packed, usual, weights


def _scan(content: bytes, sink: list[bytes] | None = None) -> Contents:
    file = io.BytesIO(content)
    header = read_header(file, len(content))
    return scan(file, header, sink.append if sink is not None else None)


def _reason(content: bytes) -> str:
    with pytest.raises(AdapterRejected) as caught:
        _scan(content)
    assert caught.value.message.endswith(".")
    return caught.value.reason


def test_the_sink_gets_the_file_byte_for_byte() -> None:
    content, copy = weights(usual()), list[bytes]()
    _scan(content, copy)
    assert b"".join(copy) == content


def test_the_digest_is_of_one_table_in_json() -> None:
    """Versions are named by it: it may never change."""
    table = {name: [dtype, shape, hashlib.sha256(data).hexdigest()] for name, dtype, shape, data in usual()}
    text = json.dumps(table, sort_keys=True)
    assert _scan(weights(usual()[::-1])).digest == hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_follows_content_not_file_order_or_metadata() -> None:
    first = _scan(weights(usual())).digest
    turned = list(reversed(usual()))
    header = header_of(turned)
    header["__metadata__"] = {"other": "text"}
    assert _scan(packed(header, b"".join(each[3] for each in turned))).digest == first
    assert _scan(weights(usual(seed=1))).digest != first
    renamed: Tensors = [(name.replace("q_proj", "k_proj"), *rest) for name, *rest in usual()]  # type: ignore[misc]
    assert _scan(weights(renamed)).digest != first


def _one(dtype: str, data: bytes, count: int) -> bytes:
    return weights([("x", dtype, [count], data)])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("dtype", "code"), [("F32", "<f"), ("F16", "<e")])
def test_nan_and_infinity_are_found_in_the_first_the_last_and_a_middle_place(bad: float, dtype: str, code: str) -> None:
    size = struct.calcsize(code)
    count = 2 * CHUNK // size + 5
    good = bytearray(struct.pack(code, 60000.0) * count)
    assert _scan(_one(dtype, bytes(good), count)).zeros == frozenset()
    for place in (0, 1, CHUNK // size - 1, CHUNK // size, count - 1):
        spoilt = good.copy()
        spoilt[place * size : (place + 1) * size] = struct.pack(code, bad)
        assert _reason(_one(dtype, bytes(spoilt), count)) == "not_finite"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bfloat16_too(bad: float) -> None:
    assert _reason(_one("BF16", numbers(7) + bf16(bad), 8)) == "not_finite"
    assert _scan(_one("BF16", bf16(65280.0, -65280.0, 0.0, -0.0, 1e-40), 5)).zeros == frozenset()


@pytest.mark.parametrize("far", [65536.0, -65536.0, 3.3e38])
def test_weights_beyond_every_trained_ones_are_told_apart_from_endless_ones(far: float) -> None:
    assert _reason(_one("BF16", numbers(7) + bf16(far), 8)) == "out_of_range"
    assert _reason(_one("F32", struct.pack("<3f", 1, far, 2), 3)) == "out_of_range"
    assert _reason(_one("F32", struct.pack("<3f", 1, far, math.nan), 3)) == "not_finite"


def _told(values: list[float]) -> str:
    if not all(math.isfinite(value) for value in values):
        return "not_finite"
    return "out_of_range" if any(abs(value) >= 65536 for value in values) else "fine"


def _outcome(content: bytes) -> str:
    try:
        _scan(content)
    except AdapterRejected as error:
        return error.reason
    return "fine"


@given(st.lists(st.floats(width=32) | st.floats(-70000, 70000, width=32), min_size=1, max_size=50))
def test_the_nan_test_agrees_with_math_for_every_float32(values: list[float]) -> None:
    content = _one("F32", struct.pack(f"<{len(values)}f", *values), len(values))
    assert _outcome(content) == _told(values)


@given(st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=50), st.sampled_from(["F16", "BF16"]))
def test_the_nan_test_agrees_with_the_bits_of_every_half(bits: list[int], dtype: str) -> None:
    halves = struct.pack(f"<{len(bits)}H", *bits)
    wide = b"".join(bytes(2) + halves[at : at + 2] for at in range(0, len(halves), 2))
    values = struct.unpack(f"<{len(bits)}e", halves) if dtype == "F16" else struct.unpack(f"<{len(bits)}f", wide)
    assert _outcome(_one(dtype, halves, len(bits))) == _told([*values])


def test_zeros_are_named() -> None:
    made = weights([("full", "F32", [2], struct.pack("<2f", 0, 1)), ("empty", "F32", [2], bytes(8))])
    assert _scan(made).zeros == {"empty"}


def _entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


GOOD_HEADER = json.dumps(header_of(usual())).encode()
GOOD_DATA = b"".join(each[3] for each in usual())
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "safetensors_header"),
    "seven bytes": (b"\0" * 7, "safetensors_header"),
    "header of 2^64-1": (b"\xff" * 8 + b"{}", "safetensors_header"),
    "header of 17 MiB": (struct.pack("<Q", 17 * 2**20) + b"{}", "safetensors_header"),
    "header longer than the file": (struct.pack("<Q", 100) + b"{}", "safetensors_truncated"),
    "header of nothing": (struct.pack("<Q", 0), "safetensors_truncated"),
    "not JSON": (packed(b"{nonsense}", b""), "safetensors_header"),
    # Python's json takes these three, the library in every engine does not (tried).
    "metadata that is no text": (
        packed(GOOD_HEADER.replace(b'"pt"', b'"\\ud800"'), GOOD_DATA),
        "safetensors_header",
    ),
    "metadata's key that is no text": (
        packed(GOOD_HEADER.replace(b'"format"', b'"\\udfff"'), GOOD_DATA),
        "safetensors_header",
    ),
    "minus nought": (packed(GOOD_HEADER.replace(b"[0, ", b"[-0, "), GOOD_DATA), "safetensors_header"),
    "a list": (packed(b"[1]", b""), "safetensors_header"),
    "text before": (packed(b"  {}", b""), "safetensors_header"),
    "not UTF-8": (packed(b'{"\xff": 1}', b""), "safetensors_header"),
    "nested 100,000 deep": (packed(b'{"a":' * 100_000, b""), "safetensors_header"),
    "a number of 10,000 digits": (packed(b'{"a":' + b"9" * 10_000 + b"}", b""), "safetensors_header"),
    "NaN in the header": (packed(b'{"a": NaN}', b""), "safetensors_header"),
    "a name twice": (
        packed(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}', bytes(4)),
        "safetensors_duplicate",
    ),
    "no tensors": (packed({}, b""), "safetensors_empty"),
    "metadata only": (packed({"__metadata__": {}}, b""), "safetensors_empty"),
    "metadata of numbers": (packed({"__metadata__": {"a": 1}, "x": _entry()}, bytes(8)), "safetensors_header"),
    "metadata a list": (packed({"__metadata__": [], "x": _entry()}, bytes(8)), "safetensors_header"),
    "entry a list": (packed({"x": []}, b""), "safetensors_header"),
    "entry with more": (packed({"x": _entry(more=1)}, bytes(8)), "safetensors_header"),
    "float8": (packed({"x": _entry("F8_E4M3", [8])}, bytes(8)), "dtype"),
    "float64": (packed({"x": _entry("F64", [1])}, bytes(8)), "dtype"),
    "integers": (packed({"x": _entry("I64", [1])}, bytes(8)), "dtype"),
    "dtype a list": (packed({"x": _entry(["F32"])}, bytes(8)), "dtype"),
    "negative size": (packed({"x": _entry(shape=[-1, -2])}, bytes(8)), "safetensors_header"),
    "fractional size": (packed({"x": _entry(shape=[2.0])}, bytes(8)), "safetensors_header"),
    "true for a size": (packed({"x": _entry(shape=[True, 2])}, bytes(8)), "safetensors_header"),
    "size that wraps 64 bits": (packed({"x": _entry(shape=[2**62, 2**62, 4])}, bytes(8)), "safetensors_shape"),
    "no size": (packed({"x": _entry(shape=[0], offsets=[0, 0])}, b""), "safetensors_shape"),
    "nine dimensions": (packed({"x": _entry(shape=[1] * 8 + [2])}, bytes(8)), "safetensors_shape"),
    "length unlike shape": (packed({"x": _entry(shape=[3])}, bytes(8)), "safetensors_shape"),
    "offsets turned round": (packed({"x": _entry(offsets=[8, 0])}, bytes(8)), "safetensors_shape"),
    "negative offset": (packed({"x": _entry(offsets=[-8, 0])}, bytes(8)), "safetensors_header"),
    "three offsets": (packed({"x": _entry(offsets=[0, 4, 8])}, bytes(8)), "safetensors_header"),
    "overlap": (packed({"x": _entry(), "y": _entry(offsets=[4, 12])}, bytes(12)), "safetensors_layout"),
    "the same bytes twice": (packed({"x": _entry(), "y": _entry()}, bytes(8)), "safetensors_layout"),
    "gap": (packed({"x": _entry(), "y": _entry(offsets=[12, 20])}, bytes(20)), "safetensors_layout"),
    "gap at the front": (packed({"x": _entry(offsets=[4, 12])}, bytes(12)), "safetensors_layout"),
    "bytes behind": (packed({"x": _entry()}, bytes(9)), "safetensors_layout"),
    "bytes missing": (packed({"x": _entry()}, bytes(7)), "safetensors_truncated"),
    "name with a newline": (packed({"x\n": _entry()}, bytes(8)), "safetensors_header"),
    "name of 600": (packed({"x" * 600: _entry()}, bytes(8)), "safetensors_header"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_with_their_reason(case: str) -> None:
    content, reason = HOSTILE[case]
    assert _reason(content) == reason


def test_more_tensors_than_the_cap_are_refused() -> None:
    header = {f"{at}": 0 for at in range(safetensors.MAX_TENSORS + 1)}
    assert _reason(packed(header, b"")) == "safetensors_header"


def test_a_file_cut_while_it_is_read_is_refused() -> None:
    content = weights(usual())
    file = io.BytesIO(content[:-100])
    header = read_header(file, len(content))
    with pytest.raises(AdapterRejected) as caught:
        scan(file, header)
    assert caught.value.reason == "safetensors_truncated"


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with contextlib.suppress(AdapterRejected):  # anything else would be ours
        _scan(content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F8_E5M2"]) | JSON,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | JSON,
    }
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(max_size=6), ENTRY | JSON, max_size=4), st.binary(max_size=64))
def test_any_header_is_read_or_refused_and_never_reads_beyond(header: dict[str, Any], data: bytes) -> None:
    content, copy = packed(header, data), list[bytes]()
    with contextlib.suppress(AdapterRejected):
        _scan(content, copy)
        assert b"".join(copy) == content
