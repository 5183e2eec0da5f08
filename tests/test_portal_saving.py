"""Scale and pricing, and Traffic Manager, from the form to the service: drafts, plan, Save; settings and what they imply."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import markup
import pytest
from portaling import TIMES, Service, Shared, added, field, operator, play, profile, rows, sent, sharing

from lbcore.service.traffic_manager import read

shared = pytest.fixture(scope="module")(sharing)


# ===== scale and pricing


def test_drafts_become_a_plan_and_the_plan_becomes_regions(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        fields, there = await rows(visitor)
        wanted = sent(fields, [*there, added("westeurope", 2), added("eastasia")])
        shown = await visitor.post("/portal/plan", wanted)
        assert (shown.status_code, markup.faults(shown.text)) == (200, [])
        assert "2 to add, 0 to change, 0 to delete" in shown.text
        assert (await made.plane.state()).etag == fields["etag"]  # R12: nothing has happened
        saved = await visitor.post("/portal/save", wanted | {"digest": field(shown.text, "digest"), "why": "closer to Europe"})
        assert saved.status_code == 202
        assert "InProgress" in saved.text
        await made.settled()
        after = await visitor.get("/portal/scale-and-pricing/locations")
        for text in ("West Europe", "East Asia", "203.0.113.", "Succeeded"):
            assert text in after.text
        entry = next(each for each in made.store.history() if each.what == "save")
        assert (entry.who.partition(" (")[0], entry.why) == ("a operator", "closer to Europe")

    play(tmp_path, story)


def test_nothing_is_deployed_that_was_not_shown(shared: Shared) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        fields, there = await rows(visitor)
        shown = await visitor.post("/portal/plan", sent(fields, [*there, added("uksouth")]))
        other = sent(fields, [*there, added("uksouth"), added("japaneast")], digest=field(shown.text, "digest"))
        answer = await visitor.post("/portal/save", other)
        assert (answer.status_code, "not the plan that was shown" in answer.text) == (412, True)
        assert (await visitor.post("/portal/save", other | {"digest": ""})).status_code == 412
        assert made.store.operations.running() is None

    shared(story)


def test_what_somebody_else_has_changed_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        fields, there = await rows(visitor)
        wanted = sent(fields, [*there, added("westeurope")])
        shown = await visitor.post("/portal/plan", wanted)
        await made.plane.patch({"properties": {"additionalLocations": [{"location": "eastasia"}]}}, who="somebody", if_match="*")
        await made.settled()
        for path in ("/portal/plan", "/portal/save"):
            answer = await visitor.post(path, wanted | {"digest": field(shown.text, "digest")})
            assert answer.status_code == 412
        assert [each.name for each in (await made.plane.state()).service.additional_locations] == ["eastasia"]

    play(tmp_path, story)


def test_every_violation_is_shown_and_nothing_changes(shared: Shared) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        fields, there = await rows(visitor)
        before = (await made.plane.state()).etag
        wrong = [*there, added("japaneast", 99), added("<script>alert(1)</script>"), added("West US 2")]
        answer = await visitor.post("/portal/plan", sent(fields, wrong))
        assert (answer.status_code, markup.faults(answer.text)) == (400, [])
        assert all(code in answer.text for code in ("InvalidSkuCapacity", "LocationNotAvailable", "DuplicateLocation"))
        assert "<script>" not in answer.text
        for row in ("{", "[]", "null", '{"name": 1}'):
            answer = await visitor.post("/portal/plan", fields | {"row": [row]})
            assert (answer.status_code, markup.faults(answer.text)) == (400, []), row
        assert (await visitor.post("/portal/plan", fields)).status_code == 400
        assert (await made.plane.state()).etag == before

    shared(story)


def test_a_change_of_addresses_must_be_known_of(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        fields, there = await rows(visitor)
        europe = there[1] | {"state": "draft-change", "units": 3, "zones": ["1", "2", "3"]}
        wanted = sent(fields, [there[0], europe])
        shown = await visitor.post("/portal/plan", wanted)
        assert "Addresses that change" in shown.text
        digest = field(shown.text, "digest")
        refused = await visitor.post("/portal/save", wanted | {"digest": digest})
        assert (refused.status_code, "VipChangeNotAcknowledged" in refused.text) == (409, True)
        assert (await visitor.post("/portal/save", wanted | {"digest": digest, "acknowledge": "true"})).status_code == 202
        await made.settled()

    play(tmp_path, story, "westeurope")


def test_a_second_save_is_refused_while_the_first_is_under_way(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        fields, there = await rows(visitor)
        made.regions.slow = 3.0
        wanted = sent(fields, [*there, added("westeurope")])
        first = await visitor.post("/portal/plan", wanted)
        assert (await visitor.post("/portal/save", wanted | {"digest": field(first.text, "digest")})).status_code == 202
        assert "inert" in (await visitor.get("/portal/scale-and-pricing")).text
        async with asyncio.timeout(30):  # the state moves with each step: until both are of one
            answer, status = None, 412
            while status == 412:
                fields, there = await rows(visitor)
                wanted = sent(fields, [*there, added("eastasia")])
                shown = await visitor.post("/portal/plan", wanted)
                digest = field(shown.text, "digest") if shown.status_code == 200 else ""
                answer = await visitor.post("/portal/save", wanted | {"digest": digest})
                status = answer.status_code
        assert (status, "OperationInProgress" in answer.text) == (409, True)
        await made.settled()

    play(tmp_path, story)


def test_a_deployment_is_cancelled_until_it_has_begun(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        made.plane.runner._times = replace(TIMES, hold=20.0)
        fields, there = await rows(visitor)
        wanted = sent(fields, [*there, added("westeurope")])
        for begun in (False, True):
            shown = await visitor.post("/portal/plan", wanted)
            saved = await visitor.post("/portal/save", wanted | {"digest": field(shown.text, "digest")})
            assert saved.status_code == 202
            running = made.store.operations.running()
            assert running is not None
            if begun:
                async with asyncio.timeout(30):
                    while not (await made.plane.operation(running.id)).results:
                        await asyncio.sleep(0.01)
                assert "Cancel deployment" not in (await visitor.get("/portal/scale-and-pricing")).text
            else:
                assert "Cancel deployment" in saved.text
            answer = await visitor.post(f"/portal/operations/{running.id}/cancel")
            assert (answer.status_code, "OperationInProgress" in answer.text) == ((409, True) if begun else (200, False))
            await made.settled()
            made.plane.runner._times, made.regions.slow = replace(TIMES, hold=0.0), 2.0
            fields, there = await rows(visitor)
            assert len(there) == (2 if begun else 1)
            wanted = sent(fields, [*there, added("westeurope")])

    play(tmp_path, story)


def test_what_needs_no_deployment_is_saved_at_once(shared: Shared) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        fields, there = await rows(visitor)
        shown = await visitor.post("/portal/plan", sent(fields, there))
        assert "nothing to do" in shown.text
        answer = await visitor.post("/portal/save", sent(fields, there, digest=field(shown.text, "digest")))
        assert (answer.status_code, answer.headers["hx-retarget"]) == (200, "#locations")
        assert 'id="locations-form"' in answer.text

    shared(story)


# ===== traffic manager


def test_the_profile_comes_back_as_it_was_shown(shared: Shared) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        before = await made.plane.traffic_manager()
        answer = await visitor.post("/portal/traffic-manager", await profile(visitor), hx=False)
        assert (answer.status_code, markup.faults(answer.text)) == (200, [])
        assert await made.plane.traffic_manager() == before

    shared(story)


def test_the_profile_is_changed_and_its_times_with_it(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        fields = await profile(visitor) | {"ttl": "7", "interval": "2", "timeout": "0.5", "tolerated": "1"}
        told = await visitor.post("/portal/traffic-manager/timing", fields)
        assert (told.status_code, "12 s" in told.text) == (200, True)  # (1 + 1) * 2 + 0.5 + 7 = 11.5
        assert (await made.plane.failover_times()).worst != 11.5
        answer = await visitor.post("/portal/traffic-manager", fields, hx=False)
        assert (answer.status_code, "Saved." in answer.text) == (200, True)
        assert (await made.plane.failover_times()).worst == 11.5
        stale = await visitor.post("/portal/traffic-manager", fields | {"ttl": "9"}, hx=False)
        assert stale.status_code == 412

    play(tmp_path, story, "westeurope")


def test_what_is_wrong_stands_at_its_field_with_what_was_typed(shared: Shared) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        fields = await profile(visitor) | {"timeout": "9", "interval": "5", "path": "no slash", "ttl": "77"}
        answer = await visitor.post("/portal/traffic-manager", fields, hx=False)
        assert (answer.status_code, markup.faults(answer.text)) == (400, [])
        assert 'id="timeout-error"' in answer.text
        assert 'id="path-error"' in answer.text
        assert 'value="no slash"' in answer.text
        assert 'value="77"' in answer.text
        for field_ in ("ttl", "interval", "tolerated"):
            for nonsense in ("nan", "1e999", "", "<b>", "9" * 400):
                again = await visitor.post("/portal/traffic-manager", fields | {field_: nonsense}, hx=False)
                assert (again.status_code, markup.faults(again.text)) == (400, []), (field_, nonsense)
                assert (await visitor.post("/portal/traffic-manager/timing", fields | {field_: nonsense})).status_code == 400

    shared(story)


@pytest.mark.parametrize("name", ["af-south-1", "asia-northeast1", "japaneast"])
def test_every_place_that_is_offered_can_be_added(tmp_path: Path, name: str) -> None:
    """Names for people are no names of regions: "Africa (Cape Town)" is af-south-1."""

    async def story(made: Service) -> None:
        visitor = await operator(made)
        fields, there = await rows(visitor)
        assert f'<option value="{name}"' in (await visitor.get("/portal/scale-and-pricing")).text
        wanted = sent(fields, [*there, added(name)])
        shown = await visitor.post("/portal/plan", wanted)
        assert shown.status_code == 200, shown.text
        assert (await visitor.post("/portal/save", wanted | {"digest": field(shown.text, "digest")})).status_code == 202
        await made.settled()
        fields, there = await rows(visitor)
        again = await visitor.post("/portal/plan", sent(fields, there))  # as it came back
        assert "nothing to do" in again.text
        rotation = made.plane.rotation()
        assert rotation is not None
        known = rotation.as_service()
        assert known is not None
        assert [each.name for each in known.locations] == ["westus2", name]
        assert [place.name for place in rotation.regions] == ["westus2", name]
        read(rotation.traffic_manager, known)

    play(tmp_path, story)
