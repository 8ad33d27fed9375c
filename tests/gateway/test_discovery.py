"""Names that are looked up: which members there should be, and what a name server that fails can do."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from adapters.engine import EngineClient, EngineUnreachable
from adapters.http import open_http
from gateway.discovery import Discovery, Member
from gateway.probe import Probe
from gateway.settings import Engine, InvalidSettings, load
from gateway.v1.upstream import Upstream, UpstreamConfig
from tests.gateway.names import HOST, Names
from tests.scripted_server import Peer, ScriptedServer

NAMED = Engine(url=f"http://{HOST}:8000/under", discover="dns")


class Told:
    """What the discovery said, newest last."""

    def __init__(self) -> None:
        self.members: list[Sequence[Member]] = []
        self._new = asyncio.Event()

    def __call__(self, members: Sequence[Member]) -> None:
        self.members.append(members)
        self._new.set()

    @property
    def urls(self) -> list[str]:
        return [member.url for member in self.members[-1]]

    async def times(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.members) < count:
                self._new.clear()
                await self._new.wait()


def discovery(
    told: Told, names: Names, *engines: Engine, hurry: Callable[[], bool] = lambda: False, interval_s: float = 0.01
) -> Discovery:
    return Discovery(engines or (NAMED,), resolve=names, interval_s=interval_s, follow=told, hurry=hurry)


async def test_each_address_is_a_member_of_its_own_and_keeps_port_and_path() -> None:
    told, names = Told(), Names("10.0.0.9", "10.0.0.10", "fd00::2", "10.0.0.9")
    await discovery(told, names).first()
    assert told.urls == ["http://10.0.0.9:8000/under", "http://10.0.0.10:8000/under", "http://[fd00::2]:8000/under"]
    assert [member.address for member in told.members[-1]] == ["10.0.0.9", "10.0.0.10", "fd00::2"]


async def test_what_is_the_same_engine_counts_once_and_the_first_entry_wins() -> None:
    told = Told()
    plain, twice = Engine(url="http://10.0.0.1"), Engine(url="http://10.0.0.1:80")
    names = Names("::ffff:10.0.0.1", "10.0.0.2")
    await discovery(told, names, plain, twice, Engine(url=f"http://{HOST}", discover="dns")).first()
    assert told.members[-1] == [
        Member("http://10.0.0.1", plain),
        Member("http://10.0.0.2:80", Engine(url=f"http://{HOST}", discover="dns"), "10.0.0.2"),
    ]


async def test_what_is_no_address_of_an_engine_is_left_out() -> None:
    told, names = Told(), Names("0.0.0.0", "::", "224.0.0.1", "fe80::1%eth0", "nonsense", "10.0.0.1")
    await discovery(told, names).first()
    assert told.urls == ["http://10.0.0.1:8000/under"]


@pytest.mark.parametrize(
    ("error", "addresses", "reason"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), (), "Name or service not known"),
        (OSError("it fell over"), (), "OSError"),
        (None, (), "it has no address"),
        (None, ("0.0.0.0",), "it has no address"),
    ],
)
async def test_a_failing_or_empty_answer_changes_nothing_and_says_why(
    error: OSError | None, addresses: Sequence[str], reason: str
) -> None:
    told, names = Told(), Names("10.0.0.1")
    found = discovery(told, names)
    await found.first()
    async with found:
        names.error, names.addresses = error, addresses
        async with asyncio.timeout(20):
            while not found.reasons():
                await asyncio.sleep(0.005)
        assert found.reasons() == [f"http://{HOST}:8000/under could not be looked up: {reason}"]
        assert found.document() == [{"url": NAMED.url, "addresses": ["10.0.0.1"], "reason": reason}]
        names.error, names.addresses = None, ("10.0.0.1", "10.0.0.2")
        await told.times(2)
        assert found.reasons() == []
    assert [len(members) for members in told.members] == [1, 2]


async def test_a_resolver_that_hangs_takes_one_thread_and_its_late_answer_counts() -> None:
    told, names = Told(), Names("10.0.0.1")
    found = discovery(told, names)
    await found.first()
    async with found:
        names.gate.clear()
        names.addresses = ("10.0.0.2",)
        asked = names.asked
        async with asyncio.timeout(20):
            while names.asked == asked:
                await asyncio.sleep(0.005)
        for _ in range(20):
            found.wake()
            await asyncio.sleep(0.002)
        assert names.asked == asked + 1
        assert sum(thread.name == f"resolve {HOST}" for thread in threading.enumerate()) == 1
        names.gate.set()
        await told.times(2)
        assert told.urls == ["http://10.0.0.2:8000/under"]


async def test_while_nothing_is_ready_and_when_woken_it_looks_sooner() -> None:
    told, names = Told(), Names("10.0.0.1")
    found = discovery(told, names, interval_s=3600)
    await found.first()
    async with found:
        names.addresses = ("10.0.0.2",)
        found.wake()
        await told.times(2)
    async with discovery(told, names, hurry=lambda: True, interval_s=3600):
        await told.times(3)


async def test_no_lookup_is_left_when_it_ends_in_the_middle_of_one() -> None:
    told, names = Told(), Names("10.0.0.1")
    found = discovery(told, names)
    await found.first()
    async with found:
        names.gate.clear()
        asked = names.asked
        async with asyncio.timeout(20):
            while names.asked == asked:
                await asyncio.sleep(0.005)
    names.gate.set()


def test_a_url_may_say_that_its_host_is_to_be_looked_up(tmp_path: Path) -> None:
    def engines(given: object) -> tuple[Engine, ...]:
        return load({}, flags={"data_dir": str(tmp_path), "engines": given}).engines

    short = engines([{"url": "dns+http://vllm.default.svc:8000/v1"}, {"url": "http://10.0.0.1"}])
    assert [(engine.url, engine.discover) for engine in short] == [
        ("http://vllm.default.svc:8000", "dns"),
        ("http://10.0.0.1", None),
    ]
    with pytest.raises(InvalidSettings, match=r"engines\.0\.discover"):
        engines([{"url": "http://a", "discover": "magic"}])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """For HOST only: no address is in it."""
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", f"/CN={HOST}"]
    command += ["-addext", f"subjectAltName=DNS:{HOST}"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("the openssl command is not installed, so no certificate can be made")
    return key, cert


async def test_https_is_about_the_name_while_the_address_is_connected_to(certificate: tuple[Path, Path]) -> None:
    """Both clients ask for the name's certificate and send the name as host; without it the certificate is refused."""
    key, cert = certificate
    serving, trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=cert)
    serving.load_cert_chain(cert, key)
    asked_for: list[str | None] = []
    serving.sni_callback = lambda _, name, __: asked_for.append(name)
    body = b'{"data":[{"id":"demo-base"}]}'
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    hosts: list[bytes] = []

    async def script(peer: Peer) -> None:
        head, _ = await peer.request()
        hosts.extend(line for line in head.lower().split(b"\r\n") if line.startswith(b"host:"))
        await peer.send(answer)

    async with ScriptedServer(script, tls=serving) as server, open_http(trust) as http:
        port = int(server.url.rpartition(":")[2])
        named, there = f"https://{HOST}:{port}", f"https://127.0.0.1:{port}"
        upstream = Upstream(named, UpstreamConfig(), loop=asyncio.get_running_loop(), ssl=trust, address="127.0.0.1")
        sink = Probe(asyncio.get_running_loop())
        upstream.get("/v1/models", sink)
        assert await sink.outcome is None
        await upstream.aclose()
        [model] = await EngineClient(there, None, Path("/adapters"), http, name=f"{HOST}:{port}").models()
        assert model.id == "demo-base"
        assert asked_for == [HOST, HOST]
        assert hosts == [f"host: {HOST}:{port}".encode()] * 2
        with pytest.raises(EngineUnreachable):
            await EngineClient(there, None, Path("/adapters"), http).models()
