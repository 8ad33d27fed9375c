"""The gateway's log file: JSON lines while it lasts, the old handlers afterwards, and a full disk that ends nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from gateway.local.gatewaylog import to_file


def test_lines_go_to_the_file_and_only_for_the_block(tmp_path: Path) -> None:
    log, before = logging.getLogger("loragate.test"), logging.getLogger().handlers[:]
    with to_file(tmp_path / "gateway.log", "info"):
        log.info("inside")
    log.info("outside")
    (line,) = (tmp_path / "gateway.log").read_text().splitlines()
    assert json.loads(line)["message"] == "inside"
    assert logging.getLogger().handlers == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_loses_lines_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    with to_file(Path("/dev/full"), "info"):
        logging.getLogger("loragate.test").info("lost")
    assert capfd.readouterr().err == ""
