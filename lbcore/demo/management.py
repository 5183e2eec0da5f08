"""The demo's operator: what people do with the management plane, by REST alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

__all__ = ["Operator"]

Body = dict[str, Any]
_AGAIN = 0.15  # seconds


class Operator:
    """Somebody with a token of the owner's. Whatever is refused or not answered is raised as httpx has it."""

    def __init__(self, url: str, service: str, token: str) -> None:
        self.url, self.service = url, f"{url}/services/{service}"
        self._http = httpx.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=5.0, trust_env=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        response = await self._http.request(method, path if "//" in path else self.service + path, **options)
        if response.is_error:
            text = f"{method} {response.url.path} is answered with {response.status_code}: {response.text[:300]}"
            raise httpx.HTTPStatusError(text, request=response.request, response=response)
        return response

    async def locations(self) -> dict[str, Body]:
        """Give the rows of the Locations table, the primary's first, by region's name."""
        return {row["name"]: row for row in (await self._ask("GET", "/locations")).json()["value"]}

    async def save(self, regions: Sequence[str], why: str, told: Callable[[Body], object] = lambda operation: None) -> Body:
        """Make these the regions besides the primary, by one Save, and wait for its end; `told` is given the operation again and again."""
        answer = await self._ask("GET", "")
        wanted = {"properties": {"additionalLocations": [{"location": region, "sku": {"capacity": 1}} for region in regions]}}
        headers = {"if-match": answer.headers["etag"], "x-lbcore-why": why}
        url = httpx.URL(self.url).join((await self._ask("PATCH", "", json=wanted, headers=headers)).headers["location"])
        while True:
            operation: Body = (await self._ask("GET", str(url))).json()
            told(operation)
            if operation["status"] != "InProgress":
                return operation
            await asyncio.sleep(_AGAIN)

    async def publish(self, document: Mapping[str, Any], why: str) -> str:
        """Publish APIs and policies as the next revision, and give its number."""
        newest = await self._ask("GET", "/gatewayConfiguration")
        known = {"if-match": newest.headers["etag"]} if newest.status_code == 200 else {"if-none-match": "*"}
        answer = await self._ask("PUT", "/gatewayConfiguration", json=document, headers=known | {"x-lbcore-why": why})
        return answer.headers["etag"].strip('"').partition("-")[0]

    async def status_of(self, path: str) -> int | None:
        """Give the status with which a path of the primary answers, None when nobody does."""
        try:
            return (await self._http.get(self.url + path)).status_code
        except httpx.TransportError:
            return None
