"""SuperLink's nodes follow devices.json: whoever is enrolled is registered, whoever was revoked is not."""

from __future__ import annotations

from dataclasses import replace

from fedlora_server.fleet.control import UNREGISTERED, Control
from fedlora_server.fleet.devices import Devices


def register_all(control: Control, devices: Devices) -> None:
    """Make SuperLink know the keys of the fleet and no revoked one, and give each device its node.

    Nodes that were registered by hand, with keys that the fleet never had, are left alone.
    """
    nodes = {node.public_key: node for node in control.nodes() if node.status != UNREGISTERED}
    for entry in list(devices.entries):
        node = nodes.get(entry.public_key)
        if entry.revoked:
            if node is not None:
                control.unregister(node.node)
        elif node is None:
            devices.put(replace(entry, node=control.register(entry.public_key, entry.name)))
        elif node.node != entry.node:
            devices.put(replace(entry, node=node.node))
