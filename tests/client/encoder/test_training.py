"""Training an encoder on labelled texts: on one device, in rounds over several, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fedlora.base.pack import BasePack
from fedlora.config.run import DataConfig, LoraSection, RunConfig, ServerConfig, TrainConfig
from fedlora.data.examples import Labelled, TextRecord
from fedlora.errors import ConfigError, DataError
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.peft.directory import read_peft
from fedlora.wire.label_counts import LabelCounts
from fedlora_client import local_training
from fedlora_client.commands.train import train as train_command
from fedlora_client.data.encoder_windows import label_windows
from fedlora_client.data.tokenizer import open_tokenizer
from fedlora_client.data.windows import IGNORED, Windows, read_windows
from fedlora_client.device import Device
from fedlora_client.encoder.encoder import Encoder
from fedlora_client.local_training import LocalRun, LocalTraining
from fedlora_client.training.measuring import Measured, evaluate, measure
from fedlora_client.training.trainer import Saving, TrainResult, Watcher, train

from tests.client.train_cases import assert_equal_bits
from tests.tiny.adapters import random_adapter
from tests.tiny.encoders import LABELS, encoder_pack, shape_of
from tests.tiny.llamas import DEFAULT as DECODER
from tests.tiny.llamas import save_pack
from tests.tiny.tokenizer import BOS, EOS, byte_tokenizer

WORDS = {
    "sad": ("bad", "poor", "grim", "dull"), "glad": ("good", "fine", "warm", "kind"),
    "neither": ("red", "old", "two", "wet"),
}  # fmt: skip
TRAIN = TrainConfig(steps=40, batch_size=8, sequence_length=24, lr=0.01, compute="float32", device="cpu")


@pytest.fixture(scope="module")
def base() -> BasePack:
    return encoder_pack("bert")


@pytest.fixture(scope="module")
def decoder_pack(tmp_path_factory: pytest.TempPathFactory) -> BasePack:
    return save_pack(DECODER, tmp_path_factory.mktemp("decoder") / "pack")


def records(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of three words; each third has one label, as a name or as its number."""
    draw = random.Random(seed)
    labels = [LABELS[number % 3] for number in range(count)]
    return [
        {"text": " ".join(draw.choices(WORDS[label], k=3)), "label": LABELS.index(label) if number % 2 else label}
        for number, label in enumerate(labels)
    ]


def written(path: Path, lines: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def config_of(base: BasePack, **train: Any) -> RunConfig:
    return RunConfig(
        base=str(base.directory),
        data=DataConfig(name="files"),
        lora=LoraSection(rank=4, alpha=8.0, modules_to_save=()),
        train=TrainConfig(**{**{name: getattr(TRAIN, name) for name in TRAIN.__slots__}, **train}),
        server=ServerConfig(rounds=3),
    )


def device_of(base: BasePack, data: Path, **train: Any) -> Device:
    return Device(config_of(base, **train), {"data-path": str(data)})


def accuracy(device: Device, adapter: Adapter, windows: Windows) -> float:
    return measure(device.model, adapter, windows).scores["accuracy"]


def encoder_of(device: Device) -> Encoder:
    assert isinstance(device.model, Encoder)
    return device.model


def test_a_device_learns_its_labels_and_tells_held_out_texts(base: BasePack, tmp_path: Path) -> None:
    device = device_of(base, written(tmp_path / "notes.jsonl", records(90)))
    before, texts = device.evaluate(None)
    result = device.train(device.first_adapter(), 1)
    after, _ = device.evaluate(result.adapter)
    assert texts == len(device.held_out_windows()) == 9
    assert result.tokens == 40 * 8  # labels
    assert np.mean(result.losses[-5:]) < 0.5 * np.mean(result.losses[:5])
    assert after < 0.5 * before
    assert accuracy(device, result.adapter, device.held_out_windows()) >= 8 / 9


def test_a_labelled_problem_is_learned_in_rounds_over_devices_that_each_lack_a_label(
    base: BasePack, tmp_path: Path
) -> None:
    devices = []
    for number, missing in enumerate(LABELS):
        own = [record for record in records(90, seed=number) if record["label"] not in (missing, LABELS.index(missing))]
        devices.append(device_of(base, written(tmp_path / f"device-{number}.jsonl", own), steps=20))
    everything = device_of(base, written(tmp_path / "all.jsonl", records(90, seed=9)))
    windows = everything.train_windows()
    adapter = devices[0].first_adapter()
    alone = devices[0].train(adapter, 1).adapter
    for server_round in (1, 2, 3):
        adapter = mean([device.train(adapter, server_round).adapter for device in devices])
    assert accuracy(everything, adapter, windows) > 0.9
    assert accuracy(everything, alone, windows) < 0.75  # one label is not in its data


def test_with_a_label_prior_a_device_does_not_unlearn_a_label_that_it_lacks(base: BasePack, tmp_path: Path) -> None:
    """The others' texts are learned as well, and those of the label are less surprising than without."""
    own = [record for record in records(90) if record["label"] not in (LABELS[0], 0)]
    of_lacking = [record for record in records(90, seed=9) if record["label"] in (LABELS[0], 0)]
    lacking = device_of(base, written(tmp_path / "lacking.jsonl", of_lacking)).train_windows()
    losses = {}
    for prior in (0.0, 1.0):
        device = device_of(base, written(tmp_path / "own.jsonl", own), label_prior=prior)
        adapter = device.train(device.first_adapter(), 1).adapter
        losses[prior] = measure(device.model, adapter, lacking).loss
        assert device.train(device.first_adapter(), 1).losses[-1] < 0.3
    assert losses[1.0] < 0.7 * losses[0.0]


def test_a_decoder_refuses_a_label_prior(tmp_path: Path) -> None:
    base = save_pack(DECODER, tmp_path / "pack")
    device = device_of(base, written(tmp_path / "notes.jsonl", [{"text": "a text"}] * 20), label_prior=1.0)
    with pytest.raises(ConfigError, match=r"train.label_prior is 1.0, and llama is a decoder, which learns no labels"):
        device.train(device.first_adapter(), 1)


def mean(adapters: Sequence[Adapter]) -> Adapter:
    """FedAvg by hand: the mean of the factors."""
    pairs = {
        module: LoraPair(*(np.mean([getattr(a.pairs[module], f) for a in adapters], 0) for f in ("lora_A", "lora_B")))
        for module in adapters[0].pairs
    }
    return Adapter(adapters[0].config, pairs)


@pytest.mark.parametrize("name", ["roberta", "distilbert"])
def test_every_family_is_trained_on_its_linear_modules(tmp_path: Path, name: str) -> None:
    device = device_of(encoder_pack(name), written(tmp_path / "notes.jsonl", records(30)), steps=12)
    first = device.first_adapter()
    assert len(first.pairs) == 12
    result = device.train(first, 1)
    assert np.mean(result.losses[-3:]) < np.mean(result.losses[:3])
    assert all(pair.lora_B.any() for pair in result.adapter.pairs.values())


def test_a_batch_in_parts_is_the_batch_as_a_whole(base: BasePack, tmp_path: Path) -> None:
    device = device_of(base, written(tmp_path / "notes.jsonl", records(30)), steps=3)
    windows, adapter = device.train_windows(), random_adapter(base)

    def trained(sequence_length: int) -> TrainResult:
        # A plan counts on texts of this length: the longer, the fewer at a time.
        config = config_of(base, steps=3, sequence_length=sequence_length, lr=0.002).train
        plans: list[int] = []
        watcher = Watcher(on_plan=lambda plan: plans.append(plan.micro_batch))
        result = train(device.model, adapter, windows, config, np.random.default_rng(0), watcher)
        sizes.append(plans[0])
        return result

    sizes: list[int] = []
    whole, in_parts = trained(24), trained(300)
    assert sizes == [8, 1]
    for module, pair in whole.adapter.pairs.items():
        np.testing.assert_allclose(in_parts.adapter.pairs[module].lora_A, pair.lora_A, atol=3e-4)
        np.testing.assert_allclose(in_parts.adapter.pairs[module].lora_B, pair.lora_B, atol=3e-4)
    np.testing.assert_allclose(in_parts.losses, whole.losses, rtol=1e-4)


def test_too_little_memory_is_refused_with_what_would_do(base: BasePack, tmp_path: Path) -> None:
    device = device_of(base, written(tmp_path / "notes.jsonl", records(30)), memory_mb=5)
    with pytest.raises(ConfigError, match=r"train\.memory_mb is 5 .* windows of 24 tokens .* at least \d+ MB"):
        device.train(device.first_adapter(), 1)


def test_windows_hold_the_tokenizers_special_tokens_and_a_label_each(base: BasePack) -> None:
    examples = [Labelled("ab", "glad"), Labelled("a text that is too long for it", 2)]
    windows = label_windows(examples, open_tokenizer(base.directory), shape_of(base), 6, "here")
    assert (windows.examples, windows.truncated, windows.skipped) == (2, 1, 0)
    ids = byte_tokenizer().encode("ab", add_special_tokens=False).ids
    assert windows.inputs[0].tolist() == [BOS, *ids, EOS, 0, 0]
    assert windows.inputs[1, [0, 5]].tolist() == [BOS, EOS]  # a text that is cut keeps its end
    assert windows.starts.tolist() == [[0, 0, 0, 0, 4, 5], [0] * 6]
    assert windows.targets.tolist() == [[1, *[IGNORED] * 5], [2, *[IGNORED] * 5]]
    assert windows.learned_tokens == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            {"text": "a", "label": "bored"},
            r"label 'bored' is none of the model's 3; expected 'sad', 'glad', 'neither', or .* make a head for the data's",
        ),
        ({"text": "a", "label": "3"}, "label '3' is none of the model's 3"),
        ({"text": "a", "label": 3}, "label 3 is none of the model's 3; .* a number from 0 to 2"),
        ({"text": "a", "label": -1}, "label -1 is none of the model's 3"),
        ({"text": "a"}, r"example 2: it has no label, and the base is an encoder \(bert\)"),
        ({"prompt": "a", "completion": "b"}, "example 2: it has no label"),
        ({"text": "a", "label": True}, "example 2: label True is none of the model's 3"),
        ({"text": "a", "label": 0.5}, "example 2: label 0.5 is none of the model's 3"),
        ({"text": "a", "label": ["sad"]}, r"example 2: label \['sad'\] is none of the model's 3"),
        ({"text": "a", "label": {"sad": 1}}, r"example 2: label {'sad': 1} is none of the model's 3"),
        ({"text": "", "label": 1}, "line 2: text is empty"),
        ({"text": 5, "label": 1}, "line 2: text must be a string, got 5"),
        ({"text": "a", "text_pair": "b", "label": 1}, "example 2: text_pair is not supported"),
        ({"label": 1}, r"line 2: expected the fields text, or prompt"),
    ],
)
def test_a_record_that_an_encoder_cannot_learn_is_refused_with_its_place(
    base: BasePack, tmp_path: Path, line: dict[str, Any], message: str
) -> None:
    data = written(tmp_path / "notes.jsonl", [{"text": "fine", "label": 1}, line, *records(20)])
    with pytest.raises(DataError, match=message):
        device_of(base, data).train_windows()


def test_a_decoder_learns_the_text_and_leaves_the_label(decoder_pack: BasePack) -> None:
    labelled, plain = (
        read_windows([example], decoder_pack.directory, decoder_pack.shape, 16, "here")
        for example in (Labelled("a word " * 20, "good"), TextRecord("a word " * 20))
    )
    assert len(plain) > 1  # a text that is longer than a window goes on in the next
    assert torch.equal(labelled.inputs, plain.inputs)
    assert torch.equal(labelled.targets, plain.targets)
    assert torch.equal(labelled.starts, plain.starts)
    assert (labelled.truncated, labelled.skipped) == (0, 0)


@pytest.mark.parametrize("fields", [{"label": 0.5}, {"label": ["sad"]}, {"label": {}}, {"label": 1, "text_pair": "b"}])
def test_what_no_encoder_could_learn_of_a_label_is_nothing_to_a_decoder(
    decoder_pack: BasePack, tmp_path: Path, fields: dict[str, Any]
) -> None:
    lines = [{"text": "a word", **fields}] * 10
    labelled = device_of(decoder_pack, written(tmp_path / "labelled.jsonl", lines)).train_windows()
    plain = device_of(decoder_pack, written(tmp_path / "plain.jsonl", [{"text": "a word"}] * 10)).train_windows()
    assert torch.equal(labelled.targets, plain.targets)


def test_an_encoder_without_a_head_learns_nothing(tmp_path: Path) -> None:
    device = device_of(encoder_pack("bare bert"), written(tmp_path / "notes.jsonl", records(4)))
    with pytest.raises(ConfigError, match=r"has no classification head, .* ForSequenceClassification"):
        device.train_windows()


def test_a_head_of_a_decoder_is_none_of_an_encoders(base: BasePack, tmp_path: Path) -> None:
    config = config_of(base)
    config = RunConfig(
        base=config.base, data=config.data, train=config.train, lora=LoraSection(modules_to_save=("lm_head",))
    )
    run = LocalRun(config=config, data=written(tmp_path / "notes.jsonl", records(30)), output=tmp_path / "adapter")
    with pytest.raises(
        ConfigError,
        match=r"lora\.modules_to_save: lm_head is no head of the base \(bert\); it takes pooler or classifier",
    ):
        LocalTraining(run)


def test_windows_longer_than_the_context_are_refused(base: BasePack, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.sequence_length is 41; the base's context is 40 tokens"):
        device_of(base, written(tmp_path / "notes.jsonl", records(4)), sequence_length=41).train_windows()


def test_the_train_command_trains_an_encoder_and_another_training_goes_on_from_it(
    base: BasePack, tmp_path: Path
) -> None:
    data, output = written(tmp_path / "notes.jsonl", records(60)), tmp_path / "adapter"
    fixed = ("--base", str(base.directory), "--set", "train.sequence_length=24", "--set", "train.compute=float32")
    first = (str(data), "-o", str(output), *fixed, "--rank", "4", "--lr", "0.01", "--steps", "15")
    ran(*first)
    report = json.loads((output / "training.json").read_text())
    assert len(report["losses"]) == 15
    assert report["evaluations"][-1][1] < report["evaluations"][0][1]
    assert 0 <= report["accuracy"] <= 1
    content = read_peft(output)
    assert content.base_fingerprint == base.fingerprint
    assert all(name.startswith("bert.encoder.layer.") for name in content.adapter.pairs)
    again = tmp_path / "again"
    ran(str(data), "-o", str(again), *fixed, "--adapter", str(output), "--lr", "0.001", "--steps", "2")
    assert read_peft(again).adapter.pairs.keys() == content.adapter.pairs.keys()


def test_a_training_that_was_stopped_goes_on_to_the_same_bits(base: BasePack, tmp_path: Path) -> None:
    device = device_of(base, written(tmp_path / "notes.jsonl", records(30)))
    windows, adapter, config = device.train_windows(), device.first_adapter(), config_of(base, steps=6).train
    saving, stopped = Saving(file=tmp_path / "state", every=2), ValueError()

    def stop(step: int, loss: float) -> None:
        if step == 4:
            raise stopped

    def trained(watcher: Watcher, saving: Saving | None) -> TrainResult:
        return train(device.model, adapter, windows, config, np.random.default_rng(0), watcher, saving=saving)

    whole = trained(Watcher(), None)
    with pytest.raises(ValueError):
        trained(Watcher(on_step=stop), saving)
    assert saving.file.exists()
    again = trained(Watcher(), saving)
    assert again.losses == whole.losses
    assert_equal_bits(again.adapter, whole.adapter)


def test_evaluation_is_the_mean_loss_of_the_texts_however_they_are_cut(base: BasePack, tmp_path: Path) -> None:
    device, adapter = device_of(base, written(tmp_path / "notes.jsonl", records(60))), random_adapter(base)
    windows = device.train_windows()
    loss, texts = evaluate(device.model, adapter, windows)
    frugal, _ = evaluate(device.model, adapter, windows, memory_mb=5)
    assert texts == len(windows) == 54
    assert frugal == pytest.approx(loss, rel=1e-5)


def test_windows_without_room_for_a_text_are_refused(base: BasePack) -> None:
    examples, tokenizer = [Labelled("ab", 0)], open_tokenizer(base.directory)
    for length in (1, 2):
        with pytest.raises(ConfigError, match=f"sequence_length is {length}; .* adds 2 special tokens .* 3 or more"):
            label_windows(examples, tokenizer, shape_of(base), length, "here")
    windows = label_windows(examples, tokenizer, shape_of(base), 3, "here")
    assert windows.inputs[0, [0, 2]].tolist() == [BOS, EOS]
    assert windows.truncated == 1


@pytest.mark.parametrize("length", [5, 9, 40])
def test_a_text_is_cut_as_its_tokenizer_cuts_it_and_the_tokenizer_stays_as_it_was(base: BasePack, length: int) -> None:
    texts = ["a", "a text of some length", "é", "another, of about the same"]
    tokenizer, cutting = open_tokenizer(base.directory), open_tokenizer(base.directory)
    windows = label_windows([Labelled(text, 0) for text in texts], tokenizer, shape_of(base), length, "here")
    cutting.enable_truncation(length)
    for row, text in enumerate(texts):
        assert windows.inputs[row][windows.starts[row] == 0].tolist() == cutting.encode(text).ids
    assert windows.truncated == sum(bool(cutting.encode(text).overflowing) for text in texts)
    assert tokenizer.truncation is None


def test_a_measurement_keeps_to_the_memory_that_it_may_take(
    base: BasePack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, adapter = device_of(base, written(tmp_path / "notes.jsonl", records(60))), random_adapter(base)
    encoder, windows = encoder_of(device), device.train_windows()
    sizes: list[int] = []
    measured = Encoder.losses_and_labels

    def watched(self: Encoder, part: Windows, *others: Any) -> Any:
        sizes.append(len(part))
        return measured(self, part, *others)

    monkeypatch.setattr(Encoder, "losses_and_labels", watched)
    told = measure(encoder, adapter, windows)
    assert max(sizes) > 1
    sizes.clear()
    frugal = measure(encoder, adapter, windows, memory_mb=5)
    assert frugal.scores == told.scores
    assert frugal.loss == pytest.approx(told.loss)
    assert set(sizes) == {1}


def test_what_is_measured_is_what_all_scores_say(base: BasePack, tmp_path: Path) -> None:
    device, adapter = device_of(base, written(tmp_path / "notes.jsonl", records(60))), random_adapter(base)
    encoder, windows = encoder_of(device), device.train_windows()
    scores = encoder.logits(windows.inputs, encoder.lora(adapter), windows.starts)
    labels = windows.targets[:, 0]
    measured = measure(encoder, adapter, windows)
    assert measured.loss == pytest.approx(float(torch.nn.functional.cross_entropy(scores, labels)), rel=1e-5)
    assert measured.scores["accuracy"] == pytest.approx(float((scores.argmax(1) == labels).float().mean()))
    assert measured.labels is not None
    assert measured.labels.actual.tolist() == torch.bincount(labels, minlength=len(LABELS)).tolist()


def test_the_peak_that_is_reported_holds_the_measurement_of_the_accuracy(
    base: BasePack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def measured(*arguments: object, memory_mb: int) -> Measured:
        done.append(f"accuracy in {memory_mb} MB")
        labels = np.array([0, 0])
        return Measured(loss=1.0, tokens=2, labels=LabelCounts.of(labels, np.array([0, 1]), 2))

    def peak() -> int:
        done.append("peak")
        return 7_000_000

    monkeypatch.setattr(local_training, "measure", measured)
    monkeypatch.setattr(local_training, "peak_bytes", peak)
    data = written(tmp_path / "notes.jsonl", records(30))
    run = LocalRun(config=config_of(base, steps=1, memory_mb=100_000), data=data, output=tmp_path / "adapter")
    LocalTraining(run).train(Watcher())
    assert done == ["accuracy in 100000 MB", "peak"]
    report = json.loads((tmp_path / "adapter" / "training.json").read_text())
    assert (report["accuracy"], report["peak_mb"]) == (0.5, 7)


def ran(*arguments: str) -> None:
    CliRunner().invoke(train_command, arguments, catch_exceptions=False)
