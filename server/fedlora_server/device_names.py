"""The name by which a run knows a device."""

from __future__ import annotations

from collections.abc import Container, Mapping

from fedlora_server.exchange import Reply


class DeviceNames:
    """The name that a device gives itself, with its node's number where another device has that name already."""

    def __init__(self) -> None:
        self._by_node: dict[int, str] = {}  # in the order in which they first answered

    def restore(self, nodes: Mapping[str, int], connected: Container[int]) -> None:
        """Know those of `nodes` again that are `connected`: the others' names are free, as for a node that came anew."""
        self._by_node |= {node: name for name, node in nodes.items() if node in connected}

    def of(self, reply: Reply, heard: dict[str, int]) -> str:
        """The device's name; one that was not known goes into `heard` with its node."""
        if reply.node not in self._by_node:
            name = reply.device
            while name in self._by_node.values():
                name = f"{name} ({reply.node})"
            self._by_node[reply.node] = name
            heard[name] = reply.node
        return self._by_node[reply.node]
