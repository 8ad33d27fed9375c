"""Every way in: what is recorded of it, that a broken fetch goes on, and that nothing is left behind on any way out."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import importlib.util
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fsspec.asyn import get_loop

from adapters.errors import AdapterRejected, InvalidRequest, StorageFull, Unavailable
from adapters.intake import check
from adapters.shelf import Shelf
from adapters.sources.arrivals import Arrivals, Arrived
from adapters.sources.bucket import BucketFile
from adapters.sources.progress import Progress
from adapters.sources.source import SourceRefused, SourceUnavailable
from tests.adapters.elsewhere import COMMIT, Elsewhere, Fault, elsewhere
from tests.adapters.packing import CONFIG, FILES, WEIGHTS, gz, tar, zipped

LARGE = {CONFIG: b"{}", WEIGHTS: os.urandom(3_000_000)}
SUMS = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}


@pytest.fixture
def web() -> Iterator[Elsewhere]:
    with elsewhere() as here:
        yield here


@asynccontextmanager
async def arrivals(root: Path, **environ: str) -> AsyncIterator[Arrivals]:
    """Arrivals that lose no time, and that leave nothing behind."""
    made = Arrivals(root / "adapters", clock=lambda: 1_800_000_000.0, environ=environ, first_pause_s=0.001)
    try:
        yield made
    finally:
        await made.close()
        assert made.running == ()
        assert not (root / "adapters").exists() or os.listdir(root / "adapters") == []


async def arrived(root: Path, source: str, **environ: str) -> tuple[Arrived, dict[str, bytes]]:
    """What came, and the files' bytes while they were there."""
    async with arrivals(root, **environ) as ways, ways.open(source, name="cs") as found:
        assert [each.phase for each in ways.running] == ["checking"]
        return found, {path.name: path.read_bytes() for path in found.folder.iterdir()}


async def test_a_folder_of_this_machine_is_used_where_it_is(tmp_path: Path) -> None:
    found, _ = await arrived(tmp_path / "data", str(tmp_path))
    assert found == Arrived(tmp_path, str(tmp_path), {})


@pytest.mark.parametrize(("name", "data"), [("a.tar.gz", gz(tar(top="o/"))), ("a.TGZ", gz(tar())), ("a.zip", zipped())])
async def test_an_archive_of_this_machine(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    found, files = await arrived(tmp_path, str(tmp_path / name))
    assert (found.source, found.checksums, files) == (str(tmp_path / name), SUMS, FILES)
    assert found.folder.is_absolute()
    assert (tmp_path / name).exists(), "it is the user's"


async def test_an_archive_from_the_web_goes_on_where_the_connection_broke(tmp_path: Path, web: Elsewhere) -> None:
    web.files["/a.tar"] = data = tar(LARGE)
    web.faults += [Fault(after=1_500_000), Fault(503, {"Retry-After": "0"}), Fault(after=0), Fault(after=1_000_000)]
    found, files = await arrived(tmp_path, f"{web.url}/a.tar?X-Signature=secret")
    assert files == LARGE
    assert found.source == f"{web.url}/a.tar", "no query is recorded: it may be a signature"
    begins = [int(each.headers.get("range", "bytes=0-")[6:-1]) for each in web.asked]
    assert begins[0] == 0
    assert begins[1:4] == [begins[1]] * 3
    assert 0 < begins[1] < begins[4] < len(data)
    assert {each.headers.get("if-range") for each in web.asked[1:]} == {web.etag(data)}


async def test_a_file_that_changes_meanwhile_is_fetched_anew(tmp_path: Path, web: Elsewhere) -> None:
    web.files["/a.tar"] = tar({**LARGE, CONFIG: b'{"r": 1}'})
    web.faults.append(Fault(after=2_000_000, hang=True))
    async with arrivals(tmp_path) as ways:
        opening = asyncio.ensure_future(_files(ways, f"{web.url}/a.tar"))
        await asyncio.to_thread(web.hanging.wait)
        web.files["/a.tar"] = tar(LARGE)
        web.released.set()
        assert await opening == LARGE


async def _files(ways: Arrivals, source: str) -> dict[str, bytes]:
    async with ways.open(source) as found:
        return {path.name: path.read_bytes() for path in found.folder.iterdir()}


async def test_a_part_without_a_date_goes_on_where_the_server_was_asked_by_date(tmp_path: Path, web: Elsewhere) -> None:
    """That there is a part says that it is unchanged: If-Range asked for that."""
    web.files["/a.tar"], web.dated = tar(LARGE), True
    web.faults += [Fault(after=500_000)] * 5
    assert (await arrived(tmp_path, f"{web.url}/a.tar"))[1] == LARGE
    begins = [int(each.headers.get("range", "bytes=0-")[6:-1]) for each in web.asked]
    assert begins == sorted(set(begins))


@pytest.mark.parametrize("how", [{"ranges": False}, {"tags": False}, {"tags": False, "ranges": False}])
async def test_without_ranges_or_tags_it_begins_again(tmp_path: Path, web: Elsewhere, how: dict[str, bool]) -> None:
    for name, value in how.items():
        setattr(web, name, value)
    web.files["/a.tar"] = tar(LARGE)
    web.faults += [Fault(after=1_500_000), Fault(after=1_500_000)]
    _, files = await arrived(tmp_path, f"{web.url}/a.tar")
    assert files == LARGE
    assert len(web.asked) == 3


async def test_without_a_length_the_archive_itself_says_whether_it_is_whole(tmp_path: Path, web: Elsewhere) -> None:
    web.files["/a.tar.gz"] = gz(tar())
    web.lengths = False
    assert (await arrived(tmp_path, f"{web.url}/a.tar.gz"))[1] == FILES
    web.faults.append(Fault(after=100))
    with pytest.raises(AdapterRejected, match="cannot be read to its end"):
        await arrived(tmp_path, f"{web.url}/a.tar.gz")


async def test_a_server_that_never_gets_better(tmp_path: Path, web: Elsewhere) -> None:
    web.files["/a.tar"] = tar()
    web.faults += [Fault(503)] * 50
    with pytest.raises(SourceUnavailable, match=r"/a\.tar could not be fetched: the server answers 503\. Try again"):
        await arrived(tmp_path, f"{web.url}/a.tar?token=secret")
    assert len(web.asked) == 4
    web.faults[:] = [Fault(after=1000)] * 500
    web.ranges = False
    with pytest.raises(SourceUnavailable, match="broke"):
        await arrived(tmp_path, f"{web.url}/a.tar")


async def test_nobody_listens_there(tmp_path: Path) -> None:
    with elsewhere() as gone:
        pass
    with pytest.raises(SourceUnavailable, match="cannot be reached"):
        await arrived(tmp_path, f"{gone.url}/a.tar")


@pytest.mark.parametrize(("status", "words"), [(403, "may not be read"), (400, "cannot be read"), (404, "There is no")])
async def test_what_a_server_refuses(tmp_path: Path, web: Elsewhere, status: int, words: str) -> None:
    web.files["/a.tar"] = tar()
    web.faults.append(Fault(status))
    with pytest.raises((SourceRefused, AdapterRejected), match=words) as refused:
        await arrived(tmp_path, f"{web.url}/a.tar?token=secret")
    assert "secret" not in refused.value.message
    assert len(web.asked) == 1


async def test_redirects_lead_neither_in_circles_nor_to_plain_http_elsewhere(tmp_path: Path, web: Elsewhere) -> None:
    web.files["/b.tar"] = tar()
    web.redirects |= {
        "/a.tar": "/b.tar",
        "/c.tar": "/c.tar",
        "/d.tar": "http://example.org/x.tar",
        "/e.tar": "ftp://x/y",
    }
    assert (await arrived(tmp_path, f"{web.url}/a.tar"))[1] == FILES
    with pytest.raises(SourceRefused, match="circle"):
        await arrived(tmp_path, f"{web.url}/c.tar")
    for path in ("d", "e"):
        with pytest.raises(SourceRefused, match="without https"):
            await arrived(tmp_path, f"{web.url}/{path}.tar")


async def test_a_server_that_lies_about_what_it_sends(tmp_path: Path, web: Elsewhere) -> None:
    """Whatever it says of sizes and parts: the file, or a sentence."""
    web.files["/a.tar.gz"] = gz(tar(LARGE))
    size = len(web.files["/a.tar.gz"])
    for told in (
        f"bytes 0-9/{'9' * 5000}",
        f"bytes {'9' * 5000}-9/9",
        f"bytes 5-9/{size}",
        "bytes 0-9/0",
        "items 0-9/9",
    ):
        web.faults += [Fault(206, {"Content-Range": told})] * 100
        with pytest.raises((SourceUnavailable, AdapterRejected)):
            await arrived(tmp_path, f"{web.url}/a.tar.gz")
        web.faults.clear()


async def test_a_body_in_a_compressed_form_is_refused(tmp_path: Path, web: Elsewhere) -> None:
    web.files["/a.tar"] = gz(tar())
    web.extra = {"Content-Encoding": "gzip"}
    with pytest.raises(SourceRefused, match="compressed form"):
        await arrived(tmp_path, f"{web.url}/a.tar")


async def test_more_than_fits_is_refused_before_it_is_fetched(tmp_path: Path, web: Elsewhere) -> None:
    web.files["/a.tar"] = tar()
    web.lengths = False
    for size, error in ((2**42, AdapterRejected), (8 * 2**30, StorageFull)):
        web.extra = {"Content-Length": str(size)}
        if size < 2**40:  # only where the disk really has less
            free = os.statvfs(tmp_path)
            if free.f_bavail * free.f_frsize > size:
                continue
        with pytest.raises(error):
            await arrived(tmp_path, f"{web.url}/a.tar")


FETCH = """
import asyncio, sys, time
from pathlib import Path
from adapters.sources.arrivals import Arrivals
async def main():
    ways = Arrivals(Path(sys.argv[1]), clock=time.time)
    async with ways.open(sys.argv[2]) as found:
        print(found.checksums["adapter_config.json"])
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Key and certificate of an authority that nobody knows, for localhost."""
    key, cert = (str(tmp_path_factory.mktemp("tls") / name) for name in ("key.pem", "cert.pem"))
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    made += ["-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost", "-addext"]
    try:
        subprocess.run([*made, "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("the openssl command is not installed, so no certificate can be made")
    return key, cert


async def test_https_takes_only_certificates_that_are_trusted(tmp_path: Path, certificate: tuple[str, str]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate[1], certificate[0])
    with elsewhere(context) as web:
        web.files["/a.tar.gz"] = gz(tar())
        with pytest.raises(SourceRefused, match="is not trusted here"):
            await arrived(tmp_path, f"{web.url}/a.tar.gz")
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", FETCH, str(tmp_path / "adapters"), f"{web.url}/a.tar.gz"),
            cwd=Path(__file__).parents[2],
            env={**os.environ, "SSL_CERT_FILE": certificate[1]},
            stdout=asyncio.subprocess.PIPE,
        )
        stdout, _ = await child.communicate()
        assert stdout.decode().strip() == SUMS[CONFIG]


async def test_a_path_that_cannot_even_be_looked_at_is_a_sentence(tmp_path: Path) -> None:
    """It is no error of the gateway's. So it is for a home that its user may not enter, which root here could."""
    (tmp_path / "a.tar.xz").touch()
    for name, words in (("x" * 300, "too long"), ("x" * 300 + ".tar", "too long"), ("a.tar.xz", "an archive")):
        async with arrivals(tmp_path) as ways:
            with pytest.raises(AdapterRejected, match=words):
                async with ways.open(str(tmp_path / name)) as found:
                    check(found.folder, None, 16)


# --- a hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(web: Elsewhere) -> Elsewhere:
    for name, data in {**LARGE, "README.md": b"# hi", "vocab.bpe": b"x"}.items():
        web.files[f"/org/lora/{name}"] = data
        web.files[f"/org/lora/small/v2/{name}"] = FILES.get(name, b"")
    return web


async def test_a_hub_repository_is_pinned_to_its_commit(tmp_path: Path, hub: Elsewhere) -> None:
    found, files = await arrived(tmp_path, "hf://org/lora", HF_ENDPOINT=hub.url)
    assert (found.source, files) == (f"hf://org/lora@{COMMIT}", LARGE)
    assert found.checksums[WEIGHTS] == hashlib.sha256(LARGE[WEIGHTS]).hexdigest()
    assert not any("vocab" in each.path or "README" in each.path for each in hub.asked), "only the two are fetched"
    other = "f" * 40
    hub.commits["v2.0"] = other
    found, files = await arrived(tmp_path, "hf://org/lora@v2.0/small/v2", HF_ENDPOINT=hub.url)
    assert (found.source, files, found.checksums) == (f"hf://org/lora@{other}/small/v2", FILES, SUMS)
    hub.commits["refs/pr/7"] = other
    found, _ = await arrived(tmp_path, "hf://org/lora@refs%2Fpr%2F7/small/v2", HF_ENDPOINT=hub.url)
    assert found.source == f"hf://org/lora@{other}/small/v2"


async def test_a_hub_fetch_goes_on_and_is_checked(tmp_path: Path, hub: Elsewhere) -> None:
    hub.faults += [Fault(503), Fault(), Fault(after=1_200_000)]
    assert (await arrived(tmp_path, "hf://org/lora", HF_ENDPOINT=hub.url))[1] == LARGE
    for name in (CONFIG, WEIGHTS):
        hub.digests = {name: hashlib.sha256(b"other").hexdigest()[: 40 if name == CONFIG else 64]}
        with pytest.raises(SourceUnavailable, match="checksum"):
            await arrived(tmp_path, "hf://org/lora", HF_ENDPOINT=hub.url)


async def test_a_repository_that_was_renamed_is_found(tmp_path: Path, hub: Elsewhere) -> None:
    """A hub leads from the old name, and from one in other letters, to the new one; the token goes nowhere else."""
    hub.token = "hf_secret"
    for name in (CONFIG, WEIGHTS):
        hub.redirects[f"/Org/Old/resolve/{COMMIT}/{name}"] = f"/org/lora/resolve/{COMMIT}/{name}"
    hub.redirects["/api/models/Org/Old/revision/main"] = "/api/models/org/lora/revision/main"
    found, files = await arrived(tmp_path, "hf://Org/Old", HF_ENDPOINT=hub.url, HF_TOKEN="hf_secret")
    assert (found.source, files) == (f"hf://Org/Old@{COMMIT}", LARGE)
    with elsewhere() as other:
        for place in (f"{other.url}/api/models/org/lora/revision/main", other.url.removeprefix("http:") + "/api"):
            hub.redirects["/api/models/Org/Old/revision/main"] = place
            with pytest.raises(SourceRefused, match="answers 302"):
                await arrived(tmp_path, "hf://Org/Old", HF_ENDPOINT=hub.url, HF_TOKEN="hf_secret")
        assert other.asked == []
    hub.redirects["/api/models/Org/Old/revision/main"] = "/api/models/Org/Old/revision/main"
    with pytest.raises(SourceRefused, match="answers 302"):
        await arrived(tmp_path, "hf://Org/Old", HF_ENDPOINT=hub.url, HF_TOKEN="hf_secret")


async def test_the_token_goes_to_the_hub_and_nowhere_else(tmp_path: Path, hub: Elsewhere) -> None:
    hub.token = "hf_secret"
    with pytest.raises(SourceRefused, match="set HF_TOKEN"):
        await arrived(tmp_path, "hf://org/lora", HF_ENDPOINT=hub.url)
    with pytest.raises(SourceRefused, match="Check what HF_TOKEN may read") as refused:
        await arrived(tmp_path, "hf://org/lora", HF_ENDPOINT=hub.url, HF_TOKEN="hf_other")
    assert "hf_other" not in refused.value.message
    with elsewhere() as cdn:
        cdn.files["/w"] = LARGE[WEIGHTS]
        hub.redirects[f"/org/lora/resolve/{COMMIT}/{WEIGHTS}"] = f"{cdn.url}/w?sig=1"
        _, files = await arrived(tmp_path, "hf://org/lora", HF_ENDPOINT=hub.url, HF_TOKEN="hf_secret")
        assert files == LARGE
        assert [each.headers.get("authorization") for each in cdn.asked] == [None]
    assert {each.headers.get("authorization") for each in hub.asked[-2:]} == {"Bearer hf_secret"}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("hf://org/none", "shows no repository org/none"),
        ("hf://org/lora@nowhere", "has no revision nowhere"),
        ("hf://org/lora/small", "has no adapter_config.json and adapter_model.safetensors"),
        ("hf://org/pickled", "pickle"),
    ],
)
async def test_what_a_hub_does_not_have(tmp_path: Path, hub: Elsewhere, source: str, words: str) -> None:
    hub.files |= {f"/org/pickled/{CONFIG}": b"{}", "/org/pickled/adapter_model.bin": b"x"}
    with pytest.raises((SourceRefused, AdapterRejected), match=words):
        await arrived(tmp_path, source, HF_ENDPOINT=hub.url)


async def test_what_a_place_says_of_the_two_files_counts_though_it_is_not_fetched(
    tmp_path: Path, web: Elsewhere
) -> None:
    """A training's start and a reward model have the same two files as an adapter that can be served."""
    for name, data in FILES.items():
        for place in ("/org/lora/pissa_backup", "/org/rm", "/org/old", "/bucket/out/pissa_backup", "/bucket/rm"):
            web.files[f"{place}/{name}"] = data
    web.files |= {"/org/rm/value_head.safetensors": b"x", "/org/old/value_head.bin": b"x"}
    web.files["/bucket/rm/value_head.safetensors"] = b"x"
    web.files["/pissa_backup.tar.gz"] = gz(tar())
    store = credentials(web) | {"HF_ENDPOINT": web.url}
    for source, reason in (
        ("hf://org/lora/pissa_backup", "pissa_backup"),
        ("hf://org/rm", "reward_model"),
        ("hf://org/old", "reward_model"),
        ("s3://bucket/out/pissa_backup", "pissa_backup"),
        ("s3://bucket/rm", "reward_model"),
        (f"{web.url}/pissa_backup.tar.gz", "pissa_backup"),
    ):
        with pytest.raises(AdapterRejected) as refused:
            await arrived(tmp_path, source, **store)
        assert refused.value.reason == reason, source


async def test_what_is_no_hub_is_told_so(tmp_path: Path, web: Elsewhere) -> None:
    web.commits["main"] = "no commit"
    web.files["/org/lora/x"] = b""
    with pytest.raises(SourceRefused, match="is no hub"):
        await arrived(tmp_path, "hf://org/lora", HF_ENDPOINT=web.url)
    with pytest.raises(SourceRefused, match="HF_ENDPOINT must be an https"):
        await arrived(tmp_path, "hf://org/lora", HF_ENDPOINT="http://example.org")


# --- an object store -----------------------------------------------------------------------------------------------


def credentials(store: Elsewhere) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "AKIDOFTHETEST",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": store.url,
        "AWS_REGION": "eu-central-1",
    }


async def test_a_prefix_of_a_bucket(tmp_path: Path, web: Elsewhere) -> None:
    for name, data in LARGE.items():
        web.files[f"/bucket/loras/cs/{name}"] = data
    found, files = await arrived(tmp_path, "s3://bucket/loras/cs/", **credentials(web))
    assert (found.source, files) == ("s3://bucket/loras/cs", LARGE)
    assert all("AKIDOFTHETEST" in each.headers["authorization"] for each in web.asked)


async def test_an_archive_in_a_bucket_that_breaks_off(tmp_path: Path, web: Elsewhere) -> None:
    web.files["/bucket/a.tar"] = tar({**LARGE, "a.log": os.urandom(9_000_000)})
    web.faults += [Fault(after=1000), Fault(503), Fault(after=5_000_000), Fault(), Fault(after=10)]
    assert (await arrived(tmp_path, "s3://bucket/a.tar", **credentials(web)))[1] == LARGE
    assert len({each.headers["range"] for each in web.asked if each.method == "GET"}) == 2, "two pieces, in turn"


async def test_what_a_bucket_says_of_its_content_is_checked(tmp_path: Path, web: Elsewhere) -> None:
    web.files["/bucket/a.tar"] = tar()
    web.extra = {"ETag": '"00000000000000000000000000000000"'}
    web.tags = False
    with pytest.raises(SourceUnavailable, match="md5 checksum"):
        await arrived(tmp_path, "s3://bucket/a.tar", **credentials(web))
    for told in ({"ETag": '"00000000000000000000000000000000-2"'}, {"x-amz-server-side-encryption": "aws:kms"}):
        web.extra |= told  # then the tag is no md5
        assert (await arrived(tmp_path, "s3://bucket/a.tar", **credentials(web)))[1] == FILES


async def test_what_a_bucket_does_not_have_or_give(tmp_path: Path, web: Elsewhere) -> None:
    with pytest.raises(AdapterRejected, match=r"s3://bucket/cs has no adapter_config\.json"):
        await arrived(tmp_path, "s3://bucket/cs", **credentials(web))
    with pytest.raises(AdapterRejected, match=r"There is no s3://bucket/a\.zip"):
        await arrived(tmp_path, "s3://bucket/a.zip", **credentials(web))


@pytest.mark.parametrize("status", [400, 401, 403])  # 400: what S3 says of HEAD with credentials that have expired
async def test_a_bucket_that_says_no_is_not_one_that_is_away(tmp_path: Path, web: Elsewhere, status: int) -> None:
    web.refusals["/bucket/a.tar"] = status
    with pytest.raises(SourceRefused, match=r"may not be read.*Check AWS_ACCESS_KEY_ID"):
        await arrived(tmp_path, "s3://bucket/a.tar", **credentials(web))


@dataclass(frozen=True)
class Gcs:
    """Says what gcsfs 2026.10 says of 401 and 403 (retry.py, validate_response)."""

    error: Exception
    loop: asyncio.AbstractEventLoop = field(default_factory=get_loop)

    async def _info(self, path: str) -> None:
        raise self.error


class HttpError(Exception):
    code = 401


@pytest.mark.parametrize("error", [OSError("Forbidden: https://example.org/x\nno access"), HttpError("who?")])
def test_google_that_says_no_is_not_one_that_is_away(error: Exception) -> None:
    file = BucketFile(Gcs(error), "gs", "bucket/a.tar")
    with (
        pytest.raises(SourceRefused, match=r"may not be read.*Check GOOGLE_APPLICATION_CREDENTIALS"),
        file.open(0, None, Progress("1", None, "gs://bucket/a.tar", 0.0)),
    ):
        pass


async def test_a_missing_package_is_one_sentence(tmp_path: Path) -> None:
    if importlib.util.find_spec("gcsfs") is not None:
        pytest.skip("gcsfs is installed here")
    with pytest.raises(SourceRefused, match=r"gs:// needs the extra loragate\[gs\], which is not installed"):
        await arrived(tmp_path, "gs://bucket/cs")


# --- ways out ------------------------------------------------------------------------------------------------------


async def test_who_leaves_takes_the_fetch_along(
    tmp_path: Path, web: Elsewhere, caplog: pytest.LogCaptureFixture
) -> None:
    web.files["/a.tar"] = tar(LARGE)
    web.faults.append(Fault(after=2_000_000, hang=True))
    async with arrivals(tmp_path) as ways:
        opening = asyncio.ensure_future(_files(ways, f"{web.url}/a.tar"))
        await asyncio.to_thread(web.hanging.wait)
        (each,) = ways.running
        while not each.bytes_done:  # a thread counts
            await asyncio.sleep(0.001)
        assert (each.phase, each.bytes_total, each.source) == ("fetching", len(tar(LARGE)), f"{web.url}/a.tar")
        opening.cancel()
        await asyncio.sleep(0)
        opening.cancel()  # as a gateway that ends does: once for the request, once for every task
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert ways.running == ()
        assert os.listdir(tmp_path / "adapters") == [], "at once, though the server still hangs"
        del opening
    while any(thread.name.startswith("intake") for thread in threading.enumerate()):
        await asyncio.sleep(0.001)
    await asyncio.sleep(0)
    gc.collect()
    assert [each for each in caplog.records if each.name == "asyncio"] == [], "nothing is left for the log"


@pytest.mark.parametrize("source", ["http://{}/a.tar", "hf://org/lora", "s3://bucket/a.tar"])
async def test_a_server_that_says_nothing_at_all_holds_nobody_up(tmp_path: Path, source: str) -> None:
    """It is waited for up to a minute. No thread may be left then: a process ends when they have ended."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        host = f"127.0.0.1:{mute.getsockname()[1]}"
        there = Elsewhere(port=mute.getsockname()[1])
        async with arrivals(tmp_path, **credentials(there), HF_ENDPOINT=there.url) as ways:
            opening = asyncio.ensure_future(_files(ways, source.format(host)))
            connection, _ = await asyncio.to_thread(mute.accept)
            with connection:
                connection.settimeout(20)
                assert await asyncio.to_thread(connection.recv, 65536)
                opening.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await opening
                assert await asyncio.to_thread(connection.recv, 1) == b"", "the gateway has hung up"


async def test_a_gateway_that_ends_stops_its_fetches(tmp_path: Path, web: Elsewhere) -> None:
    web.files["/a.tar"] = tar(LARGE)
    web.faults.append(Fault(after=2_000_000, hang=True))
    async with arrivals(tmp_path) as ways:
        opening = asyncio.ensure_future(_files(ways, f"{web.url}/a.tar"))
        await asyncio.to_thread(web.hanging.wait)
        await ways.close()
        with pytest.raises(Unavailable, match="stopping"):
            await opening


async def test_what_is_here_does_not_wait_for_what_is_far(tmp_path: Path, web: Elsewhere) -> None:
    """Four servers that give nothing more hold up other fetches, and neither an upload nor an archive on this disk."""
    web.files["/a.tar"] = tar(LARGE)
    web.faults += [Fault(after=1000, hang=True)] * 4
    (tmp_path / "mine.tar").write_bytes(tar())
    async with arrivals(tmp_path) as ways:
        far = [asyncio.ensure_future(_files(ways, f"{web.url}/a.tar")) for _ in range(4)]
        while len(web.asked) < 4:
            await asyncio.sleep(0.001)
        async with asyncio.timeout(10):
            assert await _files(ways, str(tmp_path / "mine.tar")) == FILES
            async with ways.upload("a.tar", total=None) as upload:
                await upload.write(tar())
                assert set((await upload.arrived()).checksums) == {CONFIG, WEIGHTS}
        web.released.set()
        assert await asyncio.gather(*far) == [LARGE] * 4


async def test_an_upload_in_small_pieces(tmp_path: Path) -> None:
    async with arrivals(tmp_path) as ways, ways.upload("me/a.tar.gz", total=7, name="cs") as upload:
        for at in range(0, len(packed := gz(tar(LARGE))), 50_000):
            await upload.write(packed[at : at + 50_000])
        (each,) = ways.running
        assert (each.phase, each.bytes_done, each.bytes_total, each.name) == ("receiving", len(packed), 7, "cs")
        found = await upload.arrived()
        assert (found.source, set(found.checksums)) == ("upload:a.tar.gz", {CONFIG, WEIGHTS})
        assert (found.folder / WEIGHTS).read_bytes() == LARGE[WEIGHTS]


async def test_a_sweep_leaves_what_is_on_its_way_and_takes_what_a_crash_left(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "adapters")
    left = tmp_path / "adapters" / ".draft-in-0123456789abcdef"
    async with arrivals(tmp_path) as ways, ways.upload("a.tar", total=None) as upload:
        await upload.write(tar())
        left.mkdir()
        (left / "archive").write_bytes(b"x")
        assert shelf.sweep((), lambda name: True) == (left.name,)
        assert (await upload.arrived()).folder.is_dir()


# --- what is no source ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        *("adapter", "./adapter", "ftp://example.org/a.tar", "file:///etc", "javascript://x", "s3:/bucket/x"),
        *(
            "https://",
            "https:///a.tar",
            "https://example.org:99999/a.tar",
            "https://[::1/a.tar",
            "https://exa mple/a.tar",
        ),
        *("http://example.org/a.tar", "http://127.0.0.1.example.org/a.tar", "http://2130706433.example/a.tar"),
        *("https://example.org/", "https://example.org/a.tar.xz", "https://example.org/x?y=a.tar"),
        *("hf://", "hf://lora", "hf://org/lora/../x", "hf://org/lora@a@b", "hf://org/lora@..%2Fx", "hf://org/lora?x=1"),
        *("s3://bucket", "s3://", "s3://bucket/../x", "s3://bucket//x", "gs://b/\n", "gcs://bucket/./x"),
    ],
)
async def test_what_is_no_source(tmp_path: Path, source: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await arrived(tmp_path, source)
    assert refused.value.param == "source"
    assert refused.value.message.endswith(".")


@pytest.mark.parametrize(
    "source",
    [
        *("https://me:hunter2@example.org/a.tar", "https://hunter2@example.org/a.tar", "https://me:hunter2@:1/a.tar"),
        *("s3://AKID:hunter2@bucket/x", "gs://me:hunter2@bucket/x", "hf://me:hunter2@org/lora", "ftp://me:hunter2@x/y"),
    ],
)
async def test_a_password_in_a_source_is_never_repeated(tmp_path: Path, source: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await arrived(tmp_path, source)
    assert "hunter2" not in refused.value.message
