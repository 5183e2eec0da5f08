"""Build the region catalogue, the published round trips and the path model from the files in $LBCORE_DATA.

A maintainer's tool: its outputs under lbcore/data are committed, so users never run it. Same input, same bytes.
    python -m lbcore.sense.paths_build FOLDER lbcore/data
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lbcore.region import canonical
from lbcore.sense import prior

__all__ = ["build", "read_regions", "read_round_trips"]

COLUMNS = ("name", "provider", "display_name", "lat", "lon", "zones", "paired")

# `az account list-locations` puts Madrid's region in the sea off Menorca: the longitude's sign is lost.
CORRECTIONS: dict[str, dict[str, str]] = {"spaincentral": {"lon": "-3.4209"}}

# The source files lack the number of availability zones. Azure: regions it calls recommended are those with zones, three
# each; a few others have them too ("What are Azure regions", learn.microsoft.com). AWS and Google: three, but for these
# ("AWS Regions and Availability Zones", docs.aws.amazon.com; "Regions and zones", cloud.google.com).
ZONED_OTHERS = {"eastus2", "southcentralus", "westus3"}
MORE_ZONES = {"us-east-1": 6, "us-west-2": 4, "ap-northeast-1": 4, "ap-northeast-2": 4, "us-central1": 4}


def zones(name: str, category: str | None) -> int:
    """Give the number of availability zones, 1 when the region is not zoned; category: Azure's, None elsewhere."""
    if category is None:
        return MORE_ZONES.get(name, 3)
    return 3 if category == "Recommended" or name in ZONED_OTHERS else 1


def read_regions(folder: Path) -> list[dict[str, str]]:
    """Give one row per region of Azure, AWS and GCP, columns as in regions.csv; ValueError when two share a name."""
    rows = [row for provider in ("azure", "aws", "gcp") for row in _provider_rows(folder, provider)]
    names = [row["name"] for row in rows]
    if clashes := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"region names must differ between providers, got twice: {', '.join(sorted(clashes))}")
    return rows


def _provider_rows(folder: Path, provider: str) -> Iterator[dict[str, str]]:
    with (folder / provider / f"{provider}_regions.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            name = canonical(row["name"])
            row["display_name"] = row.get("display_name") or row["location"]
            row |= {"name": name, "provider": provider, "zones": str(zones(name, row.get("category")))} | CORRECTIONS.get(name, {})
            row |= {key: f"{float(row[key]):.4f}".rstrip("0").rstrip(".") for key in ("lat", "lon")}
            yield {column: row.get(column, "") for column in COLUMNS}


def read_round_trips(folder: Path) -> dict[tuple[str, str], float]:
    """Give (source, destination) -> milliseconds as published; of two AWS measurements the later one holds."""
    trips: dict[tuple[str, str], float] = {}
    with (folder / "azure/azure_rtt_p50_2025-06.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            source = canonical(row.pop("Source"))
            trips |= {(source, canonical(name)): float(ms) for name, ms in row.items() if ms}
    for path in ("aws/aws_2020_06_05_ping.csv", "aws/aws_2021_02_13_ping.csv", "gcp/gcp_ping.csv"):
        with (folder / path).open(encoding="utf-8", newline="") as file:
            trips |= {(row["src"], row["dst"]): float(row["avg_ms"]) for row in csv.DictReader(file)}
    return {pair: ms for pair, ms in trips.items() if pair[0] != pair[1]}


def symmetric(trips: dict[tuple[str, str], float]) -> tuple[list[str], np.ndarray]:
    """Give names and matrix[name, name] of the mean of both directions, NaN where neither is published."""
    names = sorted({name for pair in trips for name in pair})
    index = {name: i for i, name in enumerate(names)}
    total, count = np.zeros((2, len(names), len(names)))
    for (source, destination), ms in trips.items():
        i, j = index[source], index[destination]
        total[[i, j], [j, i]] += ms
        count[[i, j], [j, i]] += 1
    with np.errstate(invalid="ignore"):
        return names, total / count


def build(folder: Path, out: Path) -> None:
    """Write regions.csv, round_trips.csv and path_model.npy into `out`."""
    rows = read_regions(folder)
    with (out / "regions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    names, matrix = symmetric(read_round_trips(folder))
    with (out / "round_trips.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["name", *names])
        for name, row in zip(names, matrix, strict=True):
            lines.writerow([name, *("" if np.isnan(ms) else f"{ms:.1f}".removesuffix(".0") for ms in row)])
    place = {row["name"]: (float(row["lat"]), float(row["lon"])) for row in rows}
    lat, lon = np.array([place[name] for name in names]).T
    _, rounded = prior.read_round_trips(out / "round_trips.csv")
    np.save(out / "path_model.npy", prior.PathModel.fit(lat, lon, rounded).weights.astype(np.float32))


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
