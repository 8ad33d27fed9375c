"""The CLI's parts that need no gateway: spans, addresses, tables, exit codes when nothing answers, help."""

from __future__ import annotations

import ast
import json
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gateway.cli import COMMANDS, main, output
from gateway.cli.client import DEFAULT_URL, AdminClient, Place, Refused, find, segment
from gateway.cli.durations import Span, Until
from gateway.cli.serve import as_settings
from gateway.settings import load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def nowhere() -> str:
    """An address where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("12h", 43_200), ("30d", 2_592_000)])
def test_spans(text: str, seconds: int) -> None:
    assert Span().convert(text, None, None) == seconds
    before = int(time.time())
    assert before + seconds <= Until().convert(text, None, None) <= int(time.time()) + seconds


@pytest.mark.parametrize("text", ["", "30", "d", "1.5h", "-1d", "30 d", "٣d", "soon"])
def test_what_is_no_span_is_a_usage_error(text: str) -> None:
    for kind in (Span(), Until()):
        with pytest.raises(click.BadParameter):
            kind.convert(text, None, None)


def test_dates_are_utc() -> None:
    midnight = int(datetime(2026, 12, 31, tzinfo=UTC).timestamp())
    assert Until().convert("2026-12-31", None, None) == midnight
    assert Until().convert("2026-12-31T01:00:00+01:00", None, None) == midnight


def test_where_the_gateway_is(tmp_path: Path) -> None:
    assert find({"LORAGATE_HOME": str(tmp_path)}, None, None) == Place(DEFAULT_URL, None, str(tmp_path / "admin.key"))
    (tmp_path / "admin.key").write_text("lg-file\n")
    (tmp_path / "admin.url").write_text("http://127.0.0.1:9\n")
    from_files = find({}, tmp_path, None)
    assert (from_files.url, from_files.key) == ("http://127.0.0.1:9", "lg-file")
    environ = {"LORAGATE_ADMIN_KEY": "lg-env", "LORAGATE_ADMIN_URL": "http://env:1/", "LORAGATE_HOME": str(tmp_path)}
    assert find(environ, None, None) == Place("http://env:1", "lg-env", "LORAGATE_ADMIN_KEY")
    assert find(environ, None, "http://flag:2").url == "http://flag:2"
    assert "lg-file" not in repr(from_files)


@pytest.mark.parametrize(
    "url",
    ["ftp://x", "localhost:8001", "http://", "http://[", "http://x:99999", "file:///etc", "http://a b", "http://.x"],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(Refused, match="not an address"):
        AdminClient(Place(url, "k", "test")).call("GET", "/livez")


def test_a_key_with_a_line_break_is_a_sentence_and_not_shown(nowhere: str) -> None:
    with pytest.raises(Refused) as caught:
        AdminClient(Place(nowhere, "canary\r\nx: y", "the test")).call("GET", "/livez")
    assert "canary" not in caught.value.message


def test_segments_cannot_leave_their_place() -> None:
    assert segment("../x?y#z") == "..%2Fx%3Fy%23z"
    assert segment("ft:base:org::id") == "ft:base:org::id"


def test_cells_hold_no_control_characters() -> None:
    assert output.text("a\x1b[31m\nb\u202e") == "a\ufffd[31m\ufffdb\ufffd"
    assert [output.text(v) for v in (None, "", True, ["a", "b"], 0)] == ["-", "-", "yes", "a, b", "0"]
    assert output.moment(1_800_014_400) == "2027-01-15 12:00 UTC"
    assert [output.size(n) for n in (12, 440_000, 2_500_000_000, None)] == ["12 B", "440 kB", "2.5 GB", "-"]


def test_tables_are_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("ID", "NAME"), [("k" * 200, "客户服务"), ("x", "[bold]not markup[/bold]")])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert "k" * 200 in printed[1]
    assert "[bold]not markup[/bold]" in printed[2]


def test_where_a_terminal_is_narrow_ids_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    columns, row = ("ID", "NAME", "WHY"), ("k" * 20, "n" * 20, "one reason " * 8)
    output.table(columns, [row], width=80)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2, "the last column goes on below"
    assert lines[1].startswith(f"{'k' * 20}  {'n' * 20}  one reason")
    assert max(map(len, lines)) <= 80
    output.table(columns, [row, row], width=50)
    block = ["", f"id    {row[0]}", f"name  {row[1]}", f"why   {row[2]}"]
    assert capsys.readouterr().out.splitlines() == block * 2


def client_commands() -> list[list[str]]:
    found = []
    for name in ("keys", "adapters"):
        group = main.get_command(click.Context(main), name)
        assert isinstance(group, click.Group)
        found += [[name, verb] for verb in group.commands]
    return [*found, ["usage"], ["status"]]


def every_command() -> list[list[str]]:
    return [*client_commands(), ["serve"], ["keys"], ["adapters"], []]


@pytest.mark.parametrize("argv", every_command(), ids=" ".join)
def test_every_help_has_an_example(argv: list[str]) -> None:
    result = CliRunner().invoke(main, [*argv, "--help"])
    assert result.exit_code == 0
    assert f"Example: loragate {' '.join(argv)}".strip() in " ".join(result.stdout.split())


@pytest.mark.parametrize("argv", client_commands(), ids=" ".join)
def test_every_client_command_can_answer_in_json(argv: list[str]) -> None:
    assert "--json" in CliRunner().invoke(main, [*argv, "--help"]).stdout


def test_nothing_listening_is_exit_3_and_one_sentence(nowhere: str, tmp_path: Path) -> None:
    env = {"LORAGATE_HOME": str(tmp_path), "LORAGATE_ADMIN_URL": nowhere, "LORAGATE_ADMIN_KEY": None}
    result = CliRunner().invoke(main, ["keys", "list"], env=env)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "loragate up" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    as_json = CliRunner().invoke(main, ["keys", "list", "--json"], env=env)
    assert as_json.exit_code == 3
    assert json.loads(as_json.stdout)["error"]["code"] == "gateway_unreachable"


@pytest.mark.parametrize(
    ("source", "code"), [("a" * 5000, 1), ("/" + "a" * 5000, 3), ("~nobody-of-this-name/x", 1), ("caf\udce9", 1)]
)
def test_a_folder_that_cannot_be_looked_at_is_a_sentence(nowhere: str, tmp_path: Path, source: str, code: int) -> None:
    argv = ["adapters", "check", source, "--json", "--admin-url", nowhere, "--data-dir", str(tmp_path)]
    result = CliRunner().invoke(main, argv)
    assert (result.exit_code, type(result.exception)) == (code, SystemExit)
    assert json.loads(result.stdout)["error"]["message"]


@pytest.mark.parametrize("argv", [["keys", "create"], ["nothing"], ["keys", "list", "--limit", "0"], ["--what"]])
def test_wrong_use_is_exit_2(argv: list[str]) -> None:
    assert CliRunner().invoke(main, argv).exit_code == 2


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["keys", "create", "--json"], 2),
        (["usage", "--json", "--since", "x"], 2),
        (["adapters", "unload", "x", "y", "--json"], 2),
        (["doctor", "--json"], 1),
    ],
)
def test_what_fails_before_it_asks_is_one_document_too(argv: list[str], code: int) -> None:
    result = CliRunner().invoke(main, argv, env={"LORAGATE__NO_SUCH__SETTING": "1"})
    assert result.exit_code == code
    assert json.loads(result.stdout)["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["statsu"], "No such command 'statsu'. Did you mean 'status'?"),
        (["adapter", "list"], "No such command 'adapter'. Did you mean 'adapters'?"),
        (["xyzzy"], "No such command 'xyzzy'."),
        (["keys", "create", "--name", "a", "--scope", "all"], "'inference', 'feedback', 'training', 'admin'"),
        (["usage", "--since", "yesterday"], "'yesterday' is no day. Write it as 2026-12-31."),
    ],
)
def test_a_slip_is_told_with_what_would_be_right(argv: list[str], said: str) -> None:
    result = CliRunner().invoke(main, argv)
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize("verb", [["check"], ["register", "--name", "support"]])
def test_a_folder_that_is_not_here_is_told_before_the_gateway_is_asked(verb: list[str], nowhere: str) -> None:
    result = CliRunner().invoke(main, ["adapters", *verb, "./no-such-adapter", "--admin-url", nowhere])
    assert result.exit_code == 1
    assert "There is no folder ./no-such-adapter here." in result.stderr
    elsewhere = CliRunner().invoke(main, ["adapters", *verb, "/no/such/adapter", "--admin-url", nowhere])
    assert elsewhere.exit_code == 3, "a whole path is the gateway's to judge: it may run on another machine"


def test_lists_of_commands_are_whole_sentences_and_short_flags_work() -> None:
    for argv in ([], ["keys"], ["adapters"]):
        shown = CliRunner().invoke(main, [*argv, "-h"])
        assert shown.exit_code == 0
        assert "..." not in shown.stdout.partition("Commands:")[2], shown.stdout


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        ("200 OK", "<html>", "is not a loragate gateway (status 200)"),
        ("404 Not Found", '{"detail":"Not Found"}', "is not a loragate gateway (status 404)"),  # an engine, for one
        ("404 Not Found", '{"error":{"message":"?","code":"unknown_url"}}', "admin port (8001 unless told otherwise)"),
    ],
)
def test_something_else_on_the_port_is_said(tmp_path: Path, status: str, body: str, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        child = subprocess.Popen(
            [sys.executable, "-m", "gateway", "status", "--admin-url", url, "--data-dir", str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        peer, _ = server.accept()
        with peer:
            peer.recv(4096)
            peer.sendall(f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        stdout, stderr = child.communicate(timeout=30)
    assert (child.returncode, stdout) == (1, "")
    assert said in stderr


def test_flags_become_settings(tmp_path: Path) -> None:
    flags = as_settings(engines=("http://a", "http://b"), port=9, admin_port=10, metrics_port=11, data_dir=tmp_path)
    settings = load({}, flags=flags)
    assert [engine.url for engine in settings.engines] == ["http://a", "http://b"]
    assert (settings.public.port, settings.admin.port, settings.metrics.port) == (9, 10, 11)
    assert settings.public.host == "127.0.0.1"
    assert settings.data_dir == tmp_path
    assert load({"LORAGATE_HOME": str(tmp_path)}, flags=as_settings()).engines == ()


def test_client_commands_import_nothing_heavy() -> None:
    """Speed as structure: what `keys list` and `--help` import, in a fresh process."""
    code = (
        "import sys; from gateway.cli import main\n"
        "try: main(sys.argv[1:], standalone_mode=False)\n"
        "except BaseException: pass\n"
        "print(sorted(sys.modules), file=sys.stderr)"
    )
    for argv in (["--help"], ["keys", "list", "--admin-url", "http://127.0.0.1:1"]):
        done = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True, check=True)
        loaded = set(ast.literal_eval(done.stderr.splitlines()[-1]))
        heavy = {"fastapi", "sqlalchemy", "pydantic", "httpx", "uvicorn", "starlette", "alembic", "limits", "rich"}
        assert not loaded & heavy


def test_every_command_of_the_table_exists() -> None:
    context = click.Context(main)
    for name in COMMANDS:
        if name in main.list_commands(context):
            assert isinstance(main.get_command(context, name), click.Command)
