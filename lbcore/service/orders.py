"""Orders: what a provisioner of kind `manual` waits for, as people are shown it, and as they answer it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lbcore.errors import ServiceError
from lbcore.region import canonical
from lbcore.service.codes import Violation, refusal
from lbcore.service.facts import shown
from lbcore.service.progress import Granted
from lbcore.service.provisioning import Manual, Provisioner, Request

__all__ = ["answer", "waiting"]

Body = dict[str, Any]


def waiting(provisioner: Provisioner) -> list[Body]:
    """Give what waits for a person's word, where the provisioner is `manual`; nothing where it is another one."""
    return [_order(request) for request in provisioner.requests] if isinstance(provisioner, Manual) else []


def answer(provisioner: Provisioner, name: str, id: int, body: object) -> None:
    """Say what came of an order, as `Plane.answer_order`."""
    if not isinstance(provisioner, Manual):
        raise ServiceError("ResourceNotFound", "no order waits for anybody: regions are provisioned by a program", name)
    granted, refusal_ = _granted(body)
    provisioner.answer(canonical(name), id, granted, refusal=refusal_)


def _order(request: Request) -> Body:
    order = request.order
    return {
        "id": request.id, "work": order.work, "name": order.name, "units": order.location.units if order.location else 0,
        "networkType": order.network_mode, "newPublicIP": order.new_public, "newPrivateIP": order.new_private,
        "publicIPAddresses": [*order.public_ips], "privateIPAddresses": [*order.private_ips],
    }  # fmt: skip


def _granted(body: object) -> tuple[Granted, str]:
    if not isinstance(body, Mapping):
        raise refusal([Violation("InvalidProperty", "expected an object", "")])
    lists = {key: body.get(key) or [] for key in ("publicIPAddresses", "privateIPAddresses")}
    texts = {key: body.get(key) or "" for key in ("gateway", "refusal")}
    wrong = [Violation("InvalidProperty", "expected a list of addresses", key) for key, value in lists.items()
             if not isinstance(value, list) or not all(isinstance(each, str) for each in value)]  # fmt: skip
    wrong += [Violation("InvalidProperty", "expected a text", key) for key, value in texts.items() if not isinstance(value, str)]
    wrong += [Violation("UnknownProperty", f"no such property: {shown(key)}", shown(key)[1:-1]) for key in body if key not in lists | texts]
    if wrong:
        raise refusal(wrong)
    return Granted(tuple(lists["publicIPAddresses"]), tuple(lists["privateIPAddresses"]), texts["gateway"]), texts["refusal"]
