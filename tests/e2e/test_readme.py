"""The README is run, not believed: its commands against real vLLM, its make targets, flags and links by reading."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from gateway.cli import main
from tests.e2e.conftest import ROOT, Live
from tests.e2e.test_demo_answers import pairs
from tests.e2e.variants import copied, opposite
from tests.local.test_up import block

CUSTOMER = "customer-service"
LORAGATE = ".venv/bin/loragate"
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("deploy/*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("configs/**/*.md")})


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


def commands() -> list[str]:
    """Every command of the README's shell blocks, without its comment; one that goes on over lines is one."""
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    return [line.partition("  #")[0].strip() for line in text.splitlines() if line.strip()]


# By reading ----------------------------------------------------------------------------------------------


def relative(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_linked_file_exists(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_named_make_target_exists(page: Path) -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", page.read_text(encoding="utf-8"), re.M))
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert named <= targets


def test_the_readme_shows_both_set_up_commands_first() -> None:
    assert [words.split()[:2] for words in commands()[:2]] == [["make", "up"], ["make", "test"]]


def test_every_command_is_one_that_is_run_here() -> None:
    assert {words.split()[0] for words in commands()} == {"make", "curl", LORAGATE}


def understood(words: list[str]) -> None:
    """Parse as the command line would be, and run nothing; click.UsageError."""
    command: click.Command = main
    context = click.Context(main, info_name="loragate")
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, f"no command {words[0]}"
        context, command, words = click.Context(found, context, words[0]), found, words[1:]
    command.make_context(str(command.name), words, parent=context)


def test_every_flag_is_understood() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    up = [f"up {shlex.split(words)[2].removeprefix('ARGS=')}" for words in commands() if " ARGS=" in words]
    named = re.findall(rf"{LORAGATE} ([^`\n#]+)", text)
    assert len(up) == 2
    assert len(named) > 7
    for words in (*up, *named):
        understood(shlex.split(words))
    with pytest.raises(click.UsageError):
        understood(["up", "--no-such-flag"])


# By running ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Newcomer:
    """Somebody at a shell, in a home folder where the gateway's data lie where the README says."""

    live: Live
    home: Path

    def run(self, words: str, program: list[str] | None = None) -> subprocess.CompletedProcess[str]:
        """`words` in a shell, or given to `program`; ports and interpreter are the running ones."""
        words = words.replace("http://127.0.0.1:8000", self.live.url.removesuffix("/v1"))
        words = words.replace(LORAGATE, shlex.join([sys.executable, "-m", "gateway"]))
        other = {"XDG_DATA_HOME", "LORAGATE_HOME", "LORAGATE_ADMIN_URL", "LORAGATE_ADMIN_KEY"}
        env = {name: value for name, value in os.environ.items() if name not in other}
        env |= {"HOME": str(self.home), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
        return subprocess.run(
            [*(program or ["sh", "-c"]), words], cwd=self.home, env=env, text=True, capture_output=True, timeout=110
        )

    def done(self, words: str, program: list[str] | None = None) -> str:
        ended = self.run(words, program)
        assert ended.returncode == 0, f"{words}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout


@pytest.fixture
def newcomer(live_gateway: Live, tmp_path: Path) -> Newcomer:
    (tmp_path / ".local" / "share").mkdir(parents=True)
    (tmp_path / ".local" / "share" / "loragate").symlink_to(live_gateway.data_dir)
    return Newcomer(live_gateway, tmp_path)


def one(beginning: str) -> str:
    [found] = [words for words in commands() if words.startswith(beginning)]
    return found


@pytest.mark.engine
def test_the_readmes_curl_and_snippet_answer(newcomer: Newcomer) -> None:
    if shutil.which("curl"):
        assert f'"model":"{CUSTOMER}@' in newcomer.done(one("curl") + " -sS --fail")
    snippet, training = blocks("python")
    assert "fine_tuning.jobs.create" in training  # run in test_training_real, which takes longer
    lines = newcomer.done(snippet, [sys.executable, "-c"]).splitlines()
    assert [line.partition("@")[0] for line in lines] == [CUSTOMER, "code-generation", "financial-qa"]
    for line in lines:
        name, _, answer = line.partition(" → ")
        assert answer in [known for _, known in pairs(name.partition("@")[0])], "a newcomer's first answers make sense"


@pytest.mark.engine
def test_what_up_prints_can_be_pasted(newcomer: Newcomer) -> None:
    printed, answer = newcomer.live.output, pairs(CUSTOMER)[0][1]
    if shutil.which("curl"):
        assert answer in newcomer.done(block(printed, "curl") + " -sS --fail")
    assert newcomer.done(block(printed, "from openai"), [sys.executable, "-c"]).strip() == answer


@pytest.mark.engine
def test_an_adapter_of_ones_own(newcomer: Newcomer) -> None:
    folder = copied(CUSTOMER, newcomer.home / "my-adapter")
    register = one(f"{LORAGATE} adapters register")
    assert re.search(r"^rank +8$", newcomer.done(one(f"{LORAGATE} adapters check")), re.M)
    first = re.search(r"^live +(\w{12})$", newcomer.done(register), re.M)
    shutil.rmtree(folder)
    opposite(CUSTOMER, folder)
    second = re.search(r"^live +(\w{12})$", newcomer.done(register), re.M)
    assert first is not None
    assert second is not None
    assert first[1] != second[1]
    back = newcomer.done(one(f"{LORAGATE} adapters rollback"))
    assert re.search(rf"^live +{first[1]}$", back, re.M)
    newcomer.done(one(f"{LORAGATE} adapters canary").replace("0123456789ab", second[1]))
    told = newcomer.done(one(f"{LORAGATE} adapters history"))
    assert [word for word in ("canary 10 %", "rolled back", "promoted", "registered") if word in told] != []
    assert told.index("canary 10 %") < told.index("rolled back") < told.index("promoted")
    newcomer.done(f"{LORAGATE} adapters remove support")


@pytest.mark.engine
def test_operating_it(newcomer: Newcomer) -> None:
    made = newcomer.done(one(f"{LORAGATE} keys create"))
    assert made.startswith("lg-")
    listed = newcomer.done(one(f"{LORAGATE} keys list"))
    [key] = re.findall(r"^(\S+) +web +inference +customer-service", listed, re.M)
    assert CUSTOMER in newcomer.done(one(f"{LORAGATE} usage"))
    assert re.search(r"^ready +yes$", newcomer.done(one(f"{LORAGATE} status")), re.M)
    examined = newcomer.done(one(f"{LORAGATE} doctor"))
    assert f"ok       gateway: running, {newcomer.live.admin_url} answers" in examined
    assert "PROBLEM" not in examined
    newcomer.done(f"{LORAGATE} keys revoke {key}")
