"""The names of devices: the same device has the same name in everything that a run says, whatever node it comes as.

Flower gives a node that connects anew another number. So a device is known by what it calls itself, and a node that is not
known yet takes over the name of an earlier one that is gone. Two nodes that are both there may call themselves alike: the
later one then has its node's number behind the name. Neither is refused, for two folders of one name are no fault.

Where devices are enrolled, a node's name is that of its key, and what it calls itself does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Mapping

from fedlora_server.replies import Reply


class DeviceNames:
    """The nodes that were heard, by their names."""

    def __init__(self, enrolled: Mapping[int, str] | None = None) -> None:
        """`enrolled` has the names of the nodes whose keys are known; it is looked into anew at each reply."""
        self._enrolled = {} if enrolled is None else enrolled
        self._by_node: dict[int, str] = {}  # in the order in which they first replied
        self._gone: set[int] = set()  # nodes of `by_node` whose names are free

    def restore(self, nodes: Mapping[str, int], connected: Container[int]) -> None:
        """Know `nodes` again. Those that are not `connected` are gone."""
        self._by_node |= {node: name for name, node in nodes.items()}
        self._gone |= {node for node in nodes.values() if node not in connected}

    def round_over(self, asked: Collection[int], heard: Collection[int], connected: Container[int]) -> None:
        """After a round: a node that did not answer, or is not connected, is gone until it is heard again."""
        self._gone -= set(heard)
        self._gone |= {node for node in self._by_node if node not in heard and (node in asked or node not in connected)}

    def known(self, reply: Reply) -> str:
        """The device's name as far as it is known, for a word about it."""
        return self._enrolled.get(reply.node) or self._by_node.get(reply.node, reply.device)

    def of(self, reply: Reply, heard: dict[str, int]) -> str:
        """The device's name; one that was not known, or comes as another node, goes into `heard` with its node."""
        node, own = reply.node, self._enrolled.get(reply.node)
        if own and self._by_node.get(node, own) != own:
            del self._by_node[node]  # it was enrolled since
        if node not in self._by_node:
            name = self._free_name(own or reply.device, node)
            self._by_node[node] = name
            heard[name] = node
        return self._by_node[node]

    def _free_name(self, said: str, node: int) -> str:
        """`said`, or what stands for it: the name of a device that called itself so and is gone, or a new one."""
        holders = {name: holder for holder, name in self._by_node.items()}
        enrolled = set(self._enrolled.values())
        names = [said, *(name for name in holders if re.fullmatch(rf"{re.escape(said)} \(\d+\)", name))]
        for name in names:
            if name in enrolled and self._enrolled.get(node) != name:
                continue
            holder = holders.get(name)
            if holder is None or holder in self._gone or self._enrolled.get(node) == name:
                if holder is not None:
                    del self._by_node[holder]
                    self._gone.discard(holder)
                return name
        name = said
        while name in holders or name in enrolled:
            name = f"{name} ({node})"
        return name
