"""A device has one name, whatever node it comes as; two devices of one name are told apart."""

from __future__ import annotations

import random
from collections.abc import Sequence

from fedlora_server.device_names import DeviceNames
from fedlora_server.replies import Reply

from tests.server.fake_grid import Device, FakeGrid, Honest, Player


class Round:
    """What a round does with names."""

    def __init__(self, names: DeviceNames) -> None:
        self.names = names

    def __call__(self, connected: dict[int, str], silent: Sequence[int] = ()) -> dict[int, str]:
        """{node: name} of the connected nodes, by what each calls itself; those that are silent do not answer."""
        heard = {node: said for node, said in connected.items() if node not in silent}
        self.names.round_over(connected, heard, connected)
        return {node: self.names.of(Reply(node=node, device=said), {}) for node, said in heard.items()}


def test_a_device_that_comes_back_as_another_node_has_its_name() -> None:
    play = Round(DeviceNames())
    assert play({1: "kitchen", 2: "hall"}) == {1: "kitchen", 2: "hall"}
    assert play({7: "kitchen", 2: "hall"}) == {7: "kitchen", 2: "hall"}


def test_a_node_that_flower_still_lists_and_that_did_not_answer_gives_up_its_name() -> None:
    """A node that was killed is listed for a minute longer, beside the one that its device came back as."""
    play = Round(DeviceNames())
    play({1: "kitchen", 2: "hall"})
    assert play({1: "kitchen", 7: "kitchen", 2: "hall"}, silent=[1]) == {7: "kitchen", 2: "hall"}
    assert play({7: "kitchen", 2: "hall"}) == {7: "kitchen", 2: "hall"}


def test_two_nodes_that_both_answer_are_two_devices_whatever_they_call_themselves() -> None:
    play = Round(DeviceNames())
    assert play({1: "texts", 2: "texts"}) == {1: "texts", 2: "texts (2)"}
    assert play({2: "texts", 1: "texts"}) == {1: "texts", 2: "texts (2)"}, "in whatever order they answer"
    assert play({1: "texts", 2: "texts"}, silent=[1]) == {2: "texts (2)"}, "nobody changes a name that he has"
    assert play({1: "texts", 2: "texts"}) == {1: "texts", 2: "texts (2)"}


def test_the_second_of_a_name_comes_back_as_the_second() -> None:
    play = Round(DeviceNames())
    play({1: "texts", 2: "texts"})
    assert play({1: "texts", 9: "texts"}) == {1: "texts", 9: "texts (2)"}
    assert play({1: "texts", 12: "texts"}) == {1: "texts", 12: "texts (2)"}


def test_an_enrolled_node_has_the_name_of_its_key_whatever_it_says() -> None:
    enrolled = {5: "kitchen"}
    play = Round(DeviceNames(enrolled))
    assert play({4: "kitchen", 5: "hall"}) == {4: "kitchen (4)", 5: "kitchen"}
    enrolled[4] = "attic"  # an operator enrols it while the run goes on
    assert play({4: "kitchen", 5: "hall"}) == {4: "attic", 5: "kitchen"}
    assert DeviceNames(enrolled).known(Reply(node=5, device="hall")) == "kitchen"


def test_a_device_that_is_enrolled_anew_has_its_name_at_once() -> None:
    """With a new key it is another node; the one before was revoked, and may still be connected."""
    enrolled = {5: "kitchen", 6: "cellar"}
    names = DeviceNames(enrolled)
    heard: dict[str, int] = {}
    for node in (5, 6):
        names.of(Reply(node=node, device=enrolled[node]), heard)
    del enrolled[5]
    enrolled[9] = "kitchen"
    names.round_over([6, 9], {6, 9}, [5, 6, 9])
    assert names.of(Reply(node=9, device="kitchen"), heard) == "kitchen"
    assert heard == {"kitchen": 9, "cellar": 6}


def test_names_stay_one_to_one_with_the_nodes_that_answer() -> None:
    """Nodes that come, go, come back and call themselves alike, drawn with a seed."""
    generator = random.Random(5)
    for _ in range(30):
        play, said, node = Round(DeviceNames()), dict[int, str](), 0
        for _ in range(12):
            for gone in [each for each in said if generator.random() < 0.2]:
                del said[gone]
            for _ in range(generator.randrange(3)):
                node += 1
                said[node] = generator.choice(["a", "a (1)", "a (2)", "b"])
            order = generator.sample(list(said), len(said))
            got = play({each: said[each] for each in order}, silent=[each for each in said if generator.random() < 0.3])
            assert len(set(got.values())) == len(got)
            assert all(name.startswith(said[each]) for each, name in got.items())


def test_a_run_names_a_device_alike_after_it_came_back_as_another_node(play: Player) -> None:
    class Reconnecting(FakeGrid):
        """Node 2 is killed after round 1; its device comes back as node 20, and node 2 is listed a round longer."""

        asked_to_train = 0

        def get_node_ids(self) -> list[int]:
            self.asked_to_train += 1
            if self.asked_to_train == 3:
                self.devices[20] = Honest(20, name="kitchen")
                self.devices[2] = lambda message: []
            if self.asked_to_train == 4:
                del self.devices[2]
            return sorted(self.devices)

    devices: dict[int, Device] = {1: Honest(1), 2: Honest(2, name="kitchen"), 3: Honest(3)}
    played = play.soundly(Reconnecting(devices), rounds=4, round_timeout_s=0.3)
    for record in played.metrics[1:]:
        assert set(record["train_loss"]) == {"device-1", "kitchen", "device-3"}
        assert set(record["loss"]) == {"device-1", "kitchen", "device-3"}
    assert [record["nodes"].get("kitchen") for record in played.metrics] == [2, None, 20, None, None]


def test_a_run_that_goes_on_names_alike_a_device_that_came_back_meanwhile(play: Player) -> None:
    first: dict[int, Device] = {1: Honest(1, name="hall"), 2: Honest(2, name="kitchen")}
    half = play.soundly(first, rounds=1)
    again: dict[int, Device] = {1: Honest(1, name="hall"), 9: Honest(9, name="kitchen")}
    whole = play.soundly(again, rounds=2, goes_on=half)
    assert set(whole.metrics[2]["train_loss"]) == {"hall", "kitchen"}
