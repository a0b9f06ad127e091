"""A classification head that trains beside an adapter: its gradient, its place in a training, and PEFT's reading of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from fedlora.base.heads import extra_shapes, initial_extras
from fedlora.base.pack import BasePack
from fedlora.config.run import LoraSection, RunConfig
from fedlora.errors import AdapterMismatchError, ConfigError
from fedlora.lora.adapter import Adapter, with_extras
from fedlora.peft.directory import PeftDirectory, read_peft, write_peft
from fedlora.wire.update import Update
from fedlora_client.device import Device
from fedlora_client.encoder.encoder import Encoder
from fedlora_client.layers.step_plan import MemoryPlan
from fedlora_client.local_training import LocalRun, LocalTraining
from fedlora_client.ops.compute import Compute
from fedlora_client.service.committed import RECORD, CommittedAdapters
from fedlora_client.service.state import StateFolder
from fedlora_client.training.measuring import measure
from fedlora_client.training.planning import plan_training
from fedlora_client.training.stack import train_stack
from fedlora_client.training.trainer import Saving, TrainResult, Watcher, train
from fedlora_server.run.run_directory import read_config

from tests.client.encoder.test_parity import LENGTHS, problem_of
from tests.client.encoder.test_training import config_of, device_of, records, written
from tests.client.train_cases import assert_equal_bits
from tests.reference.agreement import assert_close
from tests.reference.oracles import oracle, peft_encoder, pefts_own_warnings, trained_by_peft
from tests.tiny.adapters import random_adapter
from tests.tiny.encoders import ENCODERS, encoder_pack, shape_of
from tests.tiny.llamas import DEFAULT, Packs

PARTS = {"bert": ("classifier", "pooler"), "roberta": ("classifier",), "distilbert": ("classifier",)}


def with_head(base: BasePack, adapter: Adapter, parts: tuple[str, ...] = ("classifier",), seed: int = 4) -> Adapter:
    """`adapter` with numbers of its own in these parts of the head."""
    generator = np.random.default_rng(seed)
    shapes = extra_shapes(parts, base.model)
    return with_extras(adapter, {n: generator.normal(0, 0.3, s).astype(np.float32) for n, s in shapes.items()})


@pytest.mark.parametrize("name", ENCODERS)
def test_the_parts_of_a_head_are_those_that_peft_saves_by_these_names(name: str) -> None:
    base = encoder_pack(name)
    for part, tensors in shape_of(base).head_parts().items():
        config = peft.LoraConfig(target_modules=[next(iter(base.model.linear_modules()))], modules_to_save=[part])
        with pefts_own_warnings():
            theirs = trained_by_peft(peft.get_peft_model(oracle(base), config))
        assert {tensor: tuple(parameter.shape) for tensor, parameter in theirs.items()} == tensors


@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize("name", ENCODERS)
def test_scores_losses_and_the_gradients_of_a_head_equal_pefts(compute: Compute, name: str, kept: int) -> None:
    base = encoder_pack(name)
    encoder, adapter = Encoder(base, compute), with_head(base, random_adapter(base), PARTS[name])
    tokens, targets, starts = problem_of(base)
    model, parameters = peft_encoder(base, adapter, PARTS[name])
    out, weights = model(input_ids=tokens, attention_mask=(starts == 0).long()), torch.tensor([0.1, 0.4, 0.2, 0.3])
    expected = torch.nn.functional.cross_entropy(out.logits, targets[:, 0], reduction="none")
    torch.autograd.backward(weights @ expected)

    lora = encoder.lora(adapter)
    scale = weights[:, None].expand(targets.shape)
    losses = encoder.add_gradients(
        tokens, targets, starts, scale, lora, encoder.workspace(), MemoryPlan(kept_blocks=kept)
    )
    assert_close(encoder.logits(tokens, lora, starts), out.logits)
    assert_close(losses[:, 0], expected)
    assert_close(encoder.losses(tokens, targets, starts, lora, encoder.workspace()), losses)
    plain = encoder.logits(tokens, encoder.lora(with_extras(adapter, {})), starts)
    assert float((plain - out.logits).detach().abs().max()) > 0.1
    theirs = trained_by_peft(model)
    assert lora.extras.keys() == theirs.keys()
    for tensor, extra in lora.extras.items():
        assert_close(extra.gradients[0], theirs[tensor].grad)
    for module, gradients in lora.gradients().items():
        for mine, of_peft in zip(gradients, parameters[module], strict=True):
            assert_close(mine, of_peft.grad)


def test_gradients_of_a_batch_in_parts_add_up(compute: Compute) -> None:
    base = encoder_pack("bert")
    encoder, adapter = Encoder(base, compute), with_head(base, random_adapter(base))
    tokens, targets, starts = problem_of(base)
    whole, parts = encoder.lora(adapter), encoder.lora(adapter)
    scale = torch.full(targets.shape, 0.25)
    encoder.add_gradients(tokens, targets, starts, scale, whole, encoder.workspace())
    for rows in (slice(0, 2), slice(2, 4)):
        encoder.add_gradients(tokens[rows], targets[rows], starts[rows], scale[rows], parts, encoder.workspace())
    for tensor, extra in whole.extras.items():
        assert_close(parts.extras[tensor].gradients, extra.gradients)


@pytest.fixture(scope="module")
def base() -> BasePack:
    return encoder_pack("bert")


def test_adapters_with_heads_of_their_own_train_side_by_side_as_each_alone(base: BasePack, tmp_path: Path) -> None:
    device = device_of(base, written(tmp_path / "notes.jsonl", records(30)))
    adapters = [with_head(base, random_adapter(base, seed=seed), seed=seed) for seed in (5, 6)]
    windows, config = device.train_windows(), config_of(base, steps=3).train
    together = train_stack(
        device.model, adapters, [windows, windows], config, [np.random.default_rng(seed) for seed in (1, 2)]
    )
    for seed, adapter, got in zip((1, 2), adapters, together, strict=True):
        alone = train(device.model, adapter, windows, config, np.random.default_rng(seed))
        np.testing.assert_allclose(got.losses, alone.losses, rtol=1e-4)
        for tensor, array in alone.adapter.extras.items():
            np.testing.assert_allclose(got.adapter.extras[tensor], array, rtol=0, atol=2e-4)


def headed(base: BasePack, data: Path, *parts: str, **train: Any) -> Device:
    config = replace(config_of(base, **train), lora=LoraSection(rank=4, alpha=8.0, modules_to_save=parts))
    return Device(config, {"data-path": str(data)})


def test_a_new_head_learns_what_the_random_one_that_is_frozen_does_not(base: BasePack, tmp_path: Path) -> None:
    data = written(tmp_path / "notes.jsonl", records(90))
    frozen, trains = (headed(base, data, *parts, steps=8, lr=0.003) for parts in ((), ("classifier",)))
    first = trains.first_adapter()
    assert_equal_bits(with_extras(first, {}), frozen.first_adapter())
    for tensor, array in first.extras.items():
        np.testing.assert_array_equal(array, base.floats(tensor))
    results = [device.train(device.first_adapter(), 1) for device in (frozen, trains)]
    assert results[0].losses[0] == results[1].losses[0]
    losses = [measure(frozen.model, result.adapter, frozen.held_out_windows()).loss for result in results]
    assert losses[1] < losses[0]
    assert not np.array_equal(results[1].adapter.extras["classifier.weight"], first.extras["classifier.weight"])


@pytest.mark.parametrize("trains", ["AB", "B"])
def test_a_training_that_was_stopped_goes_on_to_the_same_bits_of_the_head(
    base: BasePack, tmp_path: Path, trains: Any
) -> None:
    device = headed(base, written(tmp_path / "notes.jsonl", records(30)), "classifier", "pooler")
    windows, config = device.train_windows(), config_of(base, steps=6).train
    saving, stopped = Saving(file=tmp_path / "state", every=2), ValueError()

    def stop(step: int, loss: float) -> None:
        if step == 4:
            raise stopped

    def trained(adapter: Adapter, watcher: Watcher, saving: Saving | None) -> TrainResult:
        generator = np.random.default_rng(0)
        return train(device.model, adapter, windows, config, generator, watcher, saving=saving, trains=trains)

    first = device.first_adapter()
    whole = trained(first, Watcher(), None)
    with pytest.raises(ValueError):
        trained(first, Watcher(on_step=stop), saving)
    with pytest.raises(ConfigError, match="another training's"):
        trained(with_head(base, first, ("classifier", "pooler")), Watcher(), saving)
    again = trained(first, Watcher(), saving)
    assert again.losses == whole.losses
    assert_equal_bits(again.adapter, whole.adapter)
    for tensor, array in whole.adapter.extras.items():
        np.testing.assert_array_equal(again.adapter.extras[tensor], array)
        assert not np.array_equal(first.extras[tensor], array)


def test_the_plan_counts_the_head(base: BasePack) -> None:
    encoder, config = Encoder(base), config_of(base, memory_mb=2000).train
    plain = random_adapter(base)
    large = with_extras(plain, {"classifier.weight": np.zeros((1000, 50_000), np.float32)})  # 200 MB, seven times
    plan_training(encoder, [plain], config)
    with pytest.raises(ConfigError, match=r"a training takes at least \d+ MB"):
        plan_training(encoder, [large], replace(config, memory_mb=1500))


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("name", ENCODERS)
def test_pefts_auto_model_loads_the_head_with_the_same_scores(
    compute: Compute, name: str, dtype: Any, tmp_path: Path
) -> None:
    """On the checkpoint whose weights are the dequantized base's."""
    base = encoder_pack(name)
    adapter = with_head(base, random_adapter(base), PARTS[name])
    model = oracle(base)
    model.save_pretrained(tmp_path / "checkpoint")
    content = PeftDirectory(
        adapter=adapter, base_fingerprint=base.fingerprint, extra_dtypes=dict.fromkeys(adapter.extras, dtype)
    )
    write_peft(tmp_path / "adapter", content, base_name=str(tmp_path / "checkpoint"))
    kept = read_peft(tmp_path / "adapter")
    assert not kept.saved_modules
    assert {tensor: array.shape for tensor, array in kept.adapter.extras.items()} == {
        tensor: array.shape for tensor, array in adapter.extras.items()
    }
    write_peft(tmp_path / "again", kept)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "adapter" / file).read_bytes()
    tokens, _, starts = problem_of(base)
    with pefts_own_warnings():
        theirs = peft.AutoPeftModelForSequenceClassification.from_pretrained(str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=(starts == 0).long()).logits
    encoder = Encoder(base, compute)
    assert_close(encoder.logits(tokens, encoder.lora(kept.adapter), starts), expected)


@pytest.mark.parametrize("name", ENCODERS)
def test_what_peft_saves_with_a_classifier_is_read_with_the_same_scores(
    compute: Compute, name: str, tmp_path: Path
) -> None:
    base = encoder_pack(name)
    adapter = with_head(base, random_adapter(base), PARTS[name])
    model, _ = peft_encoder(base, adapter, PARTS[name])
    model.save_pretrained(tmp_path / "adapter")
    tokens, _, starts = problem_of(base, LENGTHS)
    with torch.no_grad():
        expected = model(input_ids=tokens, attention_mask=(starts == 0).long()).logits
    content, encoder = read_peft(tmp_path / "adapter"), Encoder(base, compute)
    assert_close(encoder.logits(tokens, encoder.lora(content.adapter), starts), expected)
    write_peft(tmp_path / "again", content)
    assert read_peft(tmp_path / "again").config == content.config


def alone(base: BasePack, data: Path, output: Path, start: Path | None = None, *parts: str) -> LocalTraining:
    config = replace(config_of(base, steps=3, lr=0.001), lora=LoraSection(rank=4, alpha=8.0, modules_to_save=parts))
    return LocalTraining(LocalRun(data=data, output=output, config=config, start=start))


def test_training_alone_saves_the_head_and_goes_on_with_it(base: BasePack, tmp_path: Path) -> None:
    data = written(tmp_path / "notes.jsonl", records(30))
    first = alone(base, data, tmp_path / "first", None, "classifier").train().adapter
    kept = read_peft(tmp_path / "first").adapter
    assert kept.extras.keys() == {"classifier.weight", "classifier.bias"}
    for tensor, array in first.extras.items():
        np.testing.assert_array_equal(kept.extras[tensor], array)
    on = alone(base, data, tmp_path / "second", tmp_path / "first", "pooler")
    assert on.adapter.extras.keys() == {*kept.extras, "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    np.testing.assert_array_equal(on.adapter.extras["classifier.weight"], kept.extras["classifier.weight"])
    result = on.train()
    assert not np.array_equal(result.adapter.extras["classifier.weight"], kept.extras["classifier.weight"])


def test_a_head_for_other_labels_is_refused(base: BasePack, tmp_path: Path) -> None:
    four = with_extras(
        random_adapter(base),
        {"classifier.weight": np.zeros((4, 64), np.float32), "classifier.bias": np.zeros(4, np.float32)},
    )
    write_peft(tmp_path / "adapter", PeftDirectory(adapter=four))
    with pytest.raises(AdapterMismatchError, match=r"its classifier.weight is \[4, 64\], the base's is \[3, 64\]"):
        alone(base, written(tmp_path / "notes.jsonl", records(30)), tmp_path / "out", tmp_path / "adapter")


def test_an_adapter_with_a_head_cannot_stand_beside_another(base: BasePack, tmp_path: Path) -> None:
    content = PeftDirectory(adapter=with_head(base, random_adapter(base)), base_fingerprint=base.fingerprint)
    write_peft(tmp_path / "first", content)
    data = written(tmp_path / "notes.jsonl", records(30))
    config = replace(config_of(base, steps=3, lr=0.001), lora=LoraSection(rank=4, alpha=8.0))
    with pytest.raises(
        AdapterMismatchError, match=r"first: also replaces classifier.bias, .* cannot stand beside another"
    ):
        LocalTraining(LocalRun(data=data, output=tmp_path / "out", config=config, beside=tmp_path / "first"))


@pytest.mark.parametrize("name", [*ENCODERS, "bare bert"])
def test_by_default_the_whole_head_of_an_encoder_trains(name: str) -> None:
    base = encoder_pack(name)
    whole = extra_shapes(base.model.head_parts(), base.model)
    assert (whole == {}) == (name == "bare bert")
    assert RunConfig().first_adapter(base).extras.keys() == whole.keys()
    assert not RunConfig(lora=LoraSection(modules_to_save=())).first_adapter(base).extras


def test_by_default_nothing_of_a_decoder_trains_whole_and_a_run_of_before_keeps_its_head_frozen(
    tmp_path: Path, packs: Packs
) -> None:
    assert not RunConfig().first_adapter(packs(DEFAULT)).extras
    (tmp_path / "config.json").write_text('{"lora.rank": 4}', encoding="utf-8")
    assert not read_config(tmp_path).first_adapter(encoder_pack("bert")).extras


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("bert", "pre_classifier", r"pre_classifier is no head of the base \(bert\); it takes pooler or classifier"),
        ("roberta", "pooler", r"pooler is no head of the base \(roberta\); it takes classifier"),
        ("bare bert", "classifier", r"classifier is no head of the base \(bert\); it has no head; leave it out"),
    ],
)
def test_what_is_no_head_is_refused_with_what_is_possible(name: str, part: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        initial_extras([part], encoder_pack(name))
    with pytest.raises(ConfigError, match=message):
        RunConfig(lora=LoraSection(modules_to_save=(part,))).first_adapter(encoder_pack(name))


def test_a_committed_adapter_whose_head_alone_is_another_is_written_anew(base: BasePack, tmp_path: Path) -> None:
    device = device_of(base, written(tmp_path / "notes.jsonl", records(30)))
    state = StateFolder(tmp_path / "state")
    state.make()
    folder = CommittedAdapters(folder=tmp_path / "adapters", state=state, keep=2)
    for seed in (4, 5):
        adapter = with_head(base, random_adapter(base), seed=seed)
        update = Update(adapter=adapter, run="run", server_round=1, base_fingerprint=base.fingerprint)
        assert folder.offer(device, update, "evaluate") == ""
        path = folder.state.read(RECORD)["path"]
        np.testing.assert_array_equal(
            read_peft(path).adapter.extras["classifier.weight"], adapter.extras["classifier.weight"]
        )
