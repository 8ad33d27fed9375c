"""The store on disk: two files, readable, whole or absent; what a crash leaves is swept, what is in use is not."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.errors import ServiceError, StorageFull
from adapters.shelf import Shelf

NAME = "customer-service@0123456789ab"
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "adapters")


def _place(shelf: Shelf, data: bytes = b"weights", name: str = NAME) -> None:
    with shelf.draft() as draft:
        draft.write(data)
        draft.place(name, {"r": 8}, "/data/models/demo-base")


def test_a_placed_version_is_two_readable_files(shelf: Shelf) -> None:
    old = os.umask(0o077)
    try:
        _place(shelf)
    finally:
        os.umask(old)
    folder = shelf.root / NAME
    assert sorted(os.listdir(folder)) == ["adapter_config.json", "adapter_model.safetensors"]
    assert [path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())] == [0o755, 0o644, 0o644]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config == {"r": 8, "base_model_name_or_path": "/data/models/demo-base"}
    assert os.listdir(shelf.root) == [NAME]
    assert shelf.holds(NAME)


def test_a_draft_that_is_not_placed_leaves_nothing(shelf: Shelf) -> None:
    with shelf.draft() as draft:
        draft.write(b"half")
    assert os.listdir(shelf.root) == []


def test_placing_again_mends_a_damaged_folder(shelf: Shelf) -> None:
    _place(shelf)
    weights = shelf.root / NAME / "adapter_model.safetensors"
    weights.write_bytes(b"rotten")
    (shelf.root / NAME / "adapter_config.json").unlink()
    assert shelf.missing([NAME, "other@0123456789ab"]) == {NAME, "other@0123456789ab"}
    _place(shelf)
    assert weights.read_bytes() == b"weights"
    assert shelf.missing([NAME]) == frozenset()
    assert os.listdir(shelf.root) == [NAME]


def test_remove_is_whole_and_may_be_repeated(shelf: Shelf) -> None:
    _place(shelf)
    shelf.remove(NAME, lambda name: name != NAME)
    shelf.remove(NAME, lambda name: name != NAME)
    assert os.listdir(shelf.root) == []


def test_what_was_registered_again_meanwhile_is_not_removed(shelf: Shelf) -> None:
    _place(shelf)
    shelf.remove(NAME, lambda name: name == NAME)
    assert shelf.holds(NAME)


@pytest.mark.parametrize("name", ["..", "customer-service", "../x@0123456789ab", ".draft-1", "a/b@0123456789ab", ""])
def test_only_engine_names_become_paths(shelf: Shelf, name: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        shelf.path(name)


def test_the_sweep_takes_crashed_drafts_and_orphans_only(shelf: Shelf) -> None:
    for name in ("known@000000000000", "orphan@000000000000", "new@000000000000"):
        _place(shelf, name=name)
    (shelf.root / ".draft-crashed").mkdir()
    (shelf.root / ".draft-crashed" / "adapter_model.safetensors").write_bytes(b"half")
    (shelf.root / "a users own folder").mkdir()
    (shelf.root / "notes.txt").touch()
    asked: list[str] = []

    def is_known(name: str) -> bool:
        asked.append(name)
        return name.startswith("new@")  # its row was committed after the list was read

    with shelf.draft() as working:
        working.write(b"still being copied")
        assert shelf.sweep({"known@000000000000"}, is_known) == (".draft-crashed", "orphan@000000000000")
        working.place("late@000000000000", {}, None)
        assert shelf.sweep({"known@000000000000"}, is_known) == ()  # placed, its row not yet committed
    left = {"known@000000000000", "new@000000000000", "late@000000000000", "a users own folder", "notes.txt"}
    assert set(os.listdir(shelf.root)) == left
    assert set(asked) == {"orphan@000000000000", "new@000000000000"}


@pytest.mark.parametrize("size", [65536, 1000])  # a whole chunk, and what a buffer would keep for later
def test_a_full_disk_is_storage_full_and_leaves_nothing(shelf: Shelf, size: int) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path; from adapters.shelf import Shelf\n"
        "from adapters.errors import StorageFull\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    with Shelf(Path(sys.argv[1])).draft() as draft:\n"
        "        [draft.write(bytes(int(sys.argv[2]))) for _ in range(300)]\n"
        "except StorageFull as exc:\n"
        "    print(exc.code)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, str(shelf.root), str(size)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (child.stdout, child.stderr) == ("storage_full\n", "")
    assert os.listdir(shelf.root) == []
    assert issubclass(StorageFull, ServiceError)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


def test_a_store_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "adapters").write_text("a file where the folder should be")
    with pytest.raises(ServiceError, match="cannot be written"):
        Shelf(tmp_path / "adapters").draft()
