"""The Flower ClientApp, called as a grid calls it: messages are serialised both ways."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedlora.base.pack import BasePack
from fedlora.config.run import AggregationConfig, DataConfig, LoraSection, RunConfig, ServerConfig, TrainConfig
from fedlora.errors import ConfigError, DataError, UpdateError
from fedlora.lora.adapter import Adapter
from fedlora.lora.config import LoraConfig
from fedlora.lora.ranks import first_components, joined
from fedlora.wire.task import Task
from fedlora.wire.update import Update, decode_update, encode_update
from fedlora_client.app import app
from fedlora_client.data.files_dataset import files
from fedlora_client.data.windows import make_windows
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.device import Device
from fedlora_client.training.measuring import evaluate
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.app.user_config import UserConfig
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.supercore.task_identity import TaskIdentity

from tests.client.train_cases import assert_equal_bits
from tests.reference.agreement import assert_close
from tests.tiny.adapters import changed, random_adapter
from tests.tiny.kinds import adapter_of_kind
from tests.tiny.llamas import Variant, save_pack
from tests.tiny.tokenizer import byte_tokenizer

TEXT = "".join(f"line {number}: the quick brown fox jumps over the lazy dog\n" for number in range(20))
LORA = LoraConfig(rank=2, alpha=8.0)

Call = Callable[..., Message]


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "kitchen.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def config(base: BasePack, text_file: Path) -> RunConfig:
    return RunConfig(
        base=str(base.directory),
        data=DataConfig(name="files", path=str(text_file)),
        lora=LoraSection(rank=2, alpha=8.0),
        train=TrainConfig(steps=2, batch_size=2, sequence_length=16, compute="float32"),
    )


def update_for(base: BasePack, adapter: Adapter | None = None, **values: Any) -> Update:
    circumstances: dict[str, Any] = {"run": "run-7", "server_round": 3, "base_fingerprint": base.fingerprint} | values
    return Update(adapter=adapter or random_adapter(base, LORA), **circumstances)


def call(config: RunConfig, data: bytes, kind: str = MessageType.TRAIN, record: str = "update", **node: Any) -> Message:
    """What a device answers to `data`."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, SUPERLINK_NODE_ID
    array = Array(dtype="uint8", shape=(len(data),), stype="fedlora.update", data=data)
    message = Message(RecordDict({record: ArrayRecord({"update": array})}), 1, kind)
    message.metadata.__dict__["_message_id"] = "message-1"  # as Flower's own grids set it
    context = Context(
        run_id=7,
        node_id=1,
        node_config=UserConfig({"partition-id": 0, "data-path": config.data.path, **node}),
        state=RecordDict(),
        run_config=UserConfig(config.flat()),
    )
    reply = app(message_from_proto(message_to_proto(message)), context)
    reply.metadata.__dict__["_message_id"] = "message-2"
    return message_from_proto(message_to_proto(reply))


def device_of(config: RunConfig) -> Device:
    """A device of the run, without Flower."""
    return Device(config, {"partition-id": 0, "data-path": config.data.path})


def error_of(reply: Message) -> str:
    assert reply.has_error()
    assert reply.error.reason is not None
    return str(reply.error.reason)


@pytest.mark.parametrize("codec", ["f32", "f16"])
def test_a_train_reply_is_an_update_of_the_same_run_round_and_base(
    base: BasePack, config: RunConfig, codec: str
) -> None:
    config = dataclasses.replace(config, server=ServerConfig(codec=codec))
    sent = update_for(base)
    reply = call(config, encode_update(sent))
    assert not reply.has_error()
    array = reply.content.array_records["update"]["update"]
    assert (array.dtype, array.shape, array.stype) == ("uint8", (len(array.data),), "fedlora.update")
    got = decode_update(array.data)
    assert (got.run, got.server_round, got.base_fingerprint) == ("run-7", 3, base.fingerprint)
    assert got.adapter.config == sent.adapter.config
    assert got.adapter.pairs.keys() == sent.adapter.pairs.keys()
    assert got.metrics.keys() == {
        "train_loss", "tokens", "seconds", "examples", "cut_examples", "left_out_examples"
    }  # fmt: skip
    assert [got.metrics[name] for name in ("examples", "cut_examples", "left_out_examples")] == [1, 0, 0]
    # 18 of 20 lines are for training; each of their bytes is a target once, in windows of 16.
    device = device_of(config)
    train_tokens = device.data.train_bytes
    assert got.num_examples == -(-train_tokens // 16) == len(device.train_windows())
    assert got.metrics["tokens"] == 2 * 2 * 16
    assert reply.content.config_records["device"]["device"] == "kitchen"
    # What came back is the training's own result.
    expected = device.train(sent.adapter, 3)
    dtype = {"f32": np.float32, "f16": np.float16}[codec]
    for module, pair in expected.adapter.pairs.items():
        assert np.array_equal(got.adapter.pairs[module].lora_A, pair.lora_A.astype(dtype).astype(np.float32))
        assert np.array_equal(got.adapter.pairs[module].lora_B, pair.lora_B.astype(dtype).astype(np.float32))
    assert_close(got.metrics["train_loss"], np.mean(expected.losses))


def update_in(reply: Message, known: Callable[[], Adapter] | None = None) -> Update:
    assert not reply.has_error(), reply.error.reason
    return decode_update(reply.content.array_records["update"]["update"].data, known)


def test_a_factor_that_every_device_makes_from_the_seed_travels_in_no_direction(
    base: BasePack, config: RunConfig
) -> None:
    first = config.first_adapter(base)
    trained = random_adapter(base, LORA)
    pairs = {m: dataclasses.replace(pair, lora_A=first.pairs[m].lora_A) for m, pair in trained.pairs.items()}
    task = Task(trains="B", sends="B")
    sent = update_for(base, Adapter(first.config, pairs), factors="B", task=task)
    down, reply = encode_update(sent), call(config, encode_update(sent))
    whole = encode_update(dataclasses.replace(sent, factors="AB"))
    assert len(whole) - len(down) == 4 * sum(pair.lora_A.size for pair in pairs.values())
    up = reply.content.array_records["update"]["update"].data
    assert len(up) < len(whole) - 4 * sum(pair.lora_A.size for pair in pairs.values()) + 600
    with pytest.raises(UpdateError, match="only B came"):
        update_in(reply)
    got = update_in(reply, lambda: config.first_adapter(base))
    assert (got.factors, got.frozen, got.task) == ("B", None, Task())
    assert (got.run, got.server_round, got.base_fingerprint) == ("run-7", 3, base.fingerprint)
    expected = device_of(config).train(sent.adapter, 3, task=task)
    for module, pair in expected.adapter.pairs.items():
        assert np.array_equal(pair.lora_A, pairs[module].lora_A)
        assert np.array_equal(got.adapter.pairs[module].lora_A, pair.lora_A)
        assert np.array_equal(got.adapter.pairs[module].lora_B, pair.lora_B)
        assert not np.array_equal(pairs[module].lora_B, pair.lora_B)


def test_a_factor_that_is_not_sent_stays_on_the_device(base: BasePack, config: RunConfig, tmp_path: Path) -> None:
    node = {"state-path": str(tmp_path / "state")}
    task, adapter = Task(trains="AB", sends="A"), random_adapter(base, LORA)

    def asked(server_round: int, kind: str = MessageType.TRAIN) -> Message:
        update = update_for(base, adapter, server_round=server_round, task=task, run="run-1")
        return call(config, encode_update(update), kind, **node)

    def seen(reply: Message) -> Update:
        return update_in(reply, lambda: adapter)

    device = device_of(config)
    first = device.train(adapter, 1).adapter
    assert seen(asked(1)).factors == "A"
    own = {m: dataclasses.replace(pair, lora_B=first.pairs[m].lora_B) for m, pair in adapter.pairs.items()}
    expected = device.train(Adapter(adapter.config, own), 2).adapter
    for _ in range(2):
        got = seen(asked(2)).adapter
        assert all(np.array_equal(got.pairs[m].lora_A, pair.lora_A) for m, pair in expected.pairs.items())
    measured = asked(1, MessageType.EVALUATE).content.metric_records["metrics"]["loss"]
    assert measured == device.evaluate(Adapter(adapter.config, own))[0]
    for kind in (MessageType.TRAIN, MessageType.EVALUATE):
        data = encode_update(update_for(base, adapter, task=task))
        assert "has no state-path" in error_of(call(config, data, kind))


def test_what_stands_beside_the_adapter_is_computed_with_and_does_not_come_back(
    base: BasePack, config: RunConfig
) -> None:
    adapter, frozen = random_adapter(base, LORA), random_adapter(base, seed=6)
    data = encode_update(update_for(base, adapter, frozen=frozen))
    got, device = update_in(call(config, data)), device_of(config)
    assert got.frozen is None
    assert_equal_bits(got.adapter, device.train(adapter, 3, frozen=frozen).adapter)
    assert not np.array_equal(
        got.metrics["train_loss"],
        update_in(call(config, encode_update(update_for(base, adapter)))).metrics["train_loss"],
    )
    apart = call(config, data, MessageType.EVALUATE).content.metric_records["metrics"]
    together = encode_update(update_for(base, joined(adapter, frozen)))
    joint = call(config, together, MessageType.EVALUATE).content.metric_records["metrics"]
    assert_close(apart["loss"], joint["loss"])
    assert apart["tokens"] == joint["tokens"]


@pytest.mark.parametrize("kind", [MessageType.TRAIN, MessageType.EVALUATE])
def test_what_stands_beside_the_adapter_is_checked_as_the_adapter_is(
    base: BasePack, config: RunConfig, kind: str
) -> None:
    frozen = random_adapter(base, LORA)
    sick = changed(frozen, lambda module, lora_A, lora_B: (lora_A * np.float32(np.nan), lora_B))
    few = random_adapter(base, LoraConfig(rank=2, target_modules=("q_proj",)))
    foreign = changed(frozen, lambda module, lora_A, lora_B: (lora_A[:, :-1], lora_B))
    for wrong, word in ((sick, "NaN"), (few, "has other modules than the adapter"), (foreign, "the base's is")):
        assert word in error_of(call(config, encode_update(update_for(base, frozen=wrong)), kind))


def test_a_device_of_a_smaller_rank_answers_with_the_components_that_it_trained(
    base: BasePack, config: RunConfig
) -> None:
    adapter = random_adapter(base, LORA)
    data = encode_update(update_for(base, adapter))
    node: dict[str, Any] = {"max-rank": 1}
    assert "this run takes 2 and more" in error_of(call(config, data, **node))
    config = dataclasses.replace(config, aggregation=AggregationConfig(min_rank=1))
    got = update_in(call(config, data, **node)).adapter
    assert_equal_bits(got, device_of(config).train(first_components(adapter, 1), 3).adapter)
    assert {pair.rank for pair in got.pairs.values()} == {1}
    measured = call(config, data, MessageType.EVALUATE, **node).content.metric_records["metrics"]["loss"]
    assert measured == device_of(config).evaluate(adapter)[0]


def test_an_evaluate_reply_holds_the_held_out_loss(base: BasePack, config: RunConfig, decoder: Decoder) -> None:
    sent = update_for(base)
    reply = call(config, encode_update(sent), MessageType.EVALUATE)
    assert not reply.has_error()
    cut = TEXT.rfind("\n", 0, int(len(TEXT) * 0.9)) + 1
    held_out = make_windows([TEXT[cut:]], byte_tokenizer(), base.shape, 16, "test")
    loss, tokens = evaluate(decoder, sent.adapter, held_out)
    metrics = reply.content.metric_records["metrics"]
    assert metrics["tokens"] == tokens == len(TEXT[cut:])
    assert_close(metrics["loss"], loss)
    assert reply.content.config_records["device"]["device"] == "kitchen"


@pytest.mark.parametrize("kind", [MessageType.TRAIN, MessageType.EVALUATE])
def test_an_update_for_another_base_is_refused_with_both_fingerprints(
    base: BasePack, config: RunConfig, kind: str
) -> None:
    other = hashlib.sha256(b"another base").hexdigest()
    reason = error_of(call(config, encode_update(update_for(base, base_fingerprint=other)), kind))
    assert other[:16] in reason
    assert base.fingerprint[:16] in reason
    assert "device kitchen" in reason


def test_a_base_of_the_devices_own_goes_before_the_runs(base: BasePack, config: RunConfig, tmp_path: Path) -> None:
    mine = save_pack(Variant(seed=9), tmp_path / "mine")
    assert mine.fingerprint != base.fingerprint
    data = encode_update(update_for(base))
    reason = error_of(call(config, data, base=str(mine.directory)))
    assert mine.fingerprint[:16] in reason
    own = encode_update(update_for(base, base_fingerprint=mine.fingerprint))
    assert not call(config, own, base=str(mine.directory)).has_error()


def test_an_adapter_of_other_shapes_is_refused_by_its_module(base: BasePack, config: RunConfig, tmp_path: Path) -> None:
    other = save_pack(Variant(inner=96), tmp_path / "other")
    adapter = random_adapter(other, LORA)
    reason = error_of(call(config, encode_update(update_for(base, adapter))))
    assert "model.layers.0.mlp.gate_proj updates a weight [96, 64], the base's is [172, 64]" in reason


@pytest.mark.parametrize("server_round", [-1, 0, 10**4000])
def test_a_round_that_cannot_be_is_an_error_of_ours(base: BasePack, config: RunConfig, server_round: int) -> None:
    reason = error_of(call(config, encode_update(update_for(base, server_round=server_round))))
    assert "round" in reason
    assert len(reason) < 200


def test_a_device_trains_no_larger_rank_than_its_run_says(base: BasePack, config: RunConfig) -> None:
    large = random_adapter(base, LoraConfig(rank=512, alpha=8.0))
    reason = error_of(call(config, encode_update(update_for(base, large))))
    assert "q_proj came with rank 512, the run's configuration allows 2; raise lora.rank" in reason
    for kind, update in (
        (MessageType.EVALUATE, update_for(base, large)),
        (MessageType.TRAIN, update_for(base, frozen=large)),
    ):
        reason = error_of(call(config, encode_update(update), kind))
        assert "q_proj came with rank 512, the run's configuration allows 64; raise aggregation.max_rank" in reason
    committed = random_adapter(base, LoraConfig(rank=64, alpha=8.0))
    assert not call(config, encode_update(update_for(base, committed)), MessageType.EVALUATE).has_error()


def test_a_device_takes_no_more_virtual_tokens_than_its_run_says(base: BasePack, config: RunConfig) -> None:
    few, many = (LoraSection(method="prefix", num_virtual_tokens=count) for count in (3, 4))
    update = update_for(base, adapter_of_kind("prefix", base, section=many))
    reason = error_of(call(dataclasses.replace(config, lora=few), encode_update(update)))
    assert "came with 4 virtual tokens, the run's configuration allows 3; raise lora.num_virtual_tokens" in reason
    assert not call(dataclasses.replace(config, lora=many), encode_update(update)).has_error()


@pytest.mark.parametrize("kind", [MessageType.TRAIN, MessageType.EVALUATE])
def test_bytes_that_are_no_update_are_an_error_reply(base: BasePack, config: RunConfig, kind: str) -> None:
    sound = encode_update(update_for(base))
    for garbage, word in (
        (b"", "not an update"),
        (b"\x00" * 100, "not an update"),
        (sound[:40], "truncated"),
        (sound[:-3], "payload of"),
        (sound + b"x", "payload of"),
    ):
        assert word in error_of(call(config, garbage, kind))


@pytest.mark.parametrize("kind", [MessageType.TRAIN, MessageType.EVALUATE])
def test_an_adapter_with_nan_is_refused_by_the_name_of_its_tensor(base: BasePack, config: RunConfig, kind: str) -> None:
    victim = "model.layers.1.mlp.up_proj"
    poisoned = changed(
        random_adapter(base, LORA),
        lambda module, lora_A, lora_B: (lora_A, np.full_like(lora_B, np.nan) if module == victim else lora_B),
    )
    reason = error_of(call(config, encode_update(update_for(base, poisoned)), kind))
    assert victim in reason


def test_a_message_without_the_update_record_is_an_error_reply(base: BasePack, config: RunConfig) -> None:
    error_of(call(config, encode_update(update_for(base)), record="something-else"))


def test_a_device_without_text_answers_with_an_error(base: BasePack, config: RunConfig, text_file: Path) -> None:
    text_file.write_text("a single line has no end, so nothing is held out")
    data = encode_update(update_for(base))
    assert not call(config, data).has_error()
    reason = error_of(call(config, data, MessageType.EVALUATE))
    assert "device kitchen: held-out text: no text" in reason


def test_an_unknown_key_of_the_run_configuration_is_an_error_reply(base: BasePack, config: RunConfig) -> None:
    flat = config.flat()

    class Wrong(RunConfig):
        def flat(self) -> dict[str, bool | int | float | str]:
            return {**flat, "train.learning_rate": 0.1}

    reason = error_of(call(Wrong(), encode_update(update_for(base))))
    assert "unknown key train.learning_rate" in reason


def test_a_devices_training_is_its_own_each_round(config: RunConfig, base: BasePack) -> None:
    device = device_of(config)
    adapter = random_adapter(base, LORA)
    first, again, later = device.train(adapter, 1), device.train(adapter, 1), device.train(adapter, 2)
    assert first.losses == again.losses
    assert first.losses != later.losses


def test_max_bytes_cuts_the_training_text_and_no_character(config: RunConfig, text_file: Path) -> None:
    text_file.write_text("é" * 30 + "\n" + "held out at the end\n", encoding="utf-8")
    cut = dataclasses.replace(config, data=dataclasses.replace(config.data, max_bytes=9))
    whole, short = device_of(config), device_of(cut)
    assert short.data.train == ("éééé",)
    assert short.data.train_bytes == 8
    assert short.data.held_out == whole.data.held_out == ("held out at the end\n",)


def test_files_reads_every_text_file_below_a_devices_folder(tmp_path: Path) -> None:
    for place in ("0/a.txt", "0/deep/b.txt", "0/c.md", "1/d.txt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(f"{place}\n" * 20)
    data = files(DataConfig(name="files", path=str(tmp_path)), {"partition-id": 0})
    assert data.train == ("0/a.txt\n" * 18, "0/deep/b.txt\n" * 18)
    assert data.held_out == ("0/a.txt\n" * 2, "0/deep/b.txt\n" * 2)
    assert data.name == "0"
    own = files(DataConfig(name="files", path=str(tmp_path)), {"partition-id": 0, "data-path": str(tmp_path / "1")})
    assert own.train == ("1/d.txt\n" * 18,)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read: No such file or directory"), (b"caf\xe9", "not UTF-8 text: byte 3 is wrong")],
)
def test_files_refuses_what_is_no_text_by_its_name(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "notes.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"notes\.txt: {message}"):
        files(DataConfig(name="files"), {"data-path": str(path)})


def test_files_refuses_a_folder_without_text_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \*\.txt file below it"):
        files(DataConfig(name="files"), {"data-path": str(tmp_path)})


@pytest.mark.parametrize(
    ("name", "told"), [("photographs", r"there is .*files.*stdlib"), ("flies", r"did you mean 'files'\?")]
)
def test_an_unknown_data_set_is_refused_with_the_known_ones(config: RunConfig, name: str, told: str) -> None:
    wrong = dataclasses.replace(config, data=DataConfig(name=name))
    with pytest.raises(ConfigError, match=rf"no data set '{name}'; {told}"):
        Device(wrong, {})


def test_the_server_does_not_choose_what_a_real_device_reads(tmp_path: Path) -> None:
    (tmp_path / "private.txt").write_text("a diary\n" * 20)
    with pytest.raises(DataError, match="data-path"):
        files(DataConfig(name="files", path=str(tmp_path)), {"base": "nano"})
