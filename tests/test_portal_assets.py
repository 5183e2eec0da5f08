"""The files that pages load: vendored ones are those that were taken, all are served by name only, all reach the wheel."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path

import pytest

from lbcore.service.portal.assets import FOLDER, TYPES, files, url

ROOT = Path(__file__).parent.parent
SUMS = dict(reversed(line.split()) for line in (FOLDER / "SHA256SUMS").read_text().splitlines())
OWN = {"portal.css", "portal.js", "icon.svg", "SHA256SUMS"}


def test_vendored_files_are_those_that_were_taken() -> None:
    assert {name: hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() for name in SUMS} == SUMS


def test_every_file_is_vendored_or_ours() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {*SUMS} | OWN


def test_notice_names_what_is_vendored() -> None:
    notice = (ROOT / "NOTICE").read_text()
    assert all(name in notice for name in SUMS)
    assert "2.0.11" in notice
    assert 'version:"2.0.11"' in (FOLDER / "htmx.min.js").read_text()


def test_only_listed_files_are_served() -> None:
    assert set(files()) == set(TYPES)
    assert not {name for name in files() if name.startswith("LICENSE") or "/" in name}
    with pytest.raises(KeyError):
        url("../pages.py")


def test_the_address_changes_with_the_content() -> None:
    for name, asset in files().items():
        assert url(name) == f"/portal/static/{name}?v={hashlib.sha256(asset.body).hexdigest()[:12]}"
        assert asset.type.partition(";")[0] in ("text/javascript", "text/css", "image/svg+xml")


def test_the_package_carries_templates_and_files() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert {"static/*", "templates/*.html", "templates/parts/*.html"} <= set(data["lbcore.service.portal"])
    assert "recursive-include lbcore/service/portal/" in (ROOT / "MANIFEST.in").read_text()


def test_nothing_is_loaded_from_elsewhere() -> None:
    ours = "".join((FOLDER / name).read_text() for name in ("portal.css", "portal.js", "icon.svg"))
    assert not re.search(r"@import|url\(|//cdn|https?://(?!www\.w3\.org/2000/svg)", ours)


def test_the_script_makes_no_markup_of_texts() -> None:
    script = (FOLDER / "portal.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(|\.style\b|setAttribute\(\"on", script)
