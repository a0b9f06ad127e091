"""What PEFT's own writers leave on disk: it is read as PEFT loads it, or refused by the name of what it is."""

from __future__ import annotations

import random
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from fedlora.base.pack import BasePack
from fedlora.errors import AdapterError, AdapterMismatchError
from fedlora.peft.directory import PeftDirectory, read_peft, write_peft
from fedlora.peft.for_base import adapter_of
from safetensors.torch import load_file, save_file

from tests.reference.oracles import oracle, read_by_peft
from tests.tiny.adapters import random_adapter
from tests.tiny.encoders import BARE, ENCODERS, save_encoder_pack
from tests.tiny.llamas import Packs, Variant
from tests.tiny.packs import checkpoint_of
from tests.tiny.tokens import random_tokens

WEIGHTS = "adapter_model.safetensors"
UNTIED = Variant(tied=False)
TARGETS = ["q_proj", "up_proj", "down_proj"]


@contextmanager
def quietly() -> Iterator[None]:
    """Without PEFT's warnings, which are about what these adapters are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def saved(
    model: Any, directory: Path, options: dict[str, Any], *, name: str = "default", trained: bool = True, **save: Any
) -> Any:
    """PEFT's model after a 'training' of all that `options` lets train, saved in `directory`."""
    with quietly():
        wrapped = peft.get_peft_model(
            model, peft.LoraConfig(**{"target_modules": TARGETS, **options}), adapter_name=name
        )
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter_name, parameter in wrapped.named_parameters():
                if ".lora_" in parameter_name or (parameter.requires_grad and trained):
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        wrapped.save_pretrained(str(directory), **save)
    return wrapped.eval()


def logits_of(model: Any, base: BasePack) -> Any:
    with torch.no_grad():
        return model(torch.from_numpy(random_tokens(base, 2, 8))).logits.numpy()


def logits_with(base: BasePack, directory: Path) -> Any:
    """The logits of the base with what `adapter_of` reads, its products added to the weights."""
    adapter, _ = adapter_of(directory, base)
    model = oracle(base)
    with torch.no_grad():
        for module in adapter.pairs:
            model.get_submodule(module).weight += torch.from_numpy(adapter.product(module).dense())
    return logits_of(model, base)


def changed(directory: Path, rename: Any = lambda name: name, convert: Any = lambda name, tensor: tensor) -> Path:
    tensors = {rename(name): convert(name, tensor) for name, tensor in load_file(directory / WEIGHTS).items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    return directory


@pytest.fixture
def base(packs: Packs) -> BasePack:
    return packs(UNTIED)


@pytest.fixture(scope="module")
def as_saved(packs: Packs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What PEFT saved, to be copied."""
    folder = tmp_path_factory.mktemp("as-saved") / "peft"
    saved(oracle(packs(UNTIED)), folder, {})
    return folder


@pytest.fixture
def directory(as_saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(as_saved, tmp_path / "peft"))


@pytest.mark.parametrize("adapter_name", ["default", "mine"])
def test_an_adapters_name_in_its_tensors_is_read_as_peft_loads_it(
    base: BasePack, directory: Path, adapter_name: str
) -> None:
    before = logits_with(base, directory)
    changed(directory, lambda name: name.replace(".weight", f".{adapter_name}.weight"))
    np.testing.assert_array_equal(logits_with(base, directory), before)
    with quietly():
        theirs = peft.PeftModel.from_pretrained(oracle(base), str(directory), adapter_name=adapter_name).eval()
    np.testing.assert_allclose(logits_of(theirs, base), before, atol=1e-4)


@pytest.mark.parametrize(
    ("first", "second"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.bfloat16, torch.float16),
     (torch.float64, torch.float32), (torch.float64, torch.float64)],
)  # fmt: skip
def test_factors_of_several_dtypes_are_read_as_peft_loads_them(
    base: BasePack, directory: Path, tmp_path: Path, first: torch.dtype, second: torch.dtype
) -> None:
    changed(directory, convert=lambda name, tensor: tensor.to(first if "lora_A" in name else second))
    expected = logits_of(read_by_peft(base, directory), base)
    np.testing.assert_allclose(logits_with(base, directory), expected, atol=1e-4)
    write_peft(tmp_path / "ours", read_peft(directory))
    np.testing.assert_array_equal(logits_with(base, tmp_path / "ours"), logits_with(base, directory))


WRONG_PREFIXES = {
    "none": lambda name: name.removeprefix("base_model.model."),
    "twice": lambda name: f"base_model.model.{name}",
    "a wrapper's": lambda name: f"_fsdp_wrapped_module.{name}",
    "DDP's": lambda name: f"module.{name}",
    "torch.compile's": lambda name: f"_orig_mod.{name}",
    "torch.compile's, within PEFT's": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    "torch.compile's, between PEFT's": lambda name: name.replace("base_model.", "base_model._orig_mod.", 1),
    "torch.compile's, of each layer": lambda name: name.replace(".self_attn.", "._orig_mod.self_attn."),
    "torch.compile's, and none": lambda name: name.replace("base_model.model.", "_orig_mod."),
}


@pytest.mark.parametrize("prefix", WRONG_PREFIXES)
def test_a_prefix_that_peft_does_not_load_is_refused_with_a_command_that_mends_it(
    base: BasePack, directory: Path, prefix: str, advised: Any
) -> None:
    before = logits_with(base, directory)
    changed(directory, WRONG_PREFIXES[prefix])
    with quietly():
        theirs = peft.PeftModel.from_pretrained(oracle(base), str(directory)).eval()
    assert not np.allclose(logits_of(theirs, base), before, atol=1e-3)  # PEFT goes on without the adapter
    with pytest.raises(AdapterError, match="PEFT loads none that is named so") as refused:
        read_peft(directory)
    advised(str(refused.value), directory)
    np.testing.assert_array_equal(logits_with(base, directory), before)


def test_an_adapter_of_the_model_without_its_head_is_told_as_such_with_a_command_that_mends_it(
    base: BasePack, directory: Path, advised: Any
) -> None:
    before = logits_with(base, directory)
    changed(directory, lambda name: name.replace("base_model.model.model.", "base_model.model."))
    with pytest.raises(AdapterMismatchError, match=r"as in a model without a head \(AutoModel\)") as refused:
        adapter_of(directory, base)
    advised(str(refused.value), directory)
    np.testing.assert_array_equal(logits_with(base, directory), before)


def test_factors_that_deepspeed_left_empty_are_named(directory: Path) -> None:
    changed(directory, convert=lambda name, tensor: torch.zeros(0))
    with pytest.raises(AdapterError, match="lora_A is empty, as DeepSpeed ZeRO-3 saves what it did not gather"):
        read_peft(directory)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [8, 4])
def test_embeddings_that_did_not_train_are_the_bases_own(
    packs: Packs, tmp_path: Path, caplog: pytest.LogCaptureFixture, tied: bool, dtype: torch.dtype, bits: int
) -> None:
    base = packs(Variant(tied=tied, embedding_bits=bits))
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint_of(base.directory), dtype=dtype)
    saved(model, tmp_path / "a", {}, save_embedding_layers=True)
    names = {name for name in load_file(tmp_path / "a" / WEIGHTS) if ".lora_" not in name}
    assert names == {"base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"}
    adapter, _ = adapter_of(tmp_path / "a", base)
    assert len(adapter.pairs) == 6
    assert "did not train: the base's own are used" in caplog.text
    assert read_peft(tmp_path / "a").embeddings.keys() == names


def test_embeddings_that_trained_are_refused_as_such(packs: Packs, tmp_path: Path) -> None:
    base = packs(UNTIED)
    model = oracle(base)
    with torch.no_grad():
        model.model.embed_tokens.weight[7] += 0.02  # one token
    saved(model, tmp_path / "a", {}, save_embedding_layers=True)
    with pytest.raises(
        AdapterMismatchError, match=r"also replaces base_model\.model\.model\.embed_tokens\.weight \(save_em"
    ):
        adapter_of(tmp_path / "a", base)


def test_a_vocabulary_that_was_resized_is_refused_by_its_sizes(packs: Packs, tmp_path: Path) -> None:
    base = packs(UNTIED)
    tokens = base.model.vocab_size
    for size in (tokens + 3, tokens - 3):
        model = oracle(base)
        with quietly():
            model.resize_token_embeddings(size)
        saved(model, tmp_path / str(size), {}, save_embedding_layers=True)
    with pytest.raises(AdapterMismatchError, match=rf"it has {tokens + 3} tokens where the base has {tokens}"):
        adapter_of(tmp_path / str(tokens + 3), base)
    assert adapter_of(tmp_path / str(tokens - 3), base)[0].pairs  # rows that no token of the tokenizer had


def test_a_copy_of_the_base_is_not_known_without_the_base(base: BasePack, tmp_path: Path) -> None:
    saved(oracle(base), tmp_path / "a", {}, save_embedding_layers=True)
    write_peft(tmp_path / "ours", read_peft(tmp_path / "a"))
    assert load_file(tmp_path / "ours" / WEIGHTS).keys() == load_file(tmp_path / "a" / WEIGHTS).keys()
    with pytest.raises(AdapterMismatchError, match="pass --base PACK, and those that did not train are known"):
        adapter_of(tmp_path / "a", None)


@pytest.mark.parametrize(
    ("target", "words"),
    [("lm_head", "has LoRA on lm_head, which is not supported; train again without lm_head among target_modules"),
     ("embed_tokens", "is LoRA on an embedding, which is not supported")],
)  # fmt: skip
def test_lora_on_the_vocabulary_is_named(base: BasePack, tmp_path: Path, target: str, words: str) -> None:
    saved(oracle(base), tmp_path / "a", {"target_modules": [*TARGETS, target]})
    with pytest.raises(AdapterError, match=re.escape(words)):
        adapter_of(tmp_path / "a", base)


def test_a_pissa_adapter_is_read_once_peft_converted_it_as_advised(base: BasePack, tmp_path: Path) -> None:
    with quietly():
        model = peft.get_peft_model(
            oracle(base), peft.LoraConfig(target_modules=TARGETS, init_lora_weights="pissa", r=4)
        )
        model.save_pretrained(str(tmp_path / "initial"))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_" in name:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        expected = logits_of(model.eval(), base)
        model.save_pretrained(str(tmp_path / "plain"))
        with pytest.raises(
            AdapterError, match=r"init_lora_weights is 'pissa'.*path_initial_model_for_weight_conversion"
        ):
            read_peft(tmp_path / "plain")
        model.save_pretrained(
            str(tmp_path / "converted"), path_initial_model_for_weight_conversion=str(tmp_path / "initial")
        )
    np.testing.assert_allclose(logits_with(base, tmp_path / "converted"), expected, atol=1e-3)


def test_of_several_adapters_in_one_file_each_is_named_and_can_be_saved_alone(base: BasePack, tmp_path: Path) -> None:
    with quietly():
        model = peft.get_peft_model(oracle(base), peft.LoraConfig(target_modules=TARGETS, init_lora_weights=False))
        model.add_adapter("other", peft.LoraConfig(target_modules=TARGETS, init_lora_weights=False))
        model.save_pretrained(str(tmp_path / "both"))
        whole = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if ".lora_" in name}
        (tmp_path / "one-file").mkdir()
        (tmp_path / "one-file" / "adapter_config.json").write_bytes(
            (tmp_path / "both/adapter_config.json").read_bytes()
        )
        save_file(whole, tmp_path / "one-file" / WEIGHTS)
        model.save_pretrained(str(tmp_path / "other"), selected_adapters=["other"])
    with pytest.raises(AdapterError, match=r"several adapters \(default, other\).*selected_adapters=\[NAME\]"):
        read_peft(tmp_path / "one-file")
    with pytest.raises(AdapterError, match=r"PEFT keeps an adapter in a folder of its name, .*: name .*/other/other$"):
        read_peft(tmp_path / "other")
    assert adapter_of(tmp_path / "other" / "other", base)[0].pairs
    assert adapter_of(tmp_path / "both", base)[0].pairs  # `default`, beside the folder of the other


PLAIN: tuple[dict[str, Any], ...] = (
    {}, {"r": 3, "lora_alpha": 7.5}, {"use_rslora": True}, {"target_modules": "all-linear"},
    {"target_modules": r".*\.(q_proj|up_proj)"}, {"target_modules": ["model.layers.0.self_attn.q_proj", "up_proj"]},
    {"exclude_modules": ["down_proj"]}, {"layers_to_transform": [1]},
    {"layers_to_transform": 0, "layers_pattern": "layers"}, {"init_lora_weights": "gaussian"},
    {"rank_pattern": {"up_proj": 2, r"layers\.1\..*down_proj": 3}, "alpha_pattern": {"q_proj": 5}},
    {"init_lora_weights": "orthogonal"}, {"lora_dropout": 0.1}, {"task_type": "CAUSAL_LM"}, {"fan_in_fan_out": True},
)  # fmt: skip
NAMED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"bias": "all"}, "bias is 'all'"), ({"bias": "lora_only"}, "bias is 'lora_only'"), ({"use_dora": True}, "DoRA"),
    ({"modules_to_save": ["lm_head"]}, "lm_head"), ({"modules_to_save": ["embed_tokens"]}, "embed_tokens"),
    ({"modules_to_save": ["norm"]}, "norm"), ({"modules_to_save": ["o_proj"]}, "o_proj"),
    ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"), ({"trainable_token_indices": [1, 2]}, "trainable tokens"),
    ({"target_modules": ["q_proj", "embed_tokens"]}, "embedding"), ({"init_lora_weights": "olora"}, "olora"),
    ({"lora_bias": True}, "LoRA biases"), ({"init_lora_weights": "pissa"}, "pissa"),
)  # fmt: skip


# Of forty draws those that have every option, name, place and dtype that the forty have.
DRAWS = (0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 14, 15, 17, 19, 20, 22, 23, 26, 27, 32, 34, 35)


@pytest.mark.parametrize("seed", DRAWS)
def test_whatever_peft_saves_is_read_as_peft_loads_it_or_refused_by_name(
    packs: Packs, tmp_path: Path, seed: int
) -> None:
    choose = random.Random(seed)
    base = packs(Variant(tied=choose.random() < 0.5))
    options, words = (choose.choice(PLAIN), "") if choose.random() < 0.7 else choose.choice(NAMED)
    name = choose.choice(["default", "mine"])
    save: dict[str, Any] = {"save_embedding_layers": choose.choice([True, False, "auto"])}
    place = tmp_path / choose.choice(["adapter", "checkpoint-20"])
    saved(oracle(base), place, options, name=name, **save)
    directory = place if name == "default" else place / name
    if choose.random() < 0.5:
        halves = choose.choice([torch.bfloat16, torch.float16])
        factor = choose.choice(["lora_A", "lora_B", "lora_"])
        changed(directory, convert=lambda tensor_name, tensor: tensor.to(halves) if factor in tensor_name else tensor)
    if words:
        with pytest.raises(AdapterError, match=words):
            adapter_of(directory, base)
        return
    with quietly():
        expected = logits_of(read_by_peft(base, directory), base)
    np.testing.assert_allclose(logits_with(base, directory), expected, atol=2e-4, err_msg=str((options, name, save)))
    with pytest.raises(AdapterError, match=re.escape(f"name {directory}")):
        read_peft(directory.parent)  # a Trainer's folder, or that of adapters with other names than `default`


@pytest.mark.parametrize("name", sorted({*ENCODERS, *BARE}))
def test_an_adapter_of_an_encoder_is_loaded_by_pefts_own_classes(tmp_path: Path, name: str) -> None:
    base = save_encoder_pack(name, tmp_path / "pack")
    adapter = random_adapter(base)
    source = str(checkpoint_of(tmp_path / "pack"))
    write_peft(tmp_path / "ours", PeftDirectory(adapter=adapter), base_name=source)
    loads = peft.AutoPeftModelForFeatureExtraction if name in BARE else peft.AutoPeftModel
    with quietly():
        model = loads.from_pretrained(str(tmp_path / "ours")).base_model.model
    for module, pair in adapter.pairs.items():
        layer = model.get_submodule(module)
        np.testing.assert_array_equal(layer.lora_B["default"].weight.detach(), pair.lora_B)
