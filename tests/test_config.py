"""lbcore.toml: what it becomes, and that everything wrong with it is said at once, with file, key, value, expectation and nearest name."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from dns.dnssectypes import Algorithm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbcore import Balancer, ConfigError, PrefixMap
from lbcore.config import EXPECTED, MONITOR_SETTINGS, Settings, load, parse
from lbcore.dns.configured import profiles_of, zones_of
from lbcore.dns.dnssec import Signer
from lbcore.dns.keyfiles import create
from lbcore.dns.keys import Timing
from lbcore.dns.profile import Endpoint, Profile
from lbcore.http.transport import AsyncBalancedTransport
from lbcore.sense.monitor import Monitor

ROOT = Path(__file__).parent.parent
REGIONS = [{"name": "westeurope"}, {"name": "eastus"}]


def of(**tables: Any) -> dict[str, Any]:
    return {"service": {"regions": REGIONS}} | tables


def violations(data: dict[str, Any]) -> dict[str, tuple[object, str, str | None]]:
    with pytest.raises(ConfigError) as caught:
        parse(data, "x.toml")
    found = {v.where.removeprefix("x.toml: "): (v.value, v.expected, v.nearest) for v in caught.value.violations}
    assert len(found) == len(caught.value.violations)
    return found


# ===== what is given


def test_regions_are_all_that_is_required_and_defaults_are_the_designs() -> None:
    made = parse(of())
    assert [region.name for region in made.regions] == ["westeurope", "eastus"]
    assert made.regions[0].lat == pytest.approx(52.37, abs=0.01)
    assert (made.monitor.interval, made.monitor.timeout, made.monitor.tolerated, made.monitor.rise, made.ttl) == (5, 2, 2, 2, 30)
    assert made.monitor == Monitor()
    assert AsyncBalancedTransport(Balancer(made.regions), **made.transport_options())
    assert [str(name) for zone in zones_of(made) for name in zone.steered_names] == ["lbcore.test."]
    assert made.primary is None
    assert made.dns_listen == [("127.0.0.1", 5353)]


def test_the_primary_is_the_first_region() -> None:
    made = parse({"service": {"name": "Contoso", "domain": "example", "primary": {"name": "West US 2", "units": 2}, "regions": REGIONS}})
    assert [region.name for region in made.regions] == ["westus2", "westeurope", "eastus"]
    assert (made.primary, made.regions[0].display_name, made.regions[0].units) == (made.regions[0], "West US 2", 2)
    (zone,) = zones_of(made)
    assert ([*zone.profiles], zone.origin) == (["contoso"], "example")


def test_a_primary_alone_is_enough() -> None:
    assert len(parse({"service": {"primary": {"name": "eastus"}}}).regions) == 1


def test_strict_azure_brings_traffic_managers_defaults() -> None:
    made = parse(of(traffic_manager={"monitor": {"strict_azure": True}}))
    assert made.monitor == Monitor.azure()
    assert made.ttl == 60


def test_monitor_keys_are_those_of_traffic_manager() -> None:
    monitor = {
        "protocol": "HTTPS", "port": 8443, "path": "/ready", "interval_in_seconds": 10, "timeout_in_seconds": 3.5,
        "tolerated_number_of_failures": 0, "rise": 1, "expected_status_code_ranges": [{"min": 200, "max": 204}, {"min": 301, "max": 301}],
        "custom_headers": [{"name": "X-Probe", "value": "1"}], "host": "api.example", "client_certificate": ["c.pem", "/k.pem"],
        "anchors": ["https://anchor.example"],
    }  # fmt: skip
    made = parse(of(traffic_manager={"ttl": 0, "monitor": monitor}), folder=Path("/etc/lb"))
    assert made.ttl == 0
    assert made.monitor == Monitor(
        protocol="https", port=8443, path="/ready", interval=10, timeout=3.5, tolerated=0, rise=1, expected=((200, 204), (301, 301)),
        headers=(("X-Probe", "1"),), host="api.example", client_certificate=("/etc/lb/c.pem", "/k.pem"),
    )  # fmt: skip
    assert made.prober_options() == {"monitor": made.monitor, "anchors": ("https://anchor.example",)}


def test_every_setting_of_the_monitor_has_a_key() -> None:
    assert set(MONITOR_SETTINGS.values()) == {*Monitor.__dataclass_fields__}


def test_every_key_says_what_it_expects() -> None:
    values_checked_by_monitor = {("traffic_manager", "monitor", key) for key in MONITOR_SETTINGS}
    assert {at for at, text in EXPECTED.items() if not text} <= values_checked_by_monitor


def test_the_detector_gets_the_monitors_counts(clock: Any) -> None:
    made = parse(of(traffic_manager={"monitor": {"tolerated_number_of_failures": 0}}, detector={"kind": "consecutive"}))
    lb = Balancer(**made.balancer_options(), clock=clock)
    lb.report("westeurope", True, source="probe")
    lb.report("westeurope", False, source="probe", cause="refused")
    assert lb.status("westeurope") == "down"


def test_two_balancers_of_one_file_share_no_detector() -> None:
    made = parse(of())
    assert made.balancer_options()["detector"] is not made.balancer_options()["detector"]


def test_own_networks_override_the_embedded_geography() -> None:
    group = PrefixMap.lookup
    plain = parse(of()).balancer_options()["locate"]
    own = parse(of(latency={"networks": [{"network": "10.20.0.0/16", "group": "JP"}]})).balancer_options()["locate"]
    assert plain is None
    assert own.keys[group(own, "10.20.1.1")] == "JP"
    assert group(own, "10.21.1.1") == 0


def test_from_toml_gives_a_balancer_with_paths_from_the_files_folder(tmp_path: Path) -> None:
    file = tmp_path / "lbcore.toml"
    file.write_text('[latency]\ndatabase = "clients.mmdb"\n[[service.regions]]\nname = "eastus"\n')
    (tmp_path / "clients.mmdb").write_bytes(b"not a database")
    with pytest.raises(ValueError, match="clients.mmdb"):
        Balancer.from_toml(file)
    file.write_text('[[service.regions]]\nname = "eastus"\n')
    assert Balancer.from_toml(str(file)).pick("8.8.8.8").name == "eastus"


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.toml")), ids=lambda file: file.name)
def test_every_example_is_valid(file: Path, tmp_path: Path) -> None:
    shutil.copytree(file.parent, tmp_path / "examples")
    (tmp_path / "examples" / "edge-1.token").touch(mode=0o600)
    made = load(tmp_path / "examples" / file.name)
    assert made.roles or made.regions
    if made.document.sync is None and made.document.management is None:  # else regions come from elsewhere
        lb = Balancer.from_toml(file)
        assert all(region.gateway and region.addresses for region in lb.regions)


# ===== zones


def test_a_single_zone_has_its_keys_in_dns(tmp_path: Path) -> None:
    (tmp_path / "static.zone").write_text("www A 192.0.2.1\n")
    section = {
        "zone": "example.com", "name": "@", "nameservers": ["ns1"], "glue": {"ns1": ["192.0.2.53"]}, "rname": "me", "serial": 7,
        "records": "static.zone", "aliases": {"api": "@"}, "alpn": [], "negative_ttl": 5, "zone_ttl": 50,
    }  # fmt: skip
    (zone,) = zones_of(parse(of(dns=section, traffic_manager={"ttl": 12}), folder=tmp_path))
    assert zone.soa.to_text() == "ns1.example.com. me.example.com. 7 3600 600 604800 5"
    assert [str(name) for name in zone.steered_names] == ["example.com.", "api.example.com."]
    assert (len(zone.content), zone.alpn, zone.profiles["@"].ttl, zone.denial_ttl) == (3, (), 12, 5)


def test_many_zones_of_one_process() -> None:
    entries = [{"zone": "example.com", "names": ["api", "*.eu"]}, {"zone": "example.net", "aliases": {"@": "api.example.com."}}]
    first, second = zones_of(parse(of(dns={"zones": entries})))
    assert [*map(str, first.steered_names)] == ["api.example.com.", "*.eu.example.com."]
    assert [*map(str, second.steered_names)] == ["example.net."]


def test_zones_that_did_not_change_are_the_same_after_a_reload(tmp_path: Path) -> None:
    create("example.com", tmp_path, algorithm=Algorithm.ECDSAP256SHA256, timing=Timing(activate=0))
    entries: list[dict[str, Any]] = [{"zone": "example.com", "names": ["api"], "keys": "."}, {"zone": "example.net", "names": ["api"]}]
    before = zones_of(parse(of(dns={"zones": entries}), folder=tmp_path))
    same = zones_of(parse(of(dns={"zones": entries}), folder=tmp_path), before)
    assert same == before
    entries[0]["serial"] = 2
    other, second = zones_of(parse(of(dns={"zones": entries}), folder=tmp_path), before)
    assert isinstance(other.keys, Signer)
    assert (other is before[0], other.keys is before[0].keys, second is before[1]) == (False, True, True)
    assert zones_of(parse(of(dns={"zones": entries}, traffic_manager={"ttl": 5}), folder=tmp_path), before)[1] is not before[1]


def test_everything_wrong_with_zones_is_told_by_their_place(tmp_path: Path) -> None:
    (tmp_path / "bad.zone").write_text("www A 192.0.2.1\nwww CNAME x\nbad A x\n")
    entries = [
        {"zone": "example.com", "names": {"api": "trafic"}, "records": "bad.zone"}, {"zone": "example.net", "aliases": {"@": "x"}},
        {"zone": "example.org", "records": "none.zone"}, {"zone": "example.edu", "keys": "none", "records": "none.zone"},
    ]  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        zones_of(parse(of(dns={"zones": entries}), folder=tmp_path))
    assert [violation.where for violation in caught.value.violations] == [
        "settings: dns.zones[0].names.api", f"{tmp_path}/bad.zone:3", f"{tmp_path}/bad.zone:2", "settings: dns.zones[1].aliases",
        "settings: dns.zones[2].records", "settings: dns.zones[3].keys", "settings: dns.zones[3].records",
    ]  # fmt: skip
    assert [*violations(of(dns={"zone": "a", "serial": 2, "zones": [{"zone": "b"}]}))] == ["dns.zone", "dns.serial"]


# ===== what is refused

TEN_MISTAKES = """
schema_version = 2
[service]
nmae = "contoso"
[[service.regions]]
name = "westeurop"
[[service.regions]]
name = "West US 2"
untis = 3
gateway = "ftp://example"
addresses = ["192.0.2.1", "192.0.2.256"]
[[service.regions]]
name = "westus2"
lat = 95
lon = 4.9
[traffic_manager.monitor]
interval_in_seconds = 5
timeout_in_seconds = 7
[detector]
kind = "consecutiv"
[fleet]
url = "x"
"""


@pytest.mark.parametrize(
    ("section", "shown"),
    [
        ({"listen": ["127.0.0.1:5353", "localhost:53"]}, {"dns.listen[1]": "localhost:53"}),
        ({"listen": ["[::1]:53", "[::1]:53"]}, {"dns.listen": ["[::1]:53", "[::1]:53"]}),  # bound once, the second would be in use
        ({"metrics": "9190"}, {"dns.metrics": "9190"}),
    ],
)
def test_addresses_that_cannot_be_listened_on_are_shown_as_they_stand(section: dict[str, Any], shown: dict[str, object]) -> None:
    assert {where: value for where, (value, *_) in violations(of(dns=section)).items()} == shown


def test_any_free_port_may_be_asked_for_twice() -> None:
    assert parse(of(dns={"metrics": "", "listen": ["127.0.0.1:0"] * 2})).dns_listen == [("127.0.0.1", 0)] * 2


def test_ten_mistakes_are_all_reported_with_file_key_value_expectation_and_nearest_name(tmp_path: Path) -> None:
    file = tmp_path / "lbcore.toml"
    file.write_text(TEN_MISTAKES)
    with pytest.raises(ConfigError) as caught:
        load(file)
    found = [(v.where.removeprefix(f"{file}: "), v.value, v.nearest) for v in caught.value.violations]
    assert found == [  # in the order of the file
        ("schema_version", 2, None),
        ("service.nmae", "contoso", "name"),
        ("service.regions[0].name", "westeurop", "westeurope"),
        ("service.regions[1].untis", 3, "units"),
        ("service.regions[1].gateway", "ftp://example", None),
        ("service.regions[1].addresses[1]", "192.0.2.256", None),
        ("service.regions[2].name", "westus2", None),
        ("service.regions[2].lat", 95, None),
        ("traffic_manager.monitor.timeout_in_seconds", 7, None),
        ("detector.kind", "consecutiv", "consecutive"),
        ("fleet", "a table of 1", None),
    ]
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert all(line.startswith(f"{file}: ") and "expected" in line for line in lines)
    assert "service.regions[1] has it already" in lines[6]
    assert "less than the interval of 5 s" in lines[8]
    assert "this version does not have" in lines[10]


@pytest.mark.parametrize(
    ("key", "value"),
    [("lat", 90.5), ("lat", float("nan")), ("lon", -181), ("lon", "4.9"), ("lat", True), ("lon", float("inf"))],
)
def test_coordinates_out_of_range(key: str, value: object) -> None:
    place = {"lat": 1.0, "lon": 2.0} | {key: value}
    assert [*violations({"service": {"regions": [{"name": "here"} | place]}})] == [f"service.regions[0].{key}"]


def test_latitude_and_longitude_go_together() -> None:
    found = violations({"service": {"regions": [{"name": "here", "lat": 1.0}, {"name": "eastus", "lon": 0}]}})
    assert [*found] == ["service.regions[0].lon", "service.regions[1].lat"]


def test_a_region_named_twice_is_found_in_any_spelling_and_beside_the_primary() -> None:
    found = violations({"service": {"primary": {"name": "West Europe"}, "regions": [{"name": "eastus"}, {"name": "westeurope"}]}})
    assert [*found] == ["service.regions[1].name"]
    assert "service.primary" in found["service.regions[1].name"][1]


@pytest.mark.parametrize("data", [{}, {"service": {}}, {"service": {"regions": []}}])
def test_no_region(data: dict[str, Any]) -> None:
    assert [*violations(data)] == ["service.regions"]


@pytest.mark.parametrize(
    ("monitor", "wrong"),
    [
        ({"interval_in_seconds": 20}, "interval_in_seconds"),
        ({"interval_in_seconds": 10, "timeout_in_seconds": 9.5}, "timeout_in_seconds"),
        ({"interval_in_seconds": 30, "timeout_in_seconds": 4}, "timeout_in_seconds"),
        ({"tolerated_number_of_failures": 10}, "tolerated_number_of_failures"),
    ],
)
def test_strict_azure_holds_the_grid_that_others_may_leave(monitor: dict[str, Any], wrong: str) -> None:
    parse(of(traffic_manager={"monitor": monitor}))
    found = violations(of(traffic_manager={"monitor": monitor | {"strict_azure": True}}))
    assert f"traffic_manager.monitor.{wrong}" in found


def test_shape_and_rules_of_the_monitor_are_reported_together() -> None:
    found = violations(of(traffic_manager={"monitor": {
        "rise": 0, "port": "80", "custom_headers": [{"name": 3, "value": ""}], "expected_status_code_ranges": [{"min": 300, "max": 200}],
        "vantages": ["local"], "protocol": "htp",
    }}))  # fmt: skip
    head = "traffic_manager.monitor."
    assert {where.removeprefix(head) for where in found} == {
        "rise", "port", "custom_headers[0].name", "expected_status_code_ranges", "vantages", "protocol",
    }  # fmt: skip
    assert found[f"{head}protocol"][2] == "http"


def test_keys_that_have_another_name_here() -> None:
    found = violations({"service": {"additional_locations": [], "regions": [{"name": "eastus", "disable_gateway": True}]}})
    assert {where: nearest for where, (_, _, nearest) in found.items()} == {
        "service.additional_locations": "regions",
        "service.regions[0].disable_gateway": "enabled",
    }


def test_settings_a_detector_does_not_take() -> None:
    assert [*violations(of(detector={"kind": "pooled", "settings": {"shares": 0.5}}))] == ["detector.settings"]
    assert [*violations(of(detector={"kind": "pooled", "settings": {"share": 5}}))] == ["detector.settings"]


def test_a_database_that_is_not_there() -> None:
    assert [*violations(of(latency={"database": ["a.mmdb", "/nowhere/b.mmdb"]}))] == ["latency.database[0]", "latency.database[1]"]


def test_a_syntax_error_has_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "lbcore.toml"
    file.write_text("schema_version = 1\n[service]\nname = = 3\n")
    with pytest.raises(ConfigError, match=rf"^{file}:3 = 'name = = 3': expected TOML"):
        load(file)
    file.write_bytes(b'schema_version = 1\n\nname = "\xff"\n')
    with pytest.raises(ConfigError, match=rf"^{file}:3 = .*UTF-8"):
        load(file)
    file.write_text('a = 1\nb = """')
    with pytest.raises(ConfigError, match=rf"^{file}:2 "):
        load(file)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        load("/nowhere/lbcore.toml")


def test_without_pydantic_the_extra_is_named(tmp_path: Path) -> None:
    script = "import sys; sys.modules['pydantic'] = None\nimport lbcore\nlbcore.Balancer.from_toml('x.toml')"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "ImportError" in done.stderr
    assert "lbcore[cli]" in done.stderr


# ===== routing

ROUTING = """
traffic_routing_method = "Priority"
ttl = 60
ttl_min = 10
fail_open = "serve_backup"
backup = ["East US"]
family = "any"
endpoints = [{ profile = "europe", priority = 2, min_child_endpoints_ipv4 = 1 }, { region = "eastus", priority = 1, always_serve = true }]

[[profiles]]
name = "europe"
traffic_routing_method = "Geographic"
profile_status = "Disabled"

[[profiles.endpoints]]
region = "West Europe"
geo_mapping = ["GEO-EU", "US-CA"]

[[profiles.endpoints]]
region = "eastus"
endpoint_status = "Disabled"
geo_mapping = ["JP"]
"""


def test_profiles_are_what_the_file_says() -> None:
    made = parse(of(traffic_manager=tomllib.loads(ROUTING)))
    profiles = profiles_of(made)
    profile = profiles[""]
    europe = Profile(
        "europe", ttl=60, method="geographic", enabled=False,
        endpoints=(Endpoint("West Europe", geo=("GEO-EU", "US-CA")), Endpoint("eastus", enabled=False, geo="JP")),
    )  # fmt: skip
    assert profiles == {"": profile, "europe": europe}
    nested, east = profile.endpoints
    assert nested == Endpoint(profile=replace(europe, ttl=30), priority=2, min_children_ipv4=1)  # its own ttl is for its own names
    assert east == Endpoint("eastus", priority=1, always_serve=True)
    assert (profile.method, profile.ttl, profile.ttl_min, profile.family) == ("priority", 60, 10, "any")
    assert (profile.fail_open, profile.backup) == ("serve_backup", ("East US",))


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"endpoints": [{"region": "eastsu"}]}, {"endpoints[0].region": "eastus"}),
        ({"endpoints": [{"profile": "europ"}], "profiles": [{"name": "europe"}]}, {"endpoints[0].profile": "europe"}),
        ({"endpoints": [{}]}, {"endpoints[0]": None}),
        ({"endpoints": [{"region": "eastus", "profile": "a"}], "profiles": [{"name": "a"}]}, {"endpoints[0]": None}),
        ({"backup": ["eastsu"]}, {"backup[0]": "eastus"}),
        ({"profiles": [{"name": "a"}, {"name": "a"}]}, {"profiles[1].name": None}),
        ({"profiles": [{"name": "a", "endpoints": [{"profile": "a"}]}]}, {"profiles[0].name": None}),
        (
            {"profiles": [{"name": "a", "endpoints": [{"profile": "b"}]}, {"name": "b", "endpoints": [{"profile": "a"}]}]},
            {"profiles[0].name": None, "profiles[1].name": None},
        ),
        ({"endpoints": [{"weight": 0, "wieght": 1}]}, {"endpoints[0].weight": None, "endpoints[0].wieght": "weight"}),
        ({"traffic_routing_method": "Fastest", "max_return": 11}, {"traffic_routing_method": None, "max_return": None}),
    ],
)  # fmt: skip
def test_wrong_routing_is_named_in_the_files_keys(section: dict[str, Any], expected: dict[str, str | None]) -> None:
    found = violations(of(traffic_manager=section))
    assert {where.removeprefix("traffic_manager."): near for where, (_, _, near) in found.items()} == expected


def test_what_the_profile_judges_is_told_of_all_nested_ones_at_once() -> None:
    nested = {"name": "a", "traffic_routing_method": "Geographic", "endpoints": [{"region": "eastus", "geo_mapping": ["XX"]}]}
    section = {"traffic_routing_method": "Subnet", "endpoints": [{"profile": "a"}, {"region": "eastus", "subnets": ["10.0.0.1/8"]}]}
    with pytest.raises(ConfigError) as caught:
        zones_of(parse(of(traffic_manager={**section, "profiles": [nested]})))
    found = {violation.where: violation.nearest for violation in caught.value.violations}
    assert {*found} == {f"settings: traffic_manager.{key}" for key in ("profiles[0].endpoints[0].geo_mapping", "endpoints[1].subnets")}
    assert found["settings: traffic_manager.endpoints[1].subnets"] == "10.0.0.0/8"


# ===== whatever is thrown at it

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
SCALARS |= st.sampled_from(["eastus", "http", "127.0.0.1:53"])
KEYS = st.sampled_from(sorted({part for at in EXPECTED for part in at})) | st.text(max_size=4)
ANYTHING = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12)


@st.composite
def shaped(draw: st.DrawFn, at: tuple[str, ...] = ()) -> Any:
    """Draw from `_shaped`, in a strategy whose text is short."""
    return draw(_shaped(at))


@cache
def _shaped(at: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """Give tables that follow the schema's keys, with anything for values here and there."""
    below = {path[-1]: shaped(path) for path in EXPECTED if path[:-1] == at}
    if not below:
        return SCALARS | ANYTHING
    table = st.fixed_dictionaries({}, optional=below)
    return table | st.lists(table, max_size=3) | ANYTHING


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(KEYS, ANYTHING, max_size=5) | shaped().filter(lambda data: isinstance(data, dict)))
def test_anything_gives_settings_or_a_config_error(data: dict[str, Any]) -> None:
    try:
        made = parse(data)
    except ConfigError as error:
        assert error.violations
        assert str(error)
    else:
        assert isinstance(made, Settings)
        assert made.regions


def test_the_operators_page_names_every_key() -> None:
    page = (Path(__file__).parent.parent / "docs" / "operate.md").read_text()
    missing = {at[-1] for at in EXPECTED} - set(re.findall(r"\w+", page))
    assert missing - {"min", "max", "value"} == set()


@pytest.mark.parametrize(("levels", "references", "expected"), [
    (8, 6, "at most 10,000 endpoints below a profile"), (2000, 1, "nesting of at most 10 profiles"),
])  # fmt: skip
def test_trees_of_profiles_that_would_not_end_are_refused_at_once(levels: int, references: int, expected: str) -> None:
    profiles = [{"name": "p0", "endpoints": [{"region": "westeurope"}]}]
    for level in range(1, levels):
        profiles.append({"name": f"p{level}", "endpoints": [{"profile": f"p{level - 1}"}] * references})
    section = {"profiles": profiles, "endpoints": [{"profile": f"p{levels - 1}"}]}
    with pytest.raises(ConfigError, match=expected):
        zones_of(parse({"service": {"regions": [{"name": "westeurope"}]}, "traffic_manager": section}))
