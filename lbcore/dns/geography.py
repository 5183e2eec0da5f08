"""Geography: what a geographic endpoint may be mapped to: the world, a group of countries, a country, a subdivision.

Traffic Manager's hierarchy (WORLD, GEO-…, country, "US-CA") over ISO 3166 codes; the most specific mapping wins. Which country is in
which group follows UN M49, with the Middle East of its own and the Caribbean and Central America in North America.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lbcore.errors import nearest

if TYPE_CHECKING:
    from lbcore._prefix import PrefixMap

__all__ = ["GROUPS", "WORLD", "canonical_place", "kids_by_place", "nearest_place"]

WORLD = "WORLD"
GROUPS: Mapping[str, tuple[str, ...]] = {
    name: tuple(countries.split())
    for name, countries in {
        "GEO-AF": "AO BF BI BJ BW CD CF CG CI CM CV DJ DZ EG EH ER ET GA GH GM GN GQ GW IO KE KM LR LS LY MA MG ML MR MU MW MZ NA NE NG RE"
        " RW SC SD SH SL SN SO SS ST SZ TD TF TG TN TZ UG YT ZA ZM ZW",
        "GEO-AN": "AQ BV GS HM",
        "GEO-AP": "AS AU CC CK CX FJ FM GU KI MH MP NC NF NR NU NZ PF PG PN PW SB TK TO TV UM VU WF WS",
        "GEO-AS": "AF AM AZ BD BN BT CN GE HK ID IN JP KG KH KP KR KZ LA LK MM MN MO MV MY NP PH PK SG TH TJ TL TM TW UZ VN",
        "GEO-EU": "AD AL AT AX BA BE BG BY CH CY CZ DE DK EE ES FI FO FR GB GG GI GR HR HU IE IM IS IT JE LI LT LU LV MC MD ME"
        " MK MT NL NO PL"
        " PT RO RS RU SE SI SJ SK SM UA VA XK",
        "GEO-ME": "AE BH IL IQ IR JO KW LB OM PS QA SA SY TR YE",
        "GEO-NA": "AG AI AW BB BL BM BQ BS BZ CA CR CU CW DM DO GD GL GP GT HN HT JM KN KY LC MF MQ MS MX NI PA PM PR SV SX TC"
        " TT US VC VG VI",
        "GEO-SA": "AR BO BR CL CO EC FK GF GY PE PY SR UY VE",
    }.items()
}
GROUP_OF = {country: group for group, countries in GROUPS.items() for country in countries}

# ISO 3166-2 codes of the countries that Traffic Manager splits, for databases that name subdivisions in full.
_SUBDIVISIONS = {
    "AU": "ACT:Australian Capital Territory NSW:New South Wales NT:Northern Territory QLD:Queensland SA:South Australia TAS:Tasmania"
    " VIC:Victoria WA:Western Australia",
    "CA": "AB:Alberta BC:British Columbia MB:Manitoba NB:New Brunswick NL:Newfoundland and Labrador NS:Nova Scotia NT:Northwest Territories"
    " NU:Nunavut ON:Ontario PE:Prince Edward Island QC:Quebec SK:Saskatchewan YT:Yukon",
    "GB": "ENG:England NIR:Northern Ireland SCT:Scotland WLS:Wales",
    "US": "AK:Alaska AL:Alabama AR:Arkansas AZ:Arizona CA:California CO:Colorado CT:Connecticut DC:District of Columbia"
    " DE:Delaware FL:Florida"
    " GA:Georgia HI:Hawaii IA:Iowa ID:Idaho IL:Illinois IN:Indiana KS:Kansas KY:Kentucky LA:Louisiana MA:Massachusetts MD:Maryland ME:Maine"
    " MI:Michigan MN:Minnesota MO:Missouri MS:Mississippi MT:Montana NC:North Carolina ND:North Dakota NE:Nebraska NH:New Hampshire"
    " NJ:New Jersey NM:New Mexico NV:Nevada NY:New York OH:Ohio OK:Oklahoma OR:Oregon PA:Pennsylvania RI:Rhode Island SC:South Carolina"
    " SD:South Dakota TN:Tennessee TX:Texas UT:Utah VA:Virginia VT:Vermont WA:Washington WI:Wisconsin WV:West Virginia WY:Wyoming",
}


# "US/CALIFORNIA" -> "US-CA"
CODES = {
    f"{country}/{name}".upper(): f"{country}-{code}"
    for country, text in _SUBDIVISIONS.items()
    for code, name in re.findall(r"(\w+):(.+?)(?= \w+:|$)", text)
}


def canonical_place(text: str) -> str | None:
    """Give the code as everything else has it ("uk" -> "GB", "US/California" -> "US-CA"); None when there is no such place.

    A subdivision is not looked up: databases know more of them than any list.
    """
    code = text.strip().upper()
    if code == WORLD or code in GROUPS:
        return code
    country, mark, rest = code.replace("/", "-", 1).partition("-")
    country = "GB" if country == "UK" else country  # Traffic Manager's word
    if country not in GROUP_OF or bool(mark) != bool(rest):
        return None
    return CODES.get(f"{country}/{rest}", f"{country}-{rest}") if rest else country


def nearest_place(text: str) -> str | None:
    """Give the known code that a wrong one resembles most."""
    known = [WORLD, *GROUPS, *GROUP_OF, *CODES.values()]
    return next(iter(nearest(text, [code.lower() for code in known])), "").upper() or None


def kids_by_place(prefixes: PrefixMap, mappings: Iterable[Iterable[str]]) -> NDArray[np.int32]:
    """Give for every group of a prefix map the index of the mapping that holds its most specific place, -1 = none.

    Group 0, whom nobody can locate, belongs to WORLD alone.
    """
    kids = {place: at for at, places in enumerate(mappings) for text in places if (place := canonical_place(text)) is not None}
    found = (next((kids[place] for place in _places(key, country) if place in kids), -1) for key, country in zip(
        prefixes.keys, prefixes.countries, strict=True
    ))  # fmt: skip
    return np.fromiter(found, np.int32, prefixes.groups)


def _places(key: str, country: str) -> Iterable[str]:
    """Give the places that a group lies in, the most specific first."""
    if country:
        _, mark, rest = key.partition("/")
        if mark and (place := canonical_place(f"{country}/{rest.split('/')[0]}")) is not None:
            yield place
        yield country
        if country in GROUP_OF:
            yield GROUP_OF[country]
    yield WORLD
