"""Archives that are good in every form, and hostile ones: each is refused in a sentence and leaves nothing."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.errors import AdapterRejected, ServiceError
from adapters.sources.archive import Unpacked, unpack
from adapters.sources.member import Caps
from adapters.sources.progress import Progress, Stopped
from tests.adapters.packing import CONFIG, FILES, WEIGHTS, entry, gz, tar, unended, zipped

SMALL = Caps(entries=20, total=4_000_000, file=1_000_000, ratio=100, free=100_000, header=64 * 1024)


def watched() -> Progress:
    return Progress("1", "cs", "upload:a", 0.0)


def unpacked(data: bytes, into: Path, caps: Caps = SMALL, progress: Progress | None = None) -> Unpacked:
    """Unpack `data`, as it lies in a file."""
    into.mkdir(exist_ok=True)
    packed = into.with_suffix(".packed")
    packed.write_bytes(data)
    with packed.open("rb") as file:
        return unpack(file, "a.tar.gz", into, progress or watched(), caps)


GOOD: dict[str, bytes] = {
    "tar": tar(),
    "tar as tar -C folder . makes it": tar(top="./"),
    "tar with a top folder": tar(top="out/"),
    "tar of Solaris, GNU, old": tar(top="out/", format=tarfile.GNU_FORMAT),
    "ustar": tar(top="out/", format=tarfile.USTAR_FORMAT),
    "tar.gz": gz(tar()),
    "tar.gz in two members": gz(tar()[:700]) + gz(tar()[700:]),
    "tar.gz with zeros behind": gz(tar()) + bytes(512),
    "tar with folders": tar(FILES, entry("checkpoint-5", tarfile.DIRTYPE), entry("runs", tarfile.DIRTYPE)),
    "tar with what trainers leave": tar({"README.md": b"x" * 9000, "optimizer.pt": b"y", **FILES}, top="out/"),
    "tar with checkpoints before it": tar({f"checkpoint-5/{n}": d for n, d in FILES.items()} | dict(FILES)),
    "tar with checkpoints below it": tar(dict(FILES) | {f"checkpoint-5/{n}": d for n, d in FILES.items()}, top="o/"),
    "tar of macOS": unended(tar({"._out": b"x", "out/._" + WEIGHTS: b"x", "__MACOSX/out/x": b"", ".DS_Store": b""}))
    + tar(top="out/"),
    "zip": zipped(),
    "zip, stored": zipped(method=zipfile.ZIP_STORED),
    "zip with a top folder": zipped({"": b"", **FILES}, top="out/"),
    "zip of macOS": zipped({"out/" + n: d for n, d in FILES.items()} | {"__MACOSX/out/._x": b"x"}),
    "zip of a Unix": zipped(change=lambda info: setattr(info, "external_attr", 0o100644 << 16)),
}


@pytest.mark.parametrize("name", GOOD)
def test_every_usual_form_gives_the_two_files(name: str, tmp_path: Path) -> None:
    found = unpacked(GOOD[name], tmp_path / "in")
    assert {path.name: path.read_bytes() for path in found.folder.iterdir()} == dict(FILES)
    assert found.checksums == {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    assert {path.stat().st_mode & 0o777 for path in found.folder.iterdir()} == {0o600}, "no mode is taken from it"


def with_size(data: bytes, name: str, size: int) -> bytes:
    """The tar with another size in the header of `name`, its checksum corrected."""
    at = data.index(name.encode())
    header = bytearray(data[at : at + 512])
    header[124:136] = b"%011o\0" % size if size >= 0 else b"\xff" * 12
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + data[at + 512 :]


def pax(records: bytes, behind: bytes) -> bytes:
    """A tar that begins with a pax header of these records."""
    head = entry("x", tarfile.XHDTYPE, size=len(records)).tobuf(tarfile.USTAR_FORMAT)
    return head + records + bytes(-len(records) % 512) + behind


def record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    size = len(body) + len(str(len(body)))
    return f"{size if len(str(size)) == len(str(len(body))) else size + 1}".encode() + body


def zip_field(data: bytes, signature: bytes, offset: int, form: str, value: int) -> bytes:
    """The zip with one number of its first record of that kind changed."""
    at = data.index(signature) + offset
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


CENTRAL, END = b"PK\x01\x02", b"PK\x05\x06"
BOMB = {CONFIG: FILES[CONFIG], WEIGHTS: bytes(900_000)}
EMPTY_TAR = bytes(10240)

HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "archive_damaged"),
    "zeros": (EMPTY_TAR, "not_an_adapter"),
    "text": (b"hello " * 1000, "archive_damaged"),
    "an HTML page": (b"<!doctype html><title>Sign in</title>" * 100, "archive_damaged"),
    "bzip2": (b"BZh91AY&SY" + bytes(600), "archive_damaged"),
    "gzip of text": (gz(b"hello " * 1000), "archive_damaged"),
    "half a gzip": (gz(tar())[:-30], "archive_damaged"),
    "gzip with a wrong checksum": (gz(tar())[:-8] + b"\0" * 8, "archive_damaged"),
    "gzip with other bytes in it": (gz(tar())[:60] + b"\xff" * 40 + gz(tar())[100:], "archive_damaged"),
    "gzip with an endless name": (b"\x1f\x8b\x08\x08" + b"\0" * 6 + b"n" * 300_000, "archive_damaged"),
    "half a tar": (tar()[:5000], "archive_damaged"),
    "a tar without its end": (tar().rstrip(b"\0"), "archive_damaged"),
    "a tar cut between entries": (tar({CONFIG: b"{}"})[:1024], "archive_damaged"),
    "a broken header in the middle": (tar({CONFIG: b"{}"})[:1024] + b"\1" * 512 + tar(), "archive_damaged"),
    "an absolute path": (tar({"/" + CONFIG: b"{}"}), "archive_unsafe"),
    "a path upwards": (tar({**FILES, "../../etc/cron.d/x": b"* * * * *"}), "archive_unsafe"),
    "a path that goes down and up": (tar({**FILES, "a/../../x": b""}), "archive_unsafe"),
    "a path of Windows": (tar({**FILES, "..\\x": b""}), "archive_unsafe"),
    "a name without end": (tar({**FILES, "a" * 2000: b""}), "archive_unsafe"),
    "a symbolic link": (tar(FILES, entry("x", tarfile.SYMTYPE, linkname="/etc")), "archive_unsafe"),
    "weights that are a link": (
        tar({CONFIG: b"{}"}, entry(WEIGHTS, tarfile.SYMTYPE, linkname="/etc/passwd")),
        "archive_unsafe",
    ),
    "a hard link": (tar(FILES, entry("x", tarfile.LNKTYPE, linkname=CONFIG)), "archive_unsafe"),
    "a FIFO": (tar(FILES, entry("x", tarfile.FIFOTYPE)), "archive_unsafe"),
    "a device": (tar(FILES, entry("x", tarfile.BLKTYPE, devmajor=8)), "archive_unsafe"),
    "a type nobody knows": (tar(FILES, entry("x", b"Z")), "archive_unsafe"),
    "a sparse file of old GNU": (tar(FILES, entry("x", tarfile.GNUTYPE_SPARSE)), "archive_unsafe"),
    "a sparse file of pax": (
        pax(record("GNU.sparse.map", "0,1,5000000000,1") + record("GNU.sparse.size", "9000000000"), tar()),
        "archive_unsafe",
    ),
    "a sparse map without end": (
        pax(
            record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0"),
            entry("x", size=200_000).tobuf() + b"99999999\n" + b"1\n" * 100_000 + EMPTY_TAR,
        ),
        "archive_damaged",
    ),
    "the same file twice": (unended(tar()) + tar(), "archive_unsafe"),
    "two adapters": (unended(tar(top="a/")) + tar(top="b/"), "several_adapters"),
    "something beside its folder": (tar({**{"o/" + n: d for n, d in FILES.items()}, "x": b""}), "unexpected_file"),
    "a pickle beside it": (tar({**FILES, "evil.pkl": b"x"}), "pickle_weights"),
    "pickled weights": (tar({CONFIG: b"{}", "adapter_model.bin": b"x"}, top="out/"), "pickle_weights"),
    "a module beside it": (tar({**FILES, "modeling.py": b"x"}), "unexpected_file"),
    "a whole model": (tar({"config.json": b"{}", "model.safetensors": b"x"}), "not_an_adapter"),
    "the start of a PiSSA training": (tar(top="pissa_backup/"), "pissa_backup"),
    "no weights": (tar({CONFIG: b"{}"}), "not_an_adapter"),
    "checkpoints only": (tar({f"checkpoint-{k}/{n}": d for k in (1, 2) for n, d in FILES.items()}), "several_adapters"),
    "too many entries": (tar({**FILES, **{f"{n}.txt": b"" for n in range(30)}}), "archive_too_large"),
    "too large a file": (tar({CONFIG: b"{}", WEIGHTS: os.urandom(1_000_001)}), "archive_too_large"),
    "too large a config": (tar({CONFIG: b" " * 2_000_000, WEIGHTS: b""}), "archive_too_large"),
    "too much in all": (tar({**FILES, "a.log": os.urandom(5_000_000)}), "archive_too_large"),
    "a bomb": (gz(tar(BOMB)), "archive_too_large"),
    "a bomb in what is passed over": (gz(tar({**FILES, "a.log": bytes(3_000_000)})), "archive_too_large"),
    "a size below nothing": (with_size(tar(), WEIGHTS, -1), "archive_damaged"),
    "a size beyond all": (with_size(tar(), WEIGHTS, 8**11 - 1), "archive_too_large"),
    "a size that is not there": (with_size(tar(), WEIGHTS, 999_999), "archive_damaged"),
    "a name of gigabytes": (
        entry("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=8 * 1024**3 - 1).tobuf(tarfile.GNU_FORMAT) + tar(),
        "archive_damaged",
    ),
    "attributes of gigabytes": (
        entry("x", tarfile.XHDTYPE, size=8 * 1024**3 - 1).tobuf(tarfile.USTAR_FORMAT) + tar(),
        "archive_damaged",
    ),
    "attributes that are none": (pax(b"0 a=b\n" * 10, tar()), "archive_damaged"),
    "a negative size as attribute": (pax(record("size", "-5"), tar()), "archive_damaged"),
    "an absolute path as attribute": (pax(record("path", "/etc/x"), tar()), "archive_unsafe"),
    "long names without end": (
        b"".join(
            entry("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=60_000).tobuf(tarfile.GNU_FORMAT) + b"n" * 60_416
            for _ in range(30)
        )
        + tar(),
        "archive_damaged",
    ),
    "half a zip": (zipped()[:-40], "archive_damaged"),
    "a zip's begin only": (b"PK\x03\x04" + bytes(100), "archive_damaged"),
    "a zip with other bytes in it": (zipped()[:60] + b"\xff" * 20 + zipped()[80:], "archive_damaged"),
    "a zip with an absolute path": (zipped({"/" + CONFIG: b"{}"}), "archive_unsafe"),
    "a zip with a path upwards": (zipped({**FILES, "../x": b""}), "archive_unsafe"),
    "a zip with a path of Windows": (zipped({"out\\" + n: d for n, d in FILES.items()}), "archive_unsafe"),
    "a zip with a NUL in a name": (zipped({**FILES, "x?.txt": b""}).replace(b"x?.txt", b"x\0.txt"), "archive_unsafe"),
    "a zip with the same file twice": (
        zipped({CONFIG: b"1", "Xdapter_config.json": b"2", WEIGHTS: b""}).replace(b"Xdapter", b"adapter"),
        "archive_unsafe",
    ),
    "a zip with a link": (
        zipped(change=lambda info: setattr(info, "external_attr", 0o120777 << 16)),
        "archive_unsafe",
    ),
    "a zip with a device": (
        zipped(change=lambda info: setattr(info, "external_attr", 0o060666 << 16)),
        "archive_unsafe",
    ),
    "an encrypted zip": (zip_field(zipped(), CENTRAL, 8, "<H", 1), "archive_encrypted"),
    "a zip packed with LZMA": (zipped(method=zipfile.ZIP_LZMA), "archive_unsupported"),
    "a zip packed in a way nobody knows": (zip_field(zipped(), CENTRAL, 10, "<H", 93), "archive_unsupported"),
    "a zip bomb": (zipped(BOMB), "archive_too_large"),
    "a zip bomb that lies": (zip_field(zipped(BOMB), CENTRAL, 24, "<L", 10), "archive_damaged"),
    "a zip with a size beyond all": (zip_field(zipped(), CENTRAL, 24, "<L", 2**32 - 2), "archive_too_large"),
    "a zip64 that is none": (zip_field(zipped(), CENTRAL, 24, "<L", 2**32 - 1), "archive_too_large"),
    "a zip whose directory lies": (zip_field(zipped(), END, 12, "<L", 2**31), "archive_damaged"),
    "a zip whose directory is elsewhere": (zip_field(zipped(), END, 16, "<L", 2**31), "archive_damaged"),
    "a zip with too many entries": (zipped({f"{n}.txt": b"" for n in range(30)}), "archive_too_large"),
    "a zip with a wrong checksum": (zip_field(zipped(), CENTRAL, 16, "<L", 12345), "archive_damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    data, reason = HOSTILE[name]
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(AdapterRejected) as refused:
        unpacked(data, tmp_path / "in")
    assert refused.value.reason == reason, refused.value.message
    assert 40 < len(refused.value.message) < 300
    assert refused.value.message.endswith(".")
    assert str(tmp_path) not in refused.value.message
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "in", "in.packed"])
    for path in (tmp_path / "in").rglob("*"):
        assert path.parent.name in ("top", "below") or path.name in ("top", "below")
        assert not path.is_symlink()


@pytest.mark.parametrize("top", ["\x1b[2J\x1b]0;x\x07", "mod\udce8le", "\u202egpj"])
def test_a_folders_name_in_an_archive_never_moves_the_cursor(top: str, tmp_path: Path) -> None:
    """It is in the sentence, which a terminal shows and JSON must hold; `tar` packs names that are no text at all."""
    beside = {f"{top}/{name}": data for name, data in FILES.items()} | {"y": b""}
    for at, data in enumerate(({f"{top}/{CONFIG}": b"{}"}, {f"{t}/{CONFIG}": b"" for t in (top, "b")}, beside)):
        with pytest.raises(AdapterRejected) as refused:
            unpacked(tar(data), tmp_path / f"in{at}")
        assert refused.value.message.isprintable(), ascii(refused.value.message)
    assert unpacked(tar(top=f"{top}/"), tmp_path / "good").folder.name == "below"


def test_what_our_own_disk_refuses_is_not_the_archives_fault(tmp_path: Path) -> None:
    (tmp_path / "packed").write_bytes(tar())
    with (tmp_path / "packed").open("rb") as file, pytest.raises(ServiceError) as refused:
        unpack(file, "a.tar", tmp_path / "gone", watched())
    assert not isinstance(refused.value, AdapterRejected), refused.value.message


def test_attributes_without_end_are_not_collected(tmp_path: Path) -> None:
    """What holds for all further entries would be kept in memory, and copied for each: minutes in one archive."""
    few = record("comment", "0123456789abcdef")
    for kind, reason in ((tarfile.XGLTYPE, "archive_damaged"), (tarfile.XHDTYPE, "archive_damaged")):
        parts, keys = list[bytes](), iter(range(10**9))
        for at in range(15):
            many = b"".join(record(f"k{next(keys):x}", "v") for _ in range(4000))
            parts += [entry("x", kind, size=len(many)).tobuf(tarfile.USTAR_FORMAT), many, bytes(-len(many) % 512)]
            parts.append(entry(f"{at}.txt").tobuf(tarfile.USTAR_FORMAT))
        with pytest.raises(AdapterRejected) as refused:
            unpacked(gz(b"".join(parts) + tar()), tmp_path / f"in{kind!r}")
        assert refused.value.reason == reason
    head = entry("x", tarfile.XGLTYPE, size=len(few)).tobuf(tarfile.USTAR_FORMAT)  # as `git archive` writes
    assert unpacked(head + few + bytes(-len(few) % 512) + tar(), tmp_path / "good").checksums


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("an encrypted zip", "without a password"),
        ("a zip packed with LZMA", "as .tar.gz"),
        ("weights that are a link", "tar -h"),  # as they lie in a hub's cache
        ("a zip with a link", "tar -h"),
    ],
)
def test_what_to_do_would_help(name: str, remedy: str, tmp_path: Path) -> None:
    """To pack the two files only, with the same tool and in the same way, would end in the same refusal."""
    with pytest.raises(AdapterRejected, match=remedy):
        unpacked(HOSTILE[name][0], tmp_path / "in")


def test_a_directory_of_gigabytes_in_a_zip_is_not_read(tmp_path: Path) -> None:
    whole = zipped()
    directory = whole.index(CENTRAL)
    entries, end = whole[directory : whole.index(END)], whole[whole.index(END) :]
    large = zip_field(whole[:directory] + entries * 40_000 + end, END, 12, "<L", 40_000 * len(entries))
    with pytest.raises(AdapterRejected, match="directory is too large"):
        unpacked(large, tmp_path / "in", replace(SMALL, entries=10**6))


def test_it_stops_in_the_middle_when_told(tmp_path: Path) -> None:
    progress = watched()
    progress.stop()
    with pytest.raises(Stopped):
        unpacked(tar(), tmp_path / "in", progress=progress)


def _mutated(data: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    made = bytearray(data)
    for at, value in changes:
        made[at % len(made)] = value
    return bytes(made[: len(made) - cut % len(made)] if cut else made)


ORIGINALS = [tar(), tar(top="out/", format=tarfile.GNU_FORMAT), gz(tar()), zipped(), zipped(method=zipfile.ZIP_STORED)]
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _survives(data: bytes, tmp_path: Path) -> None:
    """Whatever the bytes: the two files, or AdapterRejected, and nothing outside the folder."""
    into = tmp_path / "in"
    try:
        found = unpacked(data, into)
        assert {path.name for path in found.folder.iterdir()} == {CONFIG, WEIGHTS}
    except AdapterRejected:
        pass
    assert {path.name for path in tmp_path.iterdir()} <= {"in", "in.packed"}
    for folder in into.iterdir():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


@quick
@given(
    st.sampled_from(ORIGINALS),
    st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 255)), max_size=8),
    st.one_of(st.just(0), st.integers(0, 30_000)),
)
def test_no_change_of_bytes_gets_anything_else_out_of_it(
    tmp_path: Path, data: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    _survives(_mutated(data, changes, cut), tmp_path)


@quick
@given(st.binary(max_size=3000), st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b\x08\0"]))
def test_no_bytes_at_all_get_anything_else_out_of_it(tmp_path: Path, data: bytes, begin: bytes) -> None:
    _survives(begin + data, tmp_path)


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30) | st.sampled_from(
    ["..", "../x", "/x", CONFIG, WEIGHTS, f"out/{CONFIG}", f"out/{WEIGHTS}", "a//b", ".", "out"]
)
kinds = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, b"S", b"L"]
)


@quick
@given(st.lists(st.tuples(names, kinds, st.binary(max_size=50), st.text(max_size=10)), max_size=6))
def test_no_entries_get_anything_else_out_of_it(tmp_path: Path, entries: list[tuple[Any, ...]]) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, kind, data, link in entries:
            try:
                size = len(data) if kind == tarfile.REGTYPE else 0
                made.addfile(entry(name, kind, size=size, linkname=link), io.BytesIO(data))
            except (UnicodeEncodeError, ValueError):
                return
    _survives(out.getvalue(), tmp_path)
