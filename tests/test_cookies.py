"""What server cookies promise: the vectors of RFC 9018, a plain model of it, windows of time, secrets that change."""

from __future__ import annotations

import ipaddress
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("dns")

from lbcore.dns._cookies import Cookies

SECRET = bytes.fromhex("e5e973e5a6b2a43f48e7dc849e37bfcf")
OTHER = bytes.fromhex("445536bcd2513298075a5d379663c962")
ISSUED = 1559731985
CLIENT = b"2464c4ab"
HOME = ipaddress.ip_address("198.51.100.100").packed


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


# ===== a plain model


def siphash24(key: bytes, data: bytes) -> bytes:
    """Source: Aumasson and Bernstein 2012, in the order of the paper's pseudo-code."""
    mask = 2**64 - 1
    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def add_rotate(a: int, b: int, by: int, also: int = 0) -> None:
        v[a] = (v[a] + v[b]) & mask
        v[b] = ((v[b] << by) | (v[b] >> (64 - by))) & mask
        v[b] ^= v[a]
        if also:
            v[a] = ((v[a] << also) | (v[a] >> (64 - also))) & mask

    def compress(rounds: int) -> None:
        for _ in range(rounds):
            add_rotate(0, 1, 13, 32)
            add_rotate(2, 3, 16)
            add_rotate(0, 3, 21)
            add_rotate(2, 1, 17, 32)

    whole = data + bytes(7 - len(data) % 8) + bytes([len(data) % 256])
    for (word,) in struct.iter_unpack("<Q", whole):
        v[3] ^= word
        compress(2)
        v[0] ^= word
    v[2] ^= 0xFF
    compress(4)
    return struct.pack("<Q", v[0] ^ v[1] ^ v[2] ^ v[3])


def model(secrets: tuple[bytes, bytes], option: bytes, client: bytes, now: int) -> tuple[bool, bytes] | None:
    if len(option) != 8 and not 16 <= len(option) <= 40:
        return None
    current, previous = secrets
    age = None
    if len(option) == 24 and option[8] == 1:
        age = (now - int.from_bytes(option[12:16]) + 2**31) % 2**32 - 2**31
    if age is not None and -300 <= age <= 3600:
        if option[16:] == siphash24(current, option[:16] + client) and age <= 1800:
            return True, option
        valid = any(option[16:] == siphash24(secret, option[:16] + client) for secret in secrets)
    else:
        valid = False
    made = option[:8] + b"\1\0\0\0" + now.to_bytes(4)
    return valid, made + siphash24(current, made + client)


def test_the_model_s_hash_is_siphash() -> None:
    assert siphash24(bytes(range(16)), bytes(range(15))) == bytes.fromhex("e545be4961ca29a1")  # the paper's own example
    assert siphash24(bytes(range(16)), b"") == bytes.fromhex("310e0edd47db6f72")


# ===== RFC 9018, appendix A

VECTORS = {
    "A.1 a new cookie": (SECRET, SECRET, "198.51.100.100", "2464c4abcf10c957", ISSUED, "2464c4abcf10c957010000005cf79f111f8130c3eee29480"),
    "A.2 renewed after 40 minutes": (
        SECRET, SECRET, "198.51.100.100", "2464c4abcf10c957010000005cf79f111f8130c3eee29480", 1559734385,
        "2464c4abcf10c957010000005cf7a871d4a564a1442aca77",
    ),
    "A.3 reserved bytes of somebody else's": (
        SECRET, SECRET, "203.0.113.203", "fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5", 1559734700,
        "fc93fc62807ddb86010000005cf7a9acf73a7810aca2381e",
    ),
    "A.4 IPv6, made with the previous secret": (
        OTHER, bytes.fromhex("dd3bdf9344b678b185a6f5cb60fca715"), "2001:db8:220:1:59de:d0f4:8769:82b8",
        "22681ab97d52c298010000005cf7c57926556bd0934c72f8", 1559741961, "22681ab97d52c298010000005cf7c609a6bb79d16625507a",
    ),
}  # fmt: skip


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)
def test_the_vectors_of_the_rfc(vector: tuple[bytes, bytes, str, str, int, str]) -> None:
    current, previous, client, option, now, expected = vector
    found = Cookies(current, previous).answer(bytes.fromhex(option), packed(client), now)
    assert found is not None and found[1].hex() == expected


def test_reserved_bytes_are_part_of_what_is_hashed() -> None:
    option = bytes.fromhex("fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5")
    found = Cookies(SECRET).answer(option, packed("203.0.113.203"), 0x5CF78F71)
    assert found == (True, option)


PLAUSIBLE = st.builds(lambda a, b: a + b"\1\0\0\0" + b, st.binary(min_size=8, max_size=8), st.binary(min_size=12, max_size=12))


@given(
    st.binary(max_size=44) | PLAUSIBLE,
    st.sampled_from((4, 16)).flatmap(lambda n: st.binary(min_size=n, max_size=n)).filter(lambda a: a[:12] != bytes(10) + b"\xff\xff"),
    st.integers(0, 2**32 - 1),
    st.integers(-5000, 5000),
)  # fmt: skip
def test_every_option_is_judged_as_the_model_does(option: bytes, client: bytes, now: int, later: int) -> None:
    cookies = Cookies(SECRET, OTHER)
    found = cookies.answer(option, client, now)
    assert found == model((SECRET, OTHER), option, client, now)
    if found is not None:
        then = (now + later) % 2**32
        assert cookies.answer(found[1], client, then) == model((SECRET, OTHER), found[1], client, then)


# ===== who, when, with which secret


@pytest.mark.parametrize(
    ("age", "valid", "kept"),
    [
        (0, True, True), (1800, True, True), (1801, True, False), (3600, True, False), (3601, False, False),
        (-300, True, True), (-301, False, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("issued", [ISSUED, 2**32 - 100, 50])
def test_a_cookie_has_its_time(age: int, valid: bool, kept: bool, issued: int) -> None:
    cookies = Cookies()
    _, cookie = cookies.answer(CLIENT, HOME, issued) or (None, b"")
    assert (found := cookies.answer(cookie, HOME, (issued + age) % 2**32)) is not None
    assert (found[0], found[1] == cookie) == (valid, kept)


@pytest.mark.parametrize("at", range(24))
def test_a_cookie_that_was_touched_is_not_valid(at: int) -> None:
    cookies = Cookies(SECRET)
    _, cookie = cookies.answer(CLIENT, HOME, ISSUED) or (None, b"")
    spoiled = bytearray(cookie)
    spoiled[at] ^= 1
    assert (found := cookies.answer(bytes(spoiled), HOME, ISSUED)) is not None
    assert not found[0]


def test_a_cookie_belongs_to_its_address() -> None:
    cookies = Cookies()
    _, cookie = cookies.answer(CLIENT, HOME, ISSUED) or (None, b"")
    for address, valid in (("198.51.100.101", False), ("2001:db8::1", False), ("::ffff:198.51.100.100", True)):
        assert (cookies.answer(cookie, packed(address), ISSUED) or ())[:1] == (valid,)


@pytest.mark.parametrize("size", [*range(8), *range(9, 16), *range(41, 48)])
def test_a_size_that_no_cookie_has_is_malformed(size: int) -> None:
    assert Cookies().answer(bytes(size), HOME, ISSUED) is None


@pytest.mark.parametrize("size", [8, *range(16, 41)])
def test_any_other_size_gets_a_cookie(size: int) -> None:
    assert (found := Cookies().answer(bytes(size), HOME, ISSUED)) is not None
    assert (found[0], len(found[1]), found[1][:12]) == (False, 24, bytes(8) + b"\1\0\0\0")


def test_after_a_rotation_old_cookies_are_taken_once_more() -> None:
    cookies = Cookies(SECRET)
    _, cookie = cookies.answer(CLIENT, HOME, ISSUED) or (None, b"")
    cookies.rotate()
    assert (found := cookies.answer(cookie, HOME, ISSUED + 1)) is not None
    assert found[0] and found[1] != cookie
    cookies.rotate()
    assert (cookies.answer(cookie, HOME, ISSUED + 1) or ())[:1] == (False,)
    assert (cookies.answer(found[1], HOME, ISSUED + 1) or ())[:1] == (True,)


def test_servers_that_share_secrets_take_each_other_s_cookies_while_one_is_replaced() -> None:
    one, two = Cookies(SECRET), Cookies(SECRET)
    cookies = []
    for step in ((one, SECRET, OTHER), (two, SECRET, OTHER), (one, OTHER, SECRET), (two, OTHER, SECRET)):
        step[0].replace(*step[1:])
        for server in (one, two):
            cookies.append((server.answer(CLIENT, HOME, ISSUED) or (None, b""))[1])
        for cookie in cookies:
            assert all((server.answer(cookie, HOME, ISSUED) or ())[:1] == (True,) for server in (one, two))


def test_secrets_of_chance_differ() -> None:
    assert len({(Cookies().answer(CLIENT, HOME, ISSUED) or (None, b""))[1] for _ in range(8)}) == 8


@pytest.mark.parametrize("secret", [b"", bytes(15), bytes(17)])
def test_a_secret_has_16_bytes(secret: bytes) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Cookies(secret)
    cookies = Cookies(SECRET)
    with pytest.raises(ValueError, match="16 bytes"):
        cookies.replace(SECRET, secret)
    assert (cookies.answer(CLIENT, HOME, ISSUED)) == model((SECRET, SECRET), CLIENT, HOME, ISSUED)


@pytest.mark.parametrize("client", [b"", bytes(3), bytes(5), bytes(15), bytes(17)])
def test_an_address_has_4_or_16_bytes(client: bytes) -> None:
    with pytest.raises(ValueError, match="4 or 16"):
        Cookies().answer(CLIENT, client, ISSUED)


def test_readers_never_see_half_a_secret() -> None:
    """Each of two secrets makes a known cookie; while they take turns, every cookie made is one of the two."""
    cookies = Cookies(SECRET)
    known = {(made := model((secret, secret), CLIENT, HOME, ISSUED)) and made[1] for secret in (SECRET, OTHER)}
    stop = threading.Event()

    def turn() -> None:
        while not stop.is_set():
            cookies.replace(OTHER)
            cookies.replace(SECRET)

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        seen = {(cookies.answer(CLIENT, HOME, ISSUED) or (None, b""))[1] for _ in range(20_000)}
    finally:
        stop.set()
        thread.join()
    assert seen <= known
