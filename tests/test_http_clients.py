"""Other people's clients, unmodified, through the front door and the gateway: curl, httpx, aiohttp, the standard library."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import http.client
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import httpx
import pytest
import trustme
from proxying import Reader, Writer, origin, read_request
from sites import TEXT, WAYS, site, told, way_to

pytestmark = pytest.mark.slow
both = pytest.mark.parametrize("way", WAYS)

Curl = Callable[..., Awaitable[bytes]]


@pytest.fixture
def curl(program: Callable[[str], str]) -> Curl:
    """Run curl and give what it wrote; it must succeed."""
    path = program("curl")

    async def run(*arguments: str, body: bytes | None = None, errors: bool = False) -> bytes:
        process = await asyncio.create_subprocess_exec(
            path, "-sS", "--fail-with-body", "-m", "60", "--noproxy", "*", *arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, complaints = await process.communicate(body)
        assert process.returncode == 0, complaints.decode()
        return complaints if errors else output

    return run


# ===== curl


@both
async def test_curl_reads(way: str, curl: Curl, tmp_path: Path) -> None:
    async with site() as (_, url), way_to(url, way) as there:
        assert await curl(f"{there}/text") == TEXT
        assert await curl("--http1.0", f"{there}/text") == TEXT
        assert await curl("--http2", f"{there}/gzip") == TEXT
        assert gzip.decompress(await curl("-H", "Accept-Encoding: gzip", f"{there}/gzip")) == TEXT
        assert await curl("--compressed", f"{there}/gzip") == TEXT
        head = await curl("-I", f"{there}/big/12345")
        assert b"200 OK" in head and b"Content-Length: 12345\r\n" in head
        assert told(await curl("-L", f"{there}/again"))["target"] == "/echo"
        assert await curl(f"{there}/big/1000000", "-o", str(tmp_path / "big"), "-w", "%{size_download}") == b"1000000"


@both
async def test_curl_keeps_its_connection(way: str, curl: Curl) -> None:
    async with site() as (_, url), way_to(url, way) as there:
        urls = [f"{there}/{path}" for path in ("text", "status/204", "echo", "big/10", "again")] * 4
        shown = await curl("-w", "%{stderr}%{num_connects} ", *urls, errors=True)
        assert shown.split() == [b"1"] + [b"0"] * (len(urls) - 1)


@both
async def test_curl_writes(way: str, curl: Curl, tmp_path: Path) -> None:
    async with site() as (_, url), way_to(url, way) as there:
        assert told(await curl("-d", "a=b", f"{there}/echo"))["body"] == "a=b"
        assert told(await curl("-T", "-", "-X", "POST", f"{there}/echo", body=b"from a pipe"))["body"] == "from a pipe"
        (file := tmp_path / "file").write_bytes(big := bytes(range(256)) * 80_000)
        expected = f"{len(big)} {hashlib.sha256(big).hexdigest()}".encode()
        assert await curl("-T", str(file), f"{there}/sum") == expected
        assert await curl("-T", "-", f"{there}/sum", body=big) == expected
        (file := tmp_path / "small").write_text("of a form")
        assert "of a form" in told(await curl("-F", f"part=@{file}", f"{there}/echo"))["body"]


@both
async def test_curl_waits_for_100(way: str, curl: Curl) -> None:
    async with site() as (_, url), way_to(url, way) as there:
        wait = ("-v", "-H", "Expect: 100-continue", "--expect100-timeout", "50", "-X", "PUT", "-d", "x" * 5000)
        shown = await curl(*wait, f"{there}/sum", errors=True)
        assert shown.index(b"< HTTP/1.1 100 Continue") < shown.index(b"< HTTP/1.1 200 OK")
        with pytest.raises(AssertionError, match="417"):
            await curl(*wait, f"{there}/closed", errors=True)


@both
async def test_curl_sees_trailers(way: str, curl: Curl) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        head = b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head + b"2\r\nok\r\n0\r\nX-Sum: 42\r\n\r\n")
        await reader.read()

    async with origin(script) as bare, way_to(bare.url, way) as there:
        assert b"X-Sum: 42\r\n" in (await curl("--raw", f"{there}/")).partition(b"0\r\n")[2]


@pytest.mark.parametrize("secure", [False, True])
async def test_curl_behind_a_proxy_that_tells_of_it(secure: bool, curl: Curl, tmp_path: Path) -> None:
    """The PROXY header comes before TLS."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    options = {"tls": context} if secure else {}
    async with site() as (_, url), way_to(url, "front", proxy_protocol=True, **options) as there:
        shown = await curl("--haproxy-protocol", "--cacert", str(tmp_path / "ca.pem"), f"http{'s' * secure}://{there}/echo")
        fields = dict(told(shown)["fields"])
        assert fields["X-Forwarded-For"] == "127.0.0.1" and fields["X-Forwarded-Proto"] == ("https" if secure else "http")


# ===== httpx


async def slowly(parts: int) -> AsyncIterator[bytes]:
    for number in range(parts):
        await asyncio.sleep(0)
        yield b"%d," % number * 1000


@both
async def test_httpx(way: str) -> None:
    async with site() as (_, url), way_to(url, way) as there:
        async with httpx.AsyncClient(base_url=f"http://{there}", trust_env=False, follow_redirects=True, timeout=60) as client:
            assert (await client.get("/text")).content == (await client.get("/gzip")).content == TEXT
            assert (await client.head("/big/123")).headers["content-length"] == "123"
            assert (await client.get("/again")).json()["method"] == "GET"
            codes = [204, 304, 404, 418, 500, 599]
            assert [(await client.get(f"/status/{code}")).status_code for code in codes] == codes
            whole = b"".join([part async for part in slowly(50)])
            expected = f"{len(whole)} {hashlib.sha256(whole).hexdigest()}"
            assert (await client.put("/sum", content=slowly(50))).text == expected
            async with client.stream("GET", "/big/3000000") as response:
                assert sum([len(part) async for part in response.aiter_raw()]) == 3_000_000
            said = [f"{number}" for number in range(60)]
            answers = await asyncio.gather(*(client.post("/echo", content=each, headers={"X-Say": each}) for each in said))
            assert [(each.json()["body"], each.headers["x-said"]) for each in answers] == [(each, each) for each in said]
            fields = (await client.get("/echo", headers=[(b"X-Odd", "\u00e9 \"'".encode())])).json()["fields"]
            assert ["X-Odd", "\u00e9 \"'"] in fields and client.cookies["visited"] == "1"


async def test_httpx_over_tls() -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with site() as (_, url), way_to(url, "front", tls=context) as there:
        async with httpx.AsyncClient(base_url=f"https://{there}", verify=trusting, trust_env=False, timeout=60) as client:
            big = bytes(3_000_000)
            assert (await client.put("/sum", content=big)).text == f"{len(big)} {hashlib.sha256(big).hexdigest()}"
            assert (await client.get("/big/3000000")).content == big


# ===== aiohttp


@both
async def test_aiohttp(way: str) -> None:
    async with site() as (_, url), way_to(url, way) as there:
        async with aiohttp.ClientSession(f"http://{there}") as session:
            async with session.get("/text") as response:
                assert await response.read() == TEXT and response.headers["Transfer-Encoding"] == "chunked"
            async with session.put("/sum", data=slowly(20), expect100=True) as response:
                assert (await response.text()).startswith(f"{len(b''.join([part async for part in slowly(20)]))} ")
            async with session.post("/echo", data="\u00fc" * 10_000, compress="gzip", headers={"X-Say": "yes"}) as response:
                assert (await response.json())["body"] == "\u00fc" * 10_000 and response.headers["X-Said"] == "yes"
            async with session.get("/gzip") as response:
                assert await response.read() == TEXT


@both
async def test_server_sent_events_are_not_held_back(way: str) -> None:
    async with site() as (made, url), way_to(url, way) as there:
        async with aiohttp.ClientSession(f"http://{there}") as session, session.get("/events") as response:
            for number in range(3):
                assert await response.content.readuntil(b"\n\n") == b"data: %d\n\n" % number
                made.took.release()
            assert await response.content.read() == b""


# ===== the standard library


@both
async def test_http_client(way: str) -> None:
    def visit(there: str) -> None:
        connection = http.client.HTTPConnection(there, timeout=60)
        chunked = {"Transfer-Encoding": "chunked"}
        for number in range(5):
            connection.request("POST", "/echo", body=iter([b"a", b"b" * number]), encode_chunked=True, headers=chunked)
            assert json.load(connection.getresponse())["body"] == "a" + "b" * number
        connection.close()

    async with site() as (_, url), way_to(url, way) as there:
        await asyncio.to_thread(visit, there)
