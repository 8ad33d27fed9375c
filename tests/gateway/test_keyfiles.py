"""pepper and admin.key: made once, readable by their owner only, never replaced in silence."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.keyfiles import SecretFileError, admin_key, pepper
from gateway.tokens import ROOT_ID, parse


def test_both_files_are_made_once_and_private(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    first = pepper(home, os.urandom, keys_exist=False), admin_key(home, os.urandom)
    assert len(first[0]) == 32
    assert parse(first[1]) == ROOT_ID
    assert (pepper(home, os.urandom, keys_exist=True), admin_key(home, os.urandom)) == first
    for name in ("pepper", "admin.key"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    assert sorted(path.name for path in home.iterdir()) == ["admin.key", "pepper"]


def test_a_file_that_everybody_can_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = admin_key(tmp_path, os.urandom)
    assert not caplog.messages
    (tmp_path / "admin.key").chmod(0o644)
    assert admin_key(tmp_path, os.urandom) == first
    assert [str(tmp_path / "admin.key") in message for message in caplog.messages] == [True]
    assert first.decode() not in caplog.text


def test_a_deleted_admin_key_is_replaced(tmp_path: Path) -> None:
    first = admin_key(tmp_path, os.urandom)
    (tmp_path / "admin.key").unlink()
    assert admin_key(tmp_path, os.urandom) != first


def test_a_lost_pepper_is_an_error_while_keys_exist(tmp_path: Path) -> None:
    with pytest.raises(SecretFileError, match="backup"):
        pepper(tmp_path, os.urandom, keys_exist=True)
    assert not (tmp_path / "pepper").exists()


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_a_pepper_of_the_wrong_size_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pepper").write_bytes(content)
    with pytest.raises(SecretFileError, match="32 bytes"):
        pepper(tmp_path, os.urandom, keys_exist=False)


def test_an_admin_key_that_is_none_is_refused_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text("hunter2-canary\n")
    with pytest.raises(SecretFileError, match="Delete it") as caught:
        admin_key(tmp_path, os.urandom)
    assert "canary" not in str(caught.value)


def test_a_data_directory_that_cannot_be_one_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SecretFileError, match=r"Cannot (read|write)"):
        admin_key(tmp_path / "file", os.urandom)


def test_two_starts_at_once_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: pepper(tmp_path, os.urandom, keys_exist=False), range(2)))
    assert found[0] == found[1] == (tmp_path / "pepper").read_bytes()
