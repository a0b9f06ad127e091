"""Adapters of every kind in PEFT's format: what PEFT saves is read, what is written PEFT reads, mixtures are refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from click.testing import CliRunner
from fedlora.base.merging import write_merged
from fedlora.base.pack import BasePack
from fedlora.cli import commands
from fedlora.config.run import LoraSection, RunConfig
from fedlora.errors import AdapterError, AdapterMismatchError, AdapterTooLargeError
from fedlora.lora.config import KINDS as NAMES
from fedlora.lora.kinds import BY_NAME, own_in
from fedlora.lora.kinds.vera import projections_of
from fedlora.lora.kinds.virtual import VirtualTokens
from fedlora.peft.directory import CONFIG, WEIGHTS, PeftDirectory, read_peft, write_peft
from fedlora.peft.for_base import adapter_of, whole_adapter_of
from fedlora.peft.mapped import open_mapped
from fedlora_client.data.prompt_text import with_prompt_of
from fedlora_serve.adapters.loading import load_adapter
from safetensors.torch import load_file, save_file

from tests.reference.oracles import oracle, pefts_own_warnings
from tests.tiny.encoders import encoder_pack
from tests.tiny.families import family_pack
from tests.tiny.kinds import KINDS, adapter_of_kind, section_of

TARGETS = ["k_proj", "down_proj"]
PEFTS: dict[str, peft.PeftConfig] = {
    "dora": peft.LoraConfig(target_modules=TARGETS, r=3, lora_alpha=5, use_dora=True),
    "vera": peft.VeraConfig(target_modules=TARGETS, r=6, projection_prng_key=7),
    "ia3": peft.IA3Config(target_modules=[*TARGETS, "up_proj"], feedforward_modules=["down_proj", "up_proj"]),
    "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
}
UP = "model.layers.0.mlp.up_proj"


def saved_by_peft(base: BasePack, directory: Path, config: peft.PeftConfig) -> Any:
    """PEFT's model, saved, with numbers of its own that all count."""
    with pefts_own_warnings():
        model = peft.get_peft_model(oracle(base), config).eval()
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += torch.randn(parameter.shape, generator=generator) / 5
        model.save_pretrained(directory)
    return model


def written(base: BasePack, directory: Path, kind: str) -> Path:
    content = PeftDirectory(adapter=adapter_of_kind(kind, base), base_fingerprint=base.fingerprint)
    write_peft(directory, content, base_name="base")
    return directory


def test_every_name_has_a_kind_and_every_kind_a_name() -> None:
    assert tuple(BY_NAME) == NAMES
    assert all(kind.name == name for name, kind in BY_NAME.items())


@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_saves_is_read_and_written_back_equal(base: BasePack, tmp_path: Path, kind: str) -> None:
    saved_by_peft(base, tmp_path / "theirs", PEFTS[kind])
    content = read_peft(tmp_path / "theirs", any_kind=True)
    assert content.adapter.config.method == kind
    whole_adapter_of(tmp_path / "theirs", base)
    write_peft(tmp_path / "ours", content)
    theirs, ours = (load_file(tmp_path / name / WEIGHTS) for name in ("theirs", "ours"))
    assert ours.keys() <= theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    again = read_peft(tmp_path / "ours", any_kind=True).adapter
    assert again.config.method == kind
    assert all(np.array_equal(array, content.adapter.extras[name]) for name, array in again.extras.items())


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_says_which_kind(base: BasePack, tmp_path: Path, kind: str) -> None:
    result = CliRunner().invoke(commands, ["inspect", str(written(base, tmp_path / "a", kind))], catch_exceptions=False)
    assert f"method                {BY_NAME[kind].title}" in result.output
    assert all(word in result.output for word in BY_NAME[kind].words)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_for_a_base_of_another_size_is_refused_by_the_tensor(
    base: BasePack, tmp_path: Path, kind: str
) -> None:
    with pytest.raises(AdapterMismatchError, match=r"the base has no module|for another base"):
        whole_adapter_of(written(base, tmp_path / "a", kind), encoder_pack("bert"))
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    name = next(name for name in tensors if name.endswith(BY_NAME[kind].words))
    larger = torch.cat([tensors[name]] * 3, dim=1 if BY_NAME[kind].is_virtual else 0)
    save_file({**tensors, name: larger}, tmp_path / "a" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(AdapterMismatchError, match=r"the base takes \[") as caught:
        whole_adapter_of(tmp_path / "a", base)
    assert name.removeprefix("base_model.model.") in str(caught.value)


def test_projections_of_vera_are_pefts_to_the_bit_and_others_are_refused(base: BasePack, tmp_path: Path) -> None:
    model = saved_by_peft(base, tmp_path / "theirs", PEFTS["vera"])
    adapter = read_peft(tmp_path / "theirs", any_kind=True).adapter
    for mine, theirs in zip(projections_of(adapter, base.model), (model.vera_A, model.vera_B), strict=True):
        assert np.array_equal(mine, theirs["default"].numpy())
    tensors = load_file(tmp_path / "theirs" / WEIGHTS)
    tensors["base_model.vera_A"] += 0.1
    save_file(tensors, tmp_path / "theirs" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"base_model\.vera_A is not what projection_prng_key = 7 makes"):
        read_peft(tmp_path / "theirs", any_kind=True)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not BY_NAME[kind].is_virtual])
def test_the_base_is_asked_for_its_modules_once_however_many_tensors_there_are(
    base: BasePack, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    adapter, asked, modules = adapter_of_kind(kind, base), 0, base.model.linear_modules()

    def counted(_: object) -> dict[str, tuple[int, int]]:
        nonlocal asked
        asked += 1
        return modules

    monkeypatch.setattr(type(base.model), "linear_modules", counted)
    BY_NAME[kind].check(adapter, base.model, "here")
    assert asked == 1 < len(adapter.extras)


@pytest.mark.parametrize(
    "shapes", [((6, 0), (6, 6)), ((6, 6), (0, 6)), ((6,), (6, 6)), ((6, 6), None), ((5, 6), (6, 6))]
)
def test_projections_of_any_other_shape_are_refused(
    base: BasePack, tmp_path: Path, shapes: tuple[tuple[int, ...], tuple[int, ...] | None]
) -> None:
    place = written(base, tmp_path / "a", "vera")
    named = zip(("base_model.vera_A", "base_model.vera_B"), shapes, strict=True)
    stored = {name: torch.zeros(shape) for name, shape in named if shape is not None}
    save_file({**load_file(place / WEIGHTS), **stored}, place / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"vera_A is \[.*\] and vera_B \[.*\]; expected \[4, I\] and \[O, 4\]"):
        read_peft(place, any_kind=True)


def test_what_vera_takes_as_lora_is_known_before_it_is_made(base: BasePack, tmp_path: Path) -> None:
    place = written(base, tmp_path / "a", "vera")
    adapter, kind = read_peft(place, any_kind=True).adapter, BY_NAME["vera"]
    plain = kind.as_lora(adapter, base.model)
    assert plain is not None and kind.lora_bytes(adapter, base.model) == plain.size_bytes
    assert kind.held_bytes(adapter, base.model) == sum(part.nbytes for part in projections_of(adapter, base.model))
    adapter_of(place, base, max_bytes=plain.size_bytes)
    with pytest.raises(AdapterTooLargeError, match=f"VeRA of rank 4 has {plain.size_bytes} bytes, at most"):
        adapter_of(place, base, max_bytes=plain.size_bytes - 1)
    with pytest.raises(AdapterTooLargeError):  # a service, before anything is made
        load_adapter(place, base, max_bytes=plain.size_bytes // 4)


@pytest.mark.parametrize(
    ("kind", "word", "told"),
    [
        ("dora", "lora_magnitude_vector", "has no lora_magnitude_vector; expected both of each module of DoRA"),
        ("vera", "vera_lambda_b", "has no vera_lambda_b; expected vera_lambda_b and vera_lambda_d"),
    ],
)
def test_a_part_that_is_missing_is_named(base: BasePack, tmp_path: Path, kind: str, word: str, told: str) -> None:
    place = written(base, tmp_path / "a", kind)
    tensors = load_file(place / WEIGHTS)
    del tensors[next(name for name in tensors if name.endswith(word))]
    save_file(tensors, place / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=told):
        read_peft(place, any_kind=True)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not BY_NAME[kind].is_lora])
def test_what_takes_plain_lora_alone_refuses_the_kind_by_its_name(base: BasePack, tmp_path: Path, kind: str) -> None:
    place = written(base, tmp_path / "a", kind)
    for read in (read_peft, open_mapped, lambda place: adapter_of(place, base)):
        with pytest.raises(AdapterError, match=f"{BY_NAME[kind].title} is trained and evaluated in torch"):
            read(place)


def test_tensors_of_another_kind_than_the_configuration_says_are_refused(base: BasePack, tmp_path: Path) -> None:
    place = written(base, tmp_path / "a", "ia3")
    config = json.loads((place / CONFIG).read_text())
    (place / CONFIG).write_text(json.dumps({**config, "peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    with pytest.raises(
        AdapterError, match=r"is IA3's, and adapter_config.json says that the adapter is LoRA; take both"
    ):
        read_peft(place, any_kind=True)


@pytest.mark.parametrize(
    ("peft_type", "remedy"),
    [
        ("LOHA", r"PEFT can make LoRA of it: load it with PEFT and call peft\.save_as_lora"),
        ("HRA", "PEFT cannot make LoRA of it"),
    ],
)
def test_of_a_type_that_is_not_known_it_is_told_whether_peft_makes_lora_of_it(
    base: BasePack, tmp_path: Path, peft_type: str, remedy: str
) -> None:
    place = written(base, tmp_path / "a", "ia3")
    (place / CONFIG).write_text(json.dumps({"peft_type": peft_type}))
    with pytest.raises(AdapterError, match=remedy):
        read_peft(place, any_kind=True)


@pytest.mark.parametrize(
    ("kind", "key", "value", "told"),
    [
        ("prompt", "token_dim", 48, "its token_dim is 48, the base's is 64"),
        ("prefix", "num_layers", 1, "its num_layers is 1, the base's is 2"),
        ("prefix", "num_attention_heads", 2, "its num_attention_heads is 2, the base's is 4"),
        ("prefix", "num_virtual_tokens", 9, "num_virtual_tokens is 9, and prompt_embeddings has 5 rows"),
        ("prompt", "num_transformer_submodules", 2, "num_transformer_submodules is 2; expected 1"),
    ],
)
def test_virtual_tokens_for_other_sizes_are_refused_by_what_pefts_configuration_says(
    base: BasePack, tmp_path: Path, kind: str, key: str, value: int, told: str
) -> None:
    saved_by_peft(base, tmp_path / "a", PEFTS[kind])
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert all(config[key] == mine for key, mine in sizes_of(kind, base).items())
    (tmp_path / "a" / CONFIG).write_text(json.dumps({**config, key: value}))
    with pytest.raises(AdapterError, match=told):
        whole_adapter_of(tmp_path / "a", base)


def sizes_of(kind: str, base: BasePack) -> dict[str, int]:
    found = BY_NAME[kind]
    assert isinstance(found, VirtualTokens)
    return found.peft_sizes(base.shape)


@pytest.mark.parametrize(("text", "count"), [("to be", 3), ("b", 5)])
def test_a_prompt_begins_with_the_embeddings_of_a_text_as_pefts(base: BasePack, text: str, count: int) -> None:
    """The text is cut where it has more tokens, and begins again where it has fewer."""
    section = LoraSection(method="prompt", num_virtual_tokens=count)
    first = RunConfig(base=str(base.directory), lora=section).first_adapter(base)
    theirs = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=count, prompt_tuning_init="TEXT", prompt_tuning_init_text=text,
        tokenizer_name_or_path=str(base.directory),
    )  # fmt: skip
    with pefts_own_warnings():
        model = peft.get_peft_model(oracle(base), theirs)
    wanted = model.prompt_encoder["default"].embedding.weight.detach().numpy()
    assert np.array_equal(with_prompt_of(first, text, base).extras["prompt_embeddings"], wanted)


def test_a_prompt_of_gemma_begins_with_embeddings_as_its_first_block_reads_them() -> None:
    base = family_pack("gemma2")
    first = RunConfig(base=str(base.directory), lora=LoraSection(method="prompt")).first_adapter(base)
    read = oracle(base).get_input_embeddings()(torch.arange(base.shape.vocab_size)).detach()
    begun = torch.from_numpy(first.extras["prompt_embeddings"].copy())
    assert begun.shape == (20, base.shape.hidden_size)
    assert (begun[:, None] - read).abs().amax(2).amin(1).max() < 1e-5


def test_virtual_tokens_are_not_merged(base: BasePack, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="tokens before the text, which no weight can hold; leave --merge out"):
        write_merged(base, adapter_of_kind("prefix", base), tmp_path)
    assert not list(tmp_path.iterdir())


def test_ia3_on_a_layer_or_modules_of_its_own_is_read_by_peft_as_it_is(base: BasePack, tmp_path: Path) -> None:
    """By names PEFT knows which vectors are of an input: in full, where their ends do not tell."""
    section = dataclasses.replace(section_of("ia3"), layers=("1",), target_modules=("q_proj", "down_proj"))
    adapter = adapter_of_kind("ia3", base, section=section)
    write_peft(tmp_path / "a", PeftDirectory(adapter=adapter, base_fingerprint=base.fingerprint), base_name="base")
    with pefts_own_warnings():
        model = peft.PeftModel.from_pretrained(oracle(base), str(tmp_path / "a"))
    theirs = {
        name.removeprefix("base_model.model.").removesuffix(".default"): parameter
        for name, parameter in model.named_parameters()
        if "ia3_l" in name
    }
    assert theirs.keys() == own_in(adapter).keys()
    assert all(np.array_equal(theirs[name].detach().numpy(), array) for name, array in own_in(adapter).items())
