"""The commands: what they print, where, and with which exit code."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import dns.edns
import dns.message
import dns.query
import pytest
from typer.testing import CliRunner, Result

from lbcore import Balancer, Decision, NoRegionError, NotPrimaryError, ServiceError, UnknownRegionError, __version__
from lbcore.cli.app import app
from lbcore.cli.common import Failure, exit_code

ROOT = Path(__file__).parent.parent
THREE = str(ROOT / "examples" / "three-regions.toml")


def lbcore(*args: str) -> Result:
    return CliRunner().invoke(app, list(args), env={"COLUMNS": "140"})


def given_json(*args: str) -> Any:
    done = lbcore(*args, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def refused(*args: str) -> tuple[int, list[str]]:
    """Give exit code and lines on stderr of a command that prints nothing else and no traceback."""
    done = lbcore(*args)
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert all(line.startswith("lbcore: ") for line in lines), done.stderr
    return done.exit_code, [line.removeprefix("lbcore: ") for line in lines]


# ===== choose


def test_pick_names_a_region_and_its_gateway() -> None:
    found = given_json("pick", "203.0.113.7", "--config", THREE)
    lb = Balancer.from_toml(THREE)
    region = lb.pick("203.0.113.7")
    assert (found["region"], found["gateway"], found["addresses"]) == (region.name, region.gateway, [*region.addresses])
    assert (found["client"], found["group"], found["scope"]) == ("203.0.113.7", *lb.match("203.0.113.7"))
    assert lbcore("pick", "203.0.113.7", "-c", THREE).stdout == f"{region.name}\n"


@pytest.mark.parametrize(("client", "region"), [("81.2.69.160", "westeurope"), ("8.8.8.8", "westus2"), ("202.45.84.58", "eastasia")])
def test_public_clients_go_to_the_region_near_them(client: str, region: str) -> None:
    assert given_json("pick", client, "-c", THREE)["region"] == region


def test_rank_lists_every_region_in_the_order_of_the_balancer() -> None:
    found = given_json("rank", "8.8.8.8", "-c", THREE)
    assert [row["region"] for row in found["regions"]] == [r.name for r in Balancer.from_toml(THREE).rank("8.8.8.8")]
    assert [row["rank"] for row in found["regions"]] == [1, 2, 3]
    assert found["regions"][0]["estimate_ms"] < found["regions"][1]["estimate_ms"]
    table = lbcore("rank", "8.8.8.8", "-c", THREE).stdout.splitlines()
    assert [line.split()[1] for line in table] == ["region", *(row["region"] for row in found["regions"])]


@pytest.mark.parametrize("client", ["203.0.113.7", "8.8.8.8", "10.1.2.3", "2001:4860:4860::8888"])
def test_explain_replays_to_the_same_pick(client: str) -> None:
    assert Decision.replay(given_json("explain", client, "-c", THREE)) == given_json("pick", client, "-c", THREE)["region"]


def test_explain_speaks() -> None:
    text = lbcore("explain", "8.8.8.8", "-c", THREE).stdout
    assert "westus2, its home" in text
    assert "prior only" in text


def test_explain_tells_a_name_from_a_client() -> None:
    found = given_json("explain", "lbcore.test", "--subnet", "81.2.69.0/24", "-c", THREE)
    assert (found["regions"], found["hops"][0]["method"], found["ttl"]) == (["westeurope"], "performance", 30)
    assert "westeurope is the closest that is up" in lbcore("explain", "lbcore.test", "--subnet", "81.2.69.9", "-c", THREE).stdout
    assert refused("explain", "www.example.org", "-c", THREE)[0] == 4
    assert refused("explain", "lbcore.test", "--subnet", "81.2.69.0/99", "-c", THREE)[0] == 2
    assert refused("explain", "a..b", "-c", THREE)[0] == 2
    assert refused("explain", "8.8.8.8", "--subnet", "10.0.0.0/8", "-c", THREE)[0] == 2


def test_geo_option_replaces_the_database(tmp_path: Path) -> None:
    broken = tmp_path / "broken.mmdb"
    broken.write_bytes(b"\0" * 5000)
    code, lines = refused("pick", "8.8.8.8", "-c", THREE, "--geo", str(broken))
    assert code == 2
    assert str(broken) in lines[0]
    assert refused("pick", "8.8.8.8", "-c", THREE, "--geo", str(tmp_path / "none.mmdb"))[0] == 4


def test_nothing_enabled_is_unavailable(tmp_path: Path) -> None:
    file = tmp_path / "lbcore.toml"
    file.write_text('[[service.regions]]\nname = "eastus"\nenabled = false\n')
    assert refused("pick", "8.8.8.8", "-c", str(file))[0] == 5
    assert given_json("explain", "8.8.8.8", "-c", str(file))["region"] is None


# ===== errors


def test_ten_mistakes_are_ten_lines(tmp_path: Path) -> None:
    file = tmp_path / "lbcore.toml"
    file.write_text("".join(f'[[service.regions]]\nname = "eastus"\nunits = -{i}\n' for i in range(1, 6)) + "colour = 1\n")
    for command in (["check", str(file)], ["pick", "8.8.8.8", "-c", str(file)]):
        code, lines = refused(*command)
        assert code == 2
        assert len(lines) == 10
        assert all(line.startswith(f"{file}: service.regions[") for line in lines)


@pytest.mark.parametrize("client", ["", "8.8.8", "example.com", "8.8.8.8/24", "::g"])
def test_what_is_no_address_is_refused(client: str) -> None:
    code, lines = refused("pick", client, "-c", THREE)
    assert code == 2
    assert len(lines) == 1
    assert repr(client) in lines[0]


def test_a_node_without_regions_of_its_own_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.write_text('[dns]\n[sync]\nprimary = "http://127.0.0.1:9180"\n')
    assert given_json("check", str(file)) == {"config": str(file), "ok": True, "groups": 0, "regions": []}
    assert "the primary's" in lbcore("check", str(file)).stdout
    file.write_text('[dns]\n[sync]\nprimary = "http://192.0.2.1:9180"\n')
    assert refused("check", str(file))[0] == 2


def test_files_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused("check", "/nowhere.toml") == (4, ["/nowhere.toml: no such file"])
    monkeypatch.chdir(tmp_path)
    code, lines = refused("pick", "8.8.8.8")
    assert code == 4
    assert "--config" in lines[0]
    assert refused("check", str(tmp_path))[0] == 2  # a folder


def test_misspelt_commands_and_options() -> None:
    code, lines = refused("pik", "8.8.8.8")
    assert code == 2
    assert "pick" in lines[0]
    assert refused("pick", "8.8.8.8", "--jsn")[0] == 2


def test_exit_codes() -> None:
    errors = [Failure(""), UnknownRegionError("x", ()), NoRegionError(), ServiceError("Fenced", ""), NotPrimaryError(None), Failure("", 3)]
    assert [exit_code(error) for error in errors] == [2, 4, 5, 3, 5, 3]


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Balancer, client: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(Balancer, "explain", broken)
    assert str(lbcore("explain", "8.8.8.8", "-c", THREE).exception) == "a bug"


# ===== check


@contextmanager
def gateway(status: int) -> Iterator[int]:
    """Serve one status to everybody in a thread; gives the port."""
    loop = asyncio.new_event_loop()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status)
        await writer.drain()
        writer.close()

    server = loop.run_until_complete(asyncio.start_server(answer, "127.0.0.1", 0))
    thread = Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def service(tmp_path: Path, *ports: int) -> str:
    file = tmp_path / "lbcore.toml"
    regions = zip(("eastus", "westeurope", "japaneast"), ports, strict=False)
    file.write_text("".join(f'[[service.regions]]\nname = "{name}"\ngateway = "http://127.0.0.1:{port}"\n' for name, port in regions))
    return str(file)


def test_check_says_what_it_read() -> None:
    found = given_json("check", THREE)
    assert found["ok"] is True
    assert [row["region"] for row in found["regions"]] == ["westus2", "westeurope", "eastasia"]
    assert "nothing wrong" in lbcore("check", THREE).stdout


@pytest.mark.slow
def test_check_probes_gateways(tmp_path: Path) -> None:
    with gateway(200) as good, gateway(503) as bad:
        assert given_json("check", service(tmp_path, good), "--probe")["regions"][0]["probe"] == "ok"
        done = lbcore("check", service(tmp_path, good, bad, 9), "--probe", "--json")
    assert done.exit_code == 5
    found = json.loads(done.stdout)
    assert found["ok"] is False
    assert [row["probe"].partition(":")[0] for row in found["regions"]] == ["ok", "status", "refused"]
    assert [line.split(":")[1].strip() for line in done.stderr.splitlines()] == ["westeurope", "japaneast"]


# ===== geo and bench


def test_geo_info_of_the_embedded_geography() -> None:
    found = given_json("geo", "info")
    assert found["groups"] == Balancer.from_toml(THREE).table.groups
    assert sum(found[f"groups_{p}"] for p in ("none", "wide", "region", "point")) == found["groups"]
    assert 90 < 100 - found["ipv4_none_percent"] <= 100
    assert "embedded" in lbcore("geo", "info").stdout


def test_geo_lookup() -> None:
    found = given_json("geo", "lookup", "81.2.69.160")
    assert (found["country"], found["key"]) == ("GB", "GB")
    assert found["network"].startswith("81.2.")
    assert given_json("geo", "lookup", "10.0.0.1") == {
        "client": "10.0.0.1", "group": 0, "key": "", "network": "10.0.0.0/8", "country": None, "lat": None, "lon": None,
        "precision": "none",
    }  # fmt: skip


def test_geo_build_refuses_what_is_no_database(tmp_path: Path) -> None:
    out = tmp_path / "out.xz"
    assert refused("geo", "build", "/nowhere/4.mmdb", "/nowhere/6.mmdb", str(out))[0] == 4
    assert refused("geo", "build", THREE, THREE, str(out))[0] == 2
    assert not out.exists()


@pytest.mark.slow
def test_bench_measures() -> None:
    found = given_json("bench", "--seconds", "0.3", "--regions", "70")
    assert found["regions"] == 70
    assert all(0 < ns < 1e9 for ns in found["ns"].values())
    assert found["ns"]["table.pick(group)"] < found["ns"]["lb.rank(client)"]


# ===== dns


@pytest.mark.slow
def test_dns_serves_until_interrupted(tmp_path: Path) -> None:
    with gateway(200) as port:
        file = Path(service(tmp_path, port))
        file.write_text(file.read_text() + 'addresses = ["192.0.2.1"]\n[dns]\nlisten = "127.0.0.1:0"\nmetrics = ""\n')
        command = [sys.executable, "-m", "lbcore", "dns", "serve", "-c", str(file)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
            assert server.stdout
            words = server.stdout.readline().split()
            name, where = words[2], int(words[words.index("port") + 1].rstrip(","))
            query = dns.message.make_query(name, "A", use_edns=True, options=[dns.edns.ECSOption("8.8.8.0", 24)])
            answers = [ask(query, "127.0.0.1", port=where, timeout=5) for ask in (dns.query.udp, dns.query.tcp)]
            server.send_signal(signal.SIGINT)
            _, errors = server.communicate(timeout=10)
    assert [[record.address for record in answer.answer[0]] for answer in answers] == [["192.0.2.1"]] * 2
    assert (server.returncode, errors) == (0, "")


def test_dns_refuses_where_it_cannot_listen() -> None:
    code, lines = refused("dns", "serve", "-c", THREE, "--no-probe", "--listen", "192.0.2.1:53")
    assert code == 5
    assert "192.0.2.1 port 53" in lines[0]
    assert refused("dns", "serve", "-c", THREE, "--listen", "53")[0] == 2
    assert refused("dns", "serve", "-c", THREE, "--listen", "127.0.0.1:x")[0] == 2


# ===== as a program


def program(*args: str, code: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "lbcore"]
    return subprocess.run([*command, *args], cwd=ROOT, capture_output=True, text=True, timeout=60, env=os.environ | env)


def test_version_and_help() -> None:
    assert lbcore("--version").stdout == f"lbcore {__version__}\n"
    for command in ("pick", "rank", "explain", "check", "geo info", "geo lookup", "geo build", "bench", "dns serve"):
        done = lbcore(*command.split(), "--help")
        assert done.exit_code == 0
        assert f"Example: lbcore {command}" in done.stdout


@pytest.mark.slow
def test_module_and_exit_codes_of_the_process() -> None:
    done = program("pick", "203.0.113.7", "--config", THREE, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["region"]
    done = program("pick", "nonsense", "--config", THREE)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("module", "extra"), [("typer", "cli"), ("rich", "cli"), ("pydantic", "cli"), ("dns", "dns")])
def test_a_missing_extra_is_named(module: str, extra: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None\nfrom lbcore.cli import main; main()"
    done = program("dns", "serve", "--config", THREE, code=code)
    assert done.returncode == 2
    assert done.stderr == f"lbcore: this command needs {module}, which is not installed: pip install 'lbcore[{extra}]'\n"
