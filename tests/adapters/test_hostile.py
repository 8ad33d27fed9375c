"""Adapters made to do harm: swapped while they are read, larger than they look, and whatever hypothesis thinks of.

Never anything but AdapterRejected or acceptance; memory and work in proportion to the bytes that are there.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import stat
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters import safetensors
from adapters.errors import AdapterRejected
from adapters.intake import Checked, check
from adapters.served import BaseInfo, described
from tests.adapters.corpus import C, Q, W
from tests.adapters.folders import (
    CONFIG,
    PREFIX,
    Tensors,
    header_of,
    numbers,
    packed,
    pair,
    usual,
    weights,
    write,
    write_base,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseInfo:
    return described("demo-base", str(write_base(tmp_path_factory.mktemp("base") / "demo-base")))


@contextlib.contextmanager
def _counted() -> Iterator[list[int]]:
    """Gets the largest number of bytes that Python had at once in the block, when it ends."""
    peak: list[int] = []
    tracemalloc.start()
    try:
        yield peak
    finally:
        peak.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()


# --- row 76: what the two files are ---


def test_a_hard_link_is_only_its_content(tmp_path: Path, base: BaseInfo) -> None:
    plain, linked = write(tmp_path / "plain"), write(tmp_path / "linked")
    (linked / W).unlink()
    os.link(plain / W, linked / W)
    assert check(linked, base, 16).digest == check(plain, base, 16).digest


def test_a_device_is_refused_before_it_is_opened(tmp_path: Path, base: BaseInfo) -> None:
    folder = write(tmp_path / "a")
    (folder / W).unlink()
    try:
        os.mknod(folder / W, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero: endless
    except PermissionError:
        pytest.skip("only root may make a device")
    with pytest.raises(AdapterRejected) as caught:
        check(folder, base, 16)
    assert caught.value.reason == "not_a_file"


def test_names_that_only_look_like_the_two_are_not_read(tmp_path: Path, base: BaseInfo) -> None:
    folder = write(tmp_path / "a")
    expected = check(folder, base, 16).digest
    (folder / "\u0430dapter_config.json").write_text(json.dumps({**CONFIG, "lora_alpha": 99}))
    (folder / "adapter_config.json.txt").write_text("{}")
    assert check(folder, base, 16).digest == expected


# Puts another thing in the place of the weights, each in one step, as fast as it can until its input ends. A process of
# its own: a thread here would only run while the check does not.
CHURN = """
import os, pathlib, select, sys
place, good, other, foreign, made = map(pathlib.Path, sys.argv[1:])
steps = (
    lambda: made.symlink_to(foreign), lambda: os.link(good, made), lambda: os.mkfifo(made), lambda: os.link(good, made),
    lambda: made.write_bytes(good.read_bytes()[:-7]), lambda: os.link(other, made), lambda: made.symlink_to(foreign),
)
print("ready", flush=True)
while not select.select([0], [], [], 0)[0]:
    for step in steps:
        step()
        made.rename(place)
        made.unlink(missing_ok=True)  # a rename between two names of one file does nothing
"""


@contextlib.contextmanager
def _churning(*places: Path) -> Iterator[None]:
    command = [sys.executable, "-c", CHURN, *map(str, places)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        yield
        child.communicate(timeout=30)
        assert child.returncode == 0


def test_files_that_are_swapped_all_the_time_are_refused_or_are_one_of_them(tmp_path: Path, base: BaseInfo) -> None:
    """What a link leads to is a good adapter too, so that following it once would show."""
    folder, *others = (write(tmp_path / str(seed), tensors=usual(seed=seed)) for seed in range(3))
    (folder / W).rename(tmp_path / "good")
    (folder / W).write_bytes(weights(usual()))
    fair = {check(each, base, 16).digest for each in (folder, others[0])}
    outcomes = set[str]()
    with _churning(folder / W, tmp_path / "good", others[0] / W, others[1] / W, tmp_path / "next"):
        for _ in range(1500):
            taken = list[bytes]()
            try:
                outcomes.add(check(folder, base, 16, taken.append).digest)
            except AdapterRejected as error:
                outcomes.add(error.reason)
    assert outcomes & fair, outcomes
    assert outcomes - fair <= {"symlink", "not_a_file", "safetensors_truncated"}


def test_a_folder_that_is_swapped_for_another_stays_the_one_that_was_opened(tmp_path: Path, base: BaseInfo) -> None:
    folder, other = write(tmp_path / "a"), write(tmp_path / "b", tensors=usual(seed=1))
    expected, swapped = check(folder, base, 16).digest, list[int]()

    def swap(_: bytes) -> None:
        if not swapped:
            swapped.append(1)
            folder.rename(tmp_path / "was")
            other.rename(folder)

    assert check(folder, base, 16, swap).digest == expected
    assert check(folder, base, 16).digest != expected


def test_weights_that_grow_or_shrink_while_they_are_read(tmp_path: Path, base: BaseInfo) -> None:
    folder = write(tmp_path / "a")
    expected = check(folder, base, 16).digest
    size = (folder / W).stat().st_size

    def grow(_: bytes) -> None:
        with (folder / W).open("ab") as file:
            file.write(b"more")

    assert check(folder, base, 16, grow).digest == expected, "what is behind the end that was seen is not read"
    write(folder)
    with pytest.raises(AdapterRejected) as caught:
        check(folder, base, 16, lambda _: os.truncate(folder / W, size - 1))
    assert caught.value.reason == "safetensors_truncated"


# --- rows 73 and 77: sizes ---


def _sparse(folder: Path, columns: int) -> None:
    """A header that is true, and 8 GiB of nothing behind it."""
    header = {
        f"{Q}.lora_A.weight": {"dtype": "F32", "shape": [8, columns], "data_offsets": [0, 32 * columns]},
        f"{Q}.lora_B.weight": {"dtype": "F32", "shape": [32, 8], "data_offsets": [32 * columns, 32 * columns + 1024]},
    }
    text = packed(header, b"")
    (folder / W).write_bytes(text)
    os.truncate(folder / W, len(text) + 32 * columns + 1024)


def test_a_sparse_file_of_eight_gigabytes_costs_nothing(tmp_path: Path, base: BaseInfo) -> None:
    folder = write(tmp_path / "a")
    _sparse(folder, 2**28 - 1024)
    with _counted() as peak, pytest.raises(AdapterRejected) as caught:
        check(folder, base, 16)
    assert caught.value.reason == "base_mismatch", "its header is enough: no byte of the data is read"
    assert peak[0] < 2**21, "the room for a config is 1 MiB"


def test_the_weights_are_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    _sparse(folder, 2**20)  # 32 MiB, all of it read
    with _counted() as peak:
        found = check(folder, None, 16)
    assert found.size_bytes > 2**25
    assert peak[0] < 2**20 * 3


FAT: dict[str, bytes] = {
    "lists": b'{"a":[' + b"[]," * 600_000 + b"[]]}",
    "tables": b'{"a":[' + b"{}," * 600_000 + b"{}]}",
    "numbers": b'{"a":[' + b"0," * 900_000 + b"0]}",
    "floats": b'{"a":[' + b"1e1," * 450_000 + b"0]}",
    "names": b"{" + b",".join(b'"%x":0' % at for at in range(200_000)) + b"}",
    "metadata": b'{"__metadata__":{' + b",".join(b'"%x":""' % at for at in range(200_000)) + b"}}",
    "one text": b'{"a":"' + b"x" * 2**21 + b'"}',
    "one escaped text": b'{"a":"' + b"\\u0101" * 300_000 + b'"}',
    "dimensions": b'{"a":{"dtype":"F32","shape":[' + b"1," * 90_000 + b'1],"data_offsets":[0,4]}}',
    "tensors": json.dumps(
        {f"{at:x}": {"dtype": "F32", "shape": [1], "data_offsets": [4 * at, 4 * at + 4]} for at in range(20_000)}
    ).encode(),
}


@pytest.mark.parametrize("case", FAT)
def test_a_header_takes_memory_in_proportion(case: str) -> None:
    """Bounded by its own length, whatever Python objects it would become: 0.5 GB for 16 MiB of `"":0,` otherwise."""
    content = packed(FAT[case], b"")
    with _counted() as peak, contextlib.suppress(AdapterRejected):
        safetensors.read_header(io.BytesIO(content), len(content))
    assert peak[0] < (16 if case == "tensors" else 7) * len(content)


def test_a_full_header_of_an_adapter_of_the_largest_model_is_read() -> None:
    """126 layers of 7 modules (the largest Llama), and 20,000 small tensors: neither meets the density test."""
    names = [
        f"{PREFIX}{layer}.mlp.module{at}.lora_{half}.weight" for layer in range(126) for at in range(7) for half in "AB"
    ]
    names += [f"{at}" for at in range(20_000)]
    content = weights([(name, "BF16", [1, 1, 1, 1, 1, 1, 1, 1], numbers(1)) for name in names])
    assert len(safetensors.read_header(io.BytesIO(content), len(content)).tensors) == len(names)


def _plain(count: int) -> tuple[dict[str, Any], list[str]]:
    return {}, [f"{PREFIX}{at}.mlp.up_proj" for at in range(count)]


def _patterned(count: int) -> tuple[dict[str, Any], list[str]]:
    ranks = {f"{at}.mlp.up_proj": 1 for at in range(count)} | {"up_proj": 1, "mlp.up_proj": 1}
    return {"rank_pattern": ranks}, _plain(count)[1]


def _deep(count: int) -> tuple[dict[str, Any], list[str]]:
    return {"rank_pattern": {"z": 1}}, [f"base_model.model.{'a.' * 200}b{at}" for at in range(count)]


@pytest.mark.parametrize("made", [_plain, _patterned, _deep])
def test_four_times_as_much_takes_about_four_times_as_long(
    tmp_path: Path, made: Callable[[int], tuple[dict[str, Any], list[str]]]
) -> None:
    """Processor time, of which other work on the machine takes nothing; what goes with the square would be 16."""

    def taken(count: int) -> float:
        config, names = made(count)
        tensors = [each for name in names for each in pair(name, 1, 1, 1)]
        folder = write(tmp_path / str(count), {**config, "r": 1}, tensors)
        spent = []
        for _ in range(3):
            begin = time.process_time()
            check(folder, None, 16)
            spent.append(time.process_time() - begin)
        return min(spent)

    assert taken(1600) < 10 * taken(400)


# --- whatever else there is ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=10,
)
# PEFT's own config with up to three keys changed: most of these get far.
CONFIGS = st.dictionaries(
    st.sampled_from([*CONFIG, "something"]),
    JSON
    | st.sampled_from([True, "gaussian", "pissa_niter_4", "", "none", 8, 16, 1.5])
    | st.dictionaries(st.sampled_from(["q_proj", "^model", "(a+)+$", "^(a|v_proj)"]) | st.text(max_size=4), JSON),
    max_size=3,
).map(lambda changes: {**CONFIG, **changes})


def _outcome(config: bytes, content: bytes, base: BaseInfo | None) -> Checked | str:
    """What is taken, or the reason ("" where the sentence cannot be shown); any other error fails the test."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / C).write_bytes(config)
        (folder / W).write_bytes(content)
        taken: list[bytes] = []
        try:
            found = check(folder, base, 16, taken.append)
        except AdapterRejected as error:
            return error.reason if error.message.isprintable() and len(error.message) < 2000 else ""
        assert b"".join(taken) == content
        return found


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(config=CONFIGS)
def test_any_config_is_taken_or_refused(base: BaseInfo, config: dict[str, Any]) -> None:
    found = _outcome(json.dumps(config).encode(), weights(usual()), base)
    if isinstance(found, Checked):
        assert json.loads(json.dumps(found.config)) == found.config
        assert found.config["r"] == 8
        assert found.digest == getattr(
            _outcome(json.dumps(found.config).encode(), weights(usual()), base), "digest", ""
        )


@settings(deadline=None)
@given(
    config=st.binary(max_size=200)
    | st.text(max_size=100).map(str.encode)
    | JSON.map(lambda made: json.dumps(made).encode())
)
def test_any_bytes_for_a_config(base: BaseInfo, config: bytes) -> None:
    assert isinstance(_outcome(config, weights(usual()), base), str), "no such bytes are a LoRA's config"


GOOD = weights(usual())
HEADER = 8 + int.from_bytes(GOOD[:8], "little")
EDITS = st.lists(
    st.tuples(
        st.integers(0, HEADER + 40) | st.integers(0, len(GOOD)),
        st.integers(0, 4),
        st.binary(max_size=4) | st.sampled_from([b"0", b"9", b",", b'"', b"}", b"lora_A", b"-", b"e9", b"\xff\xff"]),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(edits=EDITS)
def test_a_spoilt_file_is_refused_or_says_what_it_says(base: BaseInfo, edits: list[tuple[int, int, bytes]]) -> None:
    """Bytes replaced, put in and left out: of what is taken, our reading is the format's."""
    content = bytearray(GOOD)
    for at, gone, put in edits:
        content[at : at + gone] = put
    for judge in (base, None):
        found = _outcome(json.dumps(dict(CONFIG)).encode(), bytes(content), judge)
        assert found, "a sentence that can be shown"
        if isinstance(found, Checked):
            _agrees(bytes(content))


def _agrees(content: bytes) -> None:
    """The header as json and struct alone read it."""
    (length,) = struct.unpack_from("<Q", content)
    table = json.loads(content[8 : 8 + length])
    table.pop("__metadata__", None)
    header = safetensors.read_header(io.BytesIO(content), len(content))
    ours = {
        each.name: {"dtype": each.dtype, "shape": [*each.shape], "data_offsets": [each.begin, each.end]}
        for each in header.tensors
    }
    assert ours == table
    assert max(each.end for each in header.tensors) + 8 + length == len(content)


# --- what would hold up an engine ---


def _of_their_own(modules: int, values: int) -> tuple[dict[str, Any], Tensors]:
    tensors: Tensors = []
    for at in range(modules):
        tensors += pair(f"{PREFIX}{at}.mlp.up_proj", 1, 1, 1 + at % values)
    ranks = {f"layers.{at}.mlp.up_proj": 1 + at % values for at in range(modules)}
    return {"r": 16, "rank_pattern": ranks, "alpha_pattern": dict.fromkeys(ranks, 2)}, tensors


def test_many_ranks_are_written_as_few_patterns_that_say_the_same(tmp_path: Path) -> None:
    config, tensors = _of_their_own(560, 8)
    found = check(write(tmp_path / "a", config, tensors), None, 16)
    assert sorted(found.config["rank_pattern"].values()) == [1, 2, 3, 4, 5, 6, 7]
    assert [*found.config["alpha_pattern"].values()] == [2]
    for name, rank in config["rank_pattern"].items():
        hits = [
            value
            for key, value in found.config["rank_pattern"].items()
            if re.match(rf"(.*\.)?({key})$", f"model.{name}")  # PEFT's rule, and vLLM's
        ]
        assert (hits or [found.config["r"]]) == [rank]
    again = check(write(tmp_path / "b", dict(found.config), tensors), None, 16)
    assert again.digest == found.digest, "what we wrote can be registered again, as the same version"


def test_thousands_of_ranks_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", *_of_their_own(3000, 3))
    with pytest.raises(AdapterRejected) as caught:
        check(folder, None, 16)
    assert caught.value.reason == "too_many_patterns"


def test_order_is_no_content_and_content_is(tmp_path: Path, base: BaseInfo) -> None:
    """The digest: the same tensors in any order are one version; another scaling, name, type or number is another."""
    tensors, order = usual(), random.Random(2)
    first = check(write(tmp_path / "first"), base, 16).digest
    for at in range(20):
        order.shuffle(tensors)
        keys = list(CONFIG.items())
        order.shuffle(keys)
        folder = write(tmp_path / str(at), tensors=tensors)
        (folder / C).write_text(json.dumps(dict(keys)))
        assert check(folder, base, 16).digest == first
    others: list[dict[str, Any]] = [
        {"lora_alpha": 16.5},
        {"lora_alpha": 1},
        {"use_rslora": True},
        {"alpha_pattern": {"v_proj": 8}},
        {"alpha_pattern": {"^model.layers.1.self_attn.v_proj": 8}},
        {"alpha_pattern": {"layers.0.self_attn.v_proj": 8}},
    ]
    digests = {check(write(tmp_path / f"other{at}", each), base, 16).digest for at, each in enumerate(others)}
    swapped = [(name.replace("q_proj", "o_proj"), *rest) for name, *rest in usual()]
    as_f16 = [(name, "F16", *rest) for name, _, *rest in usual()]
    flipped = [(name, dtype, shape, data[:-1] + b"\x3e") for name, dtype, shape, data in usual()]
    for at, made in enumerate((swapped, as_f16, flipped)):
        digests.add(check(write(tmp_path / f"made{at}", tensors=made), base, 16).digest)  # type: ignore[arg-type]
    assert len(digests | {first}) == len(others) + 4


def test_a_header_with_room_behind_it_is_the_same_version(tmp_path: Path, base: BaseInfo) -> None:
    """Writers pad the header with blanks to a multiple of eight; a blank is no content."""
    folder = write(tmp_path / "a")
    first = check(folder, base, 16).digest
    text = json.dumps(header_of(usual())).encode() + b" " * 13
    (folder / W).write_bytes(packed(text, b"".join(each[3] for each in usual())))
    assert check(folder, base, 16).digest == first


def test_what_is_left_of_a_refused_adapter(tmp_path: Path, base: BaseInfo) -> None:
    """No descriptor stays open, however the look ends."""
    before = len(os.listdir("/proc/self/fd"))
    for at, spoil in enumerate((b"", b"{", json.dumps({**CONFIG, "bias": "all"}).encode())):
        folder = write(tmp_path / str(at), tensors=pair(Q, 32, 32))
        (folder / C).write_bytes(spoil)
        with pytest.raises(AdapterRejected):
            check(folder, base, 16)
    assert len(os.listdir("/proc/self/fd")) == before
