"""The profile as REST takes and shows it: V20-V23, each with its code and its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_worlds import contoso

from lbcore.errors import ServiceError
from lbcore.service.body import patched
from lbcore.service.codes import STATUS
from lbcore.service.traffic_manager import read, traffic_manager_body

SERVICE = contoso("eastasia", "westeurope")


def refused(**properties: Any) -> set[tuple[str, str]]:
    with pytest.raises(ServiceError) as caught:
        read({"properties": properties}, SERVICE)
    return {(each.code, (each.target or "").removeprefix("properties.")) for each in caught.value.details or (caught.value,)}


def test_nothing_said_is_the_closest_region_by_the_defaults() -> None:
    manager = read({}, SERVICE)
    shown = traffic_manager_body(manager, SERVICE)["properties"]
    assert (shown["profileStatus"], shown["trafficRoutingMethod"]) == ("Enabled", "Performance")
    assert shown["dnsConfig"] == {"ttl": 30, "ttlMin": None, "relativeName": "contoso", "fqdn": "contoso.test"}
    assert (shown["monitorConfig"]["intervalInSeconds"], shown["failover"]["worst"]) == (5.0, 47.0)


def test_strict_azure_has_azures_defaults() -> None:
    manager = read({"properties": {"monitorConfig": {"strictAzure": True}}}, SERVICE)
    assert (manager.monitor.interval, manager.monitor.timeout, manager.monitor.tolerated, manager.monitor.rise) == (30, 10, 3, 1)
    assert manager.ttl == 60
    assert traffic_manager_body(manager, SERVICE)["properties"]["failover"]["worst"] == 190


FULL = {
    "profileStatus": "Disabled", "trafficRoutingMethod": "Weighted", "maxReturn": 3, "dnsConfig": {"ttl": 10, "ttlMin": 2},
    "monitorConfig": {
        "protocol": "HTTPS", "port": 8443, "path": "/up", "intervalInSeconds": 10, "timeoutInSeconds": 9, "toleratedNumberOfFailures": 1,
        "expectedStatusCodeRanges": [{"min": 200, "max": 204}], "customHeaders": [{"name": "X-Probe", "value": "1"}],
        "host": "up.contoso.test", "strictAzure": True,
    },
    "endpoints": [
        {"region": "West Europe", "weight": 3, "alwaysServe": "Enabled"}, {"profile": "rest", "minChildEndpoints": 1},
        {"region": "eastasia", "endpointStatus": "Disabled", "alwaysServe": "Disabled"},
    ],
    "profiles": [{"name": "rest", "trafficRoutingMethod": "Subnet", "endpoints": [{"region": "westus2", "subnets": [
        "10.0.0.0/8", {"first": "192.0.2.0", "scope": 24}, {"first": "198.51.100.1", "last": "198.51.100.9"},
    ]}]}],
}  # fmt: skip


@pytest.mark.parametrize("properties", [{}, FULL])
def test_what_is_read_back_is_the_same(properties: dict[str, Any]) -> None:
    manager = read({"properties": properties}, SERVICE)
    shown = traffic_manager_body(manager, SERVICE)
    again = read(json.loads(json.dumps(shown)), SERVICE)
    assert again.monitor == manager.monitor
    assert traffic_manager_body(again, SERVICE) == shown
    assert traffic_manager_body(read(patched(shown, {}), SERVICE), SERVICE) == shown
    assert traffic_manager_body(read(patched(shown, {"properties": {"dnsConfig": {"ttl": 77}}}), SERVICE), SERVICE) != shown


def test_every_setting_reaches_the_library() -> None:
    manager = read({"properties": FULL}, SERVICE)
    options = manager.settings.profile_options()
    assert (manager.monitor.protocol, manager.monitor.port, manager.monitor.expected) == ("https", 8443, ((200, 204),))
    assert (manager.monitor.headers, manager.monitor.host) == ((("X-Probe", "1"),), "up.contoso.test")
    assert (options[""]["enabled"], options[""]["method"], options[""]["ttl"], options[""]["ttl_min"]) == (False, "weighted", 10, 2)
    assert [(one["region"], one["weight"], one["always_serve"], one["enabled"]) for one in options[""]["endpoints"]] == [
        ("West Europe", 3, True, True), ("", 1, False, True), ("eastasia", 1, False, False),
    ]  # fmt: skip
    assert options["rest"]["endpoints"][0]["subnets"] == ("10.0.0.0/8", "192.0.2.0/24", "198.51.100.1-198.51.100.9")


MONITORS: list[tuple[dict[str, Any], str]] = [
    ({"intervalInSeconds": 0}, "intervalInSeconds"), ({"intervalInSeconds": "5"}, "intervalInSeconds"),
    ({"intervalInSeconds": 10, "timeoutInSeconds": 10}, "timeoutInSeconds"),
    ({"strictAzure": True, "intervalInSeconds": 20}, "intervalInSeconds"),
    ({"strictAzure": True, "timeoutInSeconds": 4}, "timeoutInSeconds"),
    ({"strictAzure": True, "toleratedNumberOfFailures": 10}, "toleratedNumberOfFailures"),
    ({"toleratedNumberOfFailures": -1}, "toleratedNumberOfFailures"), ({"rise": 0}, "rise"), ({"protocol": "ICMP"}, "protocol"),
    ({"expectedStatusCodeRanges": [{"min": 200, "max": 200}] * 9}, "expectedStatusCodeRanges"),
    ({"expectedStatusCodeRanges": [{"min": 300, "max": 200}]}, "expectedStatusCodeRanges"),
    ({"expectedStatusCodeRanges": [200]}, "expectedStatusCodeRanges[0]"),
    ({"customHeaders": [{"name": "a", "value": "b"}] * 9}, "customHeaders"),
    ({"customHeaders": [{"name": "a\r\nb", "value": "b"}]}, "customHeaders"),
    ({"customHeaders": [{"name": "Host", "value": "b"}]}, "customHeaders"), ({"protocol": "TCP", "path": "/up"}, "path"),
    ({"path": "/a b"}, "path"), ({"path": "../x"}, "path"), ({"host": "*.contoso.test"}, "host"),
    ({"port": 65536}, "port"), ({"jitter": float("nan")}, "jitter"),
]  # fmt: skip


@pytest.mark.parametrize(("monitor", "key"), MONITORS)
def test_monitor_settings_have_bounds(monitor: dict[str, Any], key: str) -> None:
    assert refused(monitorConfig=monitor) == {("InvalidMonitorConfig", f"monitorConfig.{key}")}


def on(**endpoint: Any) -> list[dict[str, Any]]:
    """Give two endpoints, the second with these settings."""
    return [{"region": "eastasia"}, {"region": "westeurope"} | endpoint]


def nested(*endpoints: dict[str, Any], **settings: Any) -> list[dict[str, Any]]:
    return [{"name": "a", "endpoints": [*endpoints], **settings}]


TWO, THREE = {"region": "eastasia", "priority": 2}, {"region": "westeurope", "priority": 3}
ENDPOINTS: list[tuple[dict[str, Any], str, str]] = [
    ({"dnsConfig": {"ttl": -1}}, "InvalidEndpoint", "dnsConfig.ttl"), ({"dnsConfig": {"ttl": 2**31}}, "InvalidEndpoint", "dnsConfig.ttl"),
    ({"dnsConfig": {"ttl": 5, "ttlMin": 6}}, "InvalidEndpoint", "dnsConfig.ttlMin"), ({"maxReturn": 11}, "InvalidEndpoint", "maxReturn"),
    ({"profileStatus": "On"}, "InvalidEndpoint", "profileStatus"),
    ({"trafficRoutingMethod": "Fast"}, "InvalidEndpoint", "trafficRoutingMethod"),
    ({"endpoints": on(weight=0)}, "InvalidEndpoint", "endpoints[1].weight"),
    ({"endpoints": on(weight=1001)}, "InvalidEndpoint", "endpoints[1].weight"),
    ({"endpoints": on(priority=0)}, "InvalidEndpoint", "endpoints[1].priority"),
    ({"endpoints": on(alwaysServe="yes")}, "InvalidEndpoint", "endpoints[1].alwaysServe"),
    ({"endpoints": on(endpointStatus="enabled")}, "InvalidEndpoint", "endpoints[1].endpointStatus"),
    ({"trafficRoutingMethod": "Priority", "endpoints": [TWO, {"region": "westus2"}, THREE]}, "InvalidEndpoint", "endpoints[1].priority"),
    ({"endpoints": on(region="East Asia")}, "InvalidEndpoint", "endpoints[1].region"),
    ({"endpoints": on(region="mars")}, "InvalidEndpoint", "endpoints[1].region"),
    ({"trafficRoutingMethod": "Geographic", "endpoints": [{"region": "eastasia", "geoMapping": ["WORLD"]}, {"region": "westus2"}]},
     "InvalidMapping", "endpoints[1].geoMapping"),
    ({"trafficRoutingMethod": "Geographic", "endpoints": [{"region": "eastasia", "geoMapping": ["DE", "WORLD", "DE"]}]},
     "InvalidMapping", "endpoints[0].geoMapping"),
    ({"trafficRoutingMethod": "Subnet", "endpoints": [{"region": "eastasia", "subnets": ["10.0.0.1/8"]}]},
     "InvalidMapping", "endpoints[0].subnets"),
    ({"trafficRoutingMethod": "Subnet", "endpoints": [{"region": "eastasia", "subnets": [{"first": "10.0.0.9", "last": "10.0.0.1"}]}]},
     "InvalidMapping", "endpoints[0].subnets"),
    ({"trafficRoutingMethod": "Subnet", "endpoints": [{"region": "eastasia", "subnets": ["10.0.0.0/8", "10.1.0.0/16"]}]},
     "InvalidMapping", "endpoints[0].subnets"),
    ({"trafficRoutingMethod": "Subnet"}, "InvalidMapping", "endpoints"),
    ({"endpoints": [{"profile": "a"}], "profiles": nested({"profile": "a"})}, "InvalidNesting", "profiles[0].name"),
    ({"endpoints": [{"profile": "b"}]}, "InvalidNesting", "endpoints[0].profile"),
    ({"trafficRoutingMethod": "MultiValue", "endpoints": [{"profile": "a"}], "profiles": nested({"region": "eastasia"})},
     "InvalidNesting", "endpoints[0].profile"),
    ({"endpoints": [{"profile": "a", "minChildEndpoints": 2}], "profiles": nested({"region": "eastasia"})},
     "InvalidNesting", "endpoints[0].minChildEndpoints"),
    ({"endpoints": [{"profile": "p0"}], "profiles": [
        {"name": f"p{n}", "endpoints": [{"profile": f"p{n + 1}"} if n < 10 else {"region": "eastasia"}]} for n in range(11)]},
     "InvalidNesting", "profiles"),
]  # fmt: skip


@pytest.mark.parametrize(("properties", "code", "target"), ENDPOINTS)
def test_profiles_and_endpoints_have_rules(properties: dict[str, Any], code: str, target: str) -> None:
    assert (code, target) in refused(**properties)
    assert {found for found, _ in refused(**properties)} == {code}


def test_unknown_properties_are_told_and_files_of_the_primary_cannot_be_named() -> None:
    assert refused(colour=1, monitorConfig={"ca": "/etc/passwd", "clientCertificate": ["/a", "/b"]}, endpoints=[{"regon": "x"}]) >= {
        ("UnknownProperty", "colour"), ("UnknownProperty", "monitorConfig.ca"), ("UnknownProperty", "monitorConfig.clientCertificate"),
        ("UnknownProperty", "endpoints[0].regon"),
    }  # fmt: skip


def test_the_monitor_does_not_hide_what_is_wrong_with_endpoints() -> None:
    properties = {"monitorConfig": {"rise": 0}, "trafficRoutingMethod": "Geographic", "endpoints": [{"region": "eastasia"}]}
    assert refused(**properties) == {("InvalidMonitorConfig", "monitorConfig.rise"), ("InvalidMapping", "endpoints[0].geoMapping")}


def test_a_region_that_an_endpoint_needs_cannot_be_read_away() -> None:
    body = {"properties": {"endpoints": [{"region": "eastasia"}]}}
    with pytest.raises(ServiceError, match="a configured region"):
        read(body, SERVICE.without("eastasia"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8,
)  # fmt: skip
texts = ("profileStatus", "trafficRoutingMethod", "maxReturn", "backup", "failOpen", "family", "dnsConfig")
endpoints = st.fixed_dictionaries({}, optional={
    "region": json_values, "weight": json_values, "subnets": st.lists(json_values, max_size=2), "geoMapping": json_values,
    "priority": json_values, "profile": json_values, "alwaysServe": json_values,
})  # fmt: skip
routed = st.fixed_dictionaries({}, optional=dict.fromkeys(texts, json_values) | {"endpoints": st.lists(endpoints, max_size=3)})


@given(routed | json_values, st.fixed_dictionaries({}, optional=dict.fromkeys(("rise", "path", "host"), json_values)) | json_values)
def test_any_json_is_accepted_or_refused_in_order(properties: Any, monitor: Any) -> None:
    if isinstance(properties, dict):
        properties = properties | {"monitorConfig": monitor}
    try:
        read({"properties": properties}, SERVICE)
    except ServiceError as error:
        for each in error.details or (error,):
            assert each.code in STATUS
            assert str(each).isprintable()
