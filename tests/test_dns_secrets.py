"""Cookie secrets: shared by a file, replaced while serving, inherited from the process before."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbcore import ConfigError
from lbcore.cli.cookies import Secrets
from lbcore.dns._cookies import Cookies

ONE, TWO = "e5e973e5a6b2a43f48e7dc849e37bfcf", "445536BCD2513298075A5D379663C962"
HOME, CLIENT, NOW = bytes((192, 0, 2, 1)), b"12345678", 1_800_000_000


def made(cookies: Cookies) -> bytes:
    found = cookies.answer(CLIENT, HOME, NOW)
    assert found is not None
    return found[1]


def taken(cookies: Cookies, cookie: bytes) -> bool:
    found = cookies.answer(cookie, HOME, NOW)
    assert found is not None
    return found[0]


BY_ONE, BY_TWO = (made(Cookies(bytes.fromhex(text))) for text in (ONE, TWO))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "secret"


def test_two_servers_take_each_other_s_cookies_at_every_step_of_a_rollover(file: Path) -> None:
    other = file.with_name("other")
    for path in (file, other):
        path.write_text(f"# shared by all\n{ONE}  # makes\n\n")
    servers = Secrets(file), Secrets(other)
    cookies = [made(servers[0].cookies)]
    for text in (f"{ONE}\n{TWO}\n", f"{TWO}\n{ONE}\n"):
        for server, path in zip(servers, (file, other), strict=True):
            path.write_text(text)
            server.configure(path)
            cookies += [made(each.cookies) for each in servers]
            assert all(taken(each.cookies, cookie) for each in servers for cookie in cookies)
    assert cookies[0] == BY_ONE and cookies[-1] == BY_TWO
    file.write_text(TWO)
    servers[0].configure(file)
    assert taken(servers[0].cookies, BY_TWO)


@pytest.mark.parametrize("text", ["", "\n", ONE[:-1], ONE + "00", f"{ONE}\n{TWO}\n{ONE}", "g" * 32, f"{ONE} {TWO}", "\xff\xfe"])
def test_a_file_of_anything_else_is_refused_and_changes_nothing(file: Path, text: str) -> None:
    file.write_text(ONE)
    secrets = Secrets(file)
    file.write_text(text, encoding="latin-1")
    for load in (Secrets, secrets.configure):
        with pytest.raises(ConfigError, match="dns.cookie_secret.*32 hexadecimal digits"):
            load(file)
    assert made(secrets.cookies) == BY_ONE


def test_a_file_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(ConfigError, match="dns.cookie_secret.*a file that can be read"):
        Secrets(file)


def test_a_process_that_takes_over_takes_the_cookies_of_the_one_before(file: Path) -> None:
    before, after = Secrets(), Secrets()
    cookie = made(before.cookies)
    assert not taken(after.cookies, cookie)
    after.inherit(before.pair)
    assert made(after.cookies) == cookie
    file.write_text(ONE)
    configured = Secrets(file)
    configured.inherit(before.pair)
    assert made(configured.cookies) == BY_ONE
    assert taken(configured.cookies, cookie)
    file.write_text(f"{ONE}\n{TWO}")
    configured.configure(file)
    configured.inherit(before.pair)  # both of the file are wanted: those of a secret that it does not name are not
    assert taken(configured.cookies, BY_TWO) and not taken(configured.cookies, cookie)
