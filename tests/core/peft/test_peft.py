"""PEFT's adapter directories, with `peft` itself and the `safetensors` library as the oracles."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from fedlora.errors import AdapterError, ConfigError
from fedlora.files.tensor_file import Dtype, from_float32
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.config import LoraConfig
from fedlora.peft.directory import PeftDirectory, read_peft, write_peft
from fedlora.peft.mapped import open_mapped
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tests.tiny.adapters import adapter_on
from tests.tiny.checkpoints import LLAMA, llama_shape, tree

POSITIVE = ["peft-bert-seqcls", "peft-gpt2-causal-tigrinya", "peft-opt125m-dpo"]
NEGATIVE = "negative-peft-distilbert-classifier-target"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MODULES = llama_shape().linear_modules()
UP = "model.layers.0.mlp.up_proj"
DOWN = "model.layers.1.mlp.down_proj"
# peft calls what transformers will rename; neither is ours.
PEFTS_OWN_WARNING = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
PATTERNED = LoraConfig(rank=4, alpha=8.0, rank_pattern={UP: 2, DOWN: 6}, alpha_pattern={UP: 3.0})


@pytest.fixture
def directory(tmp_path: Path, adapter: Adapter) -> Path:
    """A sound PEFT directory, alone in its parent."""
    write_peft(tmp_path / "source" / "adapter", PeftDirectory(adapter=adapter))
    return tmp_path / "source" / "adapter"


def _assert_equal(got: Adapter, expected: Adapter) -> None:
    assert got.pairs.keys() == expected.pairs.keys()
    for module, pair in expected.pairs.items():
        np.testing.assert_array_equal(got.pairs[module].lora_A, pair.lora_A, err_msg=module)
        np.testing.assert_array_equal(got.pairs[module].lora_B, pair.lora_B, err_msg=module)
        assert got.config.rank_of(module) == expected.config.rank_of(module)
        assert got.config.scaling_of(module) == expected.config.scaling_of(module)


@pytest.mark.parametrize("name", POSITIVE)
def test_a_directory_made_by_others_is_written_back_equal(tmp_path: Path, shared: Path, name: str) -> None:
    source = shared / "fixtures" / name
    write_peft(tmp_path / "back", read_peft(source))
    assert json.loads((tmp_path / "back" / CONFIG).read_text()) == json.loads((source / CONFIG).read_text())
    expected, got = (safetensors.torch.load_file(folder / WEIGHTS) for folder in (source, tmp_path / "back"))
    assert got.keys() == expected.keys()
    for tensor, value in expected.items():
        assert got[tensor].dtype == value.dtype, tensor
        assert torch.equal(got[tensor].view(torch.uint8), value.view(torch.uint8)), tensor


@pytest.mark.parametrize("name", POSITIVE)
def test_a_directory_made_by_others_is_read_as_its_values(shared: Path, name: str) -> None:
    source = shared / "fixtures" / name
    content = read_peft(source)
    raw = safetensors.torch.load_file(source / WEIGHTS)
    config = json.loads((source / CONFIG).read_text())
    factors = {tensor for tensor in raw if ".lora_" in tensor}
    assert len(factors) == 2 * len(content.adapter.pairs)
    assert {*content.beside, *content.extras} == raw.keys() - factors
    for module, pair in content.adapter.pairs.items():
        for factor, array in (("lora_A", pair.lora_A), ("lora_B", pair.lora_B)):
            expected = raw[f"base_model.model.{module}.{factor}.weight"].float().numpy()
            np.testing.assert_array_equal(array, expected)
        assert content.adapter.config.scaling_of(module) == config["lora_alpha"] / config["r"]
    assert content.base_fingerprint is None


def test_what_is_saved_beside_the_factors_is_kept(shared: Path) -> None:
    content = read_peft(shared / "fixtures" / "peft-bert-seqcls")
    assert set(content.extras) == {"base_model.model.classifier.bias", "base_model.model.classifier.weight"}
    assert content.adapter.extras.keys() == {"classifier.bias", "classifier.weight"}
    assert not content.saved_modules


def test_the_malformed_directory_is_refused_with_file_and_tensor(shared: Path) -> None:
    source = shared / "fixtures" / NEGATIVE
    with pytest.raises(AdapterError) as caught:
        read_peft(source)
    assert str(caught.value).startswith(f"{source / WEIGHTS}: tensor base_model.model.")
    assert "without classifier among target_modules" in str(caught.value)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("config", [LoraConfig(rank=4, alpha=8.0), PATTERNED, LoraConfig(rank=9, use_rslora=True)])
def test_what_is_written_is_read_back_rounded_to_the_stored_dtype(
    tmp_path: Path, config: LoraConfig, dtype: Dtype
) -> None:
    adapter = adapter_on(config, MODULES)
    write_peft(tmp_path / "a", PeftDirectory(adapter=adapter, dtype=dtype, base_fingerprint="f" * 64))
    back = read_peft(tmp_path / "a")
    torch_dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]

    def rounded(array: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        values: np.ndarray[Any, np.dtype[np.float32]] = torch.tensor(array).to(torch_dtype).float().numpy()
        return values

    expected = {m: LoraPair(rounded(pair.lora_A), rounded(pair.lora_B)) for m, pair in adapter.pairs.items()}
    _assert_equal(back.adapter, Adapter(config, expected))
    assert back.dtype == dtype
    assert back.base_fingerprint == "f" * 64
    write_peft(tmp_path / "b", back)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_the_configuration_that_is_read_back_equals_the_one_that_was_written(tmp_path: Path) -> None:
    write_peft(tmp_path / "a", PeftDirectory(adapter=adapter_on(PATTERNED, MODULES)))
    back = read_peft(tmp_path / "a").adapter.config
    assert set(back.target_modules) == set(PATTERNED.target_modules)
    assert replace(back, target_modules=PATTERNED.target_modules) == PATTERNED


def test_an_adapter_that_was_changed_after_reading_is_written_with_its_own_configuration(
    tmp_path: Path, directory: Path
) -> None:
    changed = adapter_on(LoraConfig(rank=2, alpha=5.0, use_rslora=True), MODULES)
    write_peft(tmp_path / "changed", replace(read_peft(directory), adapter=changed))
    _assert_equal(read_peft(tmp_path / "changed").adapter, changed)


@PEFTS_OWN_WARNING
@pytest.mark.parametrize("use_rslora", [False, True])
def test_peft_loads_what_we_write_and_computes_the_same_update(tmp_path: Path, use_rslora: bool) -> None:
    import peft
    import transformers

    config = replace(PATTERNED, use_rslora=use_rslora)
    adapter = adapter_on(config, MODULES)
    write_peft(tmp_path / "a", PeftDirectory(adapter=adapter), base_name="tiny")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    loaded = peft.PeftModel.from_pretrained(model, str(tmp_path / "a"))
    for module in MODULES:
        layer = loaded.base_model.model.get_submodule(module)
        assert layer.scaling["default"] == config.scaling_of(module), module
        assert layer.r["default"] == config.rank_of(module), module
        np.testing.assert_array_equal(layer.lora_A["default"].weight.detach(), adapter.pairs[module].lora_A)
        np.testing.assert_array_equal(layer.lora_B["default"].weight.detach(), adapter.pairs[module].lora_B)
        np.testing.assert_allclose(
            layer.get_delta_weight("default").detach(), adapter.product(module).dense(), rtol=1e-4, atol=1e-4
        )


@PEFTS_OWN_WARNING
@pytest.mark.parametrize("use_rslora", [False, True])
def test_we_read_what_peft_saves_with_its_patterns(tmp_path: Path, use_rslora: bool) -> None:
    import peft
    import transformers

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    patterns: dict[str, dict[str, int]] = {
        "rank_pattern": {"up_proj": 2, r"layers\.1\..*down_proj": 5, "^model.layers.0.self_attn.q_proj": 7},
        "alpha_pattern": {r"layers.0.mlp.*": 3, "up_proj": 11},
    }
    wrapped = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=4,
            lora_alpha=16,
            use_rslora=use_rslora,
            target_modules=["q_proj", "up_proj", "down_proj"],
            init_lora_weights=False,
            task_type="CAUSAL_LM",
            **patterns,
        ),
    )
    wrapped.save_pretrained(str(tmp_path / "theirs"))
    adapter = read_peft(tmp_path / "theirs").adapter
    assert len(adapter.pairs) == 6
    for module, pair in adapter.pairs.items():
        layer = wrapped.base_model.model.get_submodule(module)
        assert adapter.config.rank_of(module) == layer.r["default"], module
        assert adapter.config.scaling_of(module) == layer.scaling["default"], module
        np.testing.assert_array_equal(pair.lora_A, layer.lora_A["default"].weight.detach())
    write_peft(tmp_path / "ours", read_peft(tmp_path / "theirs"))
    _assert_equal(read_peft(tmp_path / "ours").adapter, adapter)
    expected, got = (json.loads((tmp_path / name / CONFIG).read_text()) for name in ("theirs", "ours"))
    assert got == expected


def test_a_rank_of_layer_1_is_not_that_of_layer_11(tmp_path: Path) -> None:
    modules = llama_shape(num_hidden_layers=12).linear_modules()
    config = LoraConfig(rank=4, target_modules=("q_proj",), rank_pattern={"model.layers.1.self_attn.q_proj": 2})
    write_peft(tmp_path / "a", PeftDirectory(adapter=adapter_on(config, modules)))
    ranks = {module: pair.rank for module, pair in read_peft(tmp_path / "a").adapter.pairs.items()}
    assert {module for module, rank in ranks.items() if rank == 2} == {"model.layers.1.self_attn.q_proj"}


def _config(**changes: object) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        config = json.loads((directory / CONFIG).read_text()) | changes
        (directory / CONFIG).write_text(json.dumps(config))

    return edit


def _config_text(text: bytes) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        (directory / CONFIG).write_bytes(text)

    return write


def _without(key: str) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        config = json.loads((directory / CONFIG).read_text())
        del config[key]
        (directory / CONFIG).write_text(json.dumps(config))

    return edit


def _weights(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(directory: Path) -> None:
        tensors = safetensors.torch.load_file(directory / WEIGHTS)
        edit(tensors)
        safetensors.torch.save_file(tensors, directory / WEIGHTS)

    return rewrite


def _cut(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes((directory / WEIGHTS).read_bytes()[:-1])


LORA_A, LORA_B = f"base_model.model.{UP}.lora_A.weight", f"base_model.model.{UP}.lora_B.weight"

SPOILED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "wrong peft_type": (_config(peft_type="IA3"), CONFIG, "peft_type is 'IA3': IA3 is trained and evaluated in torch"),
    "no peft_type": (_without("peft_type"), CONFIG, "peft_type is None"),
    "DoRA": (_config(use_dora=True), CONFIG, "use_dora is set: DoRA is trained and evaluated in torch"),
    "LoRA biases": (_config(lora_bias=True), CONFIG, "lora_bias is set"),
    "biases": (_config(bias="all"), CONFIG, "bias is 'all'; only 'none' is supported"),
    "replication": (_config(layer_replication=[[0, 2]]), CONFIG, "layer_replication is set"),
    "QA-LoRA": (_config(use_qalora=True), CONFIG, "use_qalora is set"),
    "activated LoRA": (_config(alora_invocation_tokens=[1, 2]), CONFIG, "alora_invocation_tokens"),
    "PiSSA, whose base is not the base": (_config(init_lora_weights="pissa"), CONFIG, "init_lora_weights"),
    "no rank": (_without("r"), "", "r is missing"),
    "no alpha": (_without("lora_alpha"), "", "lora_alpha is missing"),
    "a rank of null": (_config(r=None), "", "a rank must be an integer"),
    "an alpha of text": (_config(lora_alpha="16"), "", "an alpha must be a positive number"),
    "an alpha that no float holds": (_config(lora_alpha=10**400), "", "an alpha must be a positive number"),
    "another rank": (_config(r=8), "", "lora_A has rank 4, the configuration says 8"),
    "a pattern that is no expression": (_config(rank_pattern={"(": 4}), "", "missing ): ("),
    "a pattern that looks ahead": (_config(rank_pattern={"(?=a)": 4}), "", "lookaround and flags are not known"),
    "a target that is not among the targets": (
        _config(target_modules=["q_proj"]),
        "",
        "which adapter_config.json does not target: PEFT would not load them",
    ),
    "a target that is left out": (_config(exclude_modules=["up_proj"]), "", f"has tensors of {UP}, which"),
    "a layer that is not among the layers": (
        _config(layers_to_transform=[1]),
        "",
        "tensors of model.layers.0.self_attn.q_proj, which",
    ),
    "layers of words": (_config(layers_to_transform=["one"]), "", "layers_to_transform must be layers by number"),
    "targets that are a number": (_config(target_modules=5), "", "target_modules must be names"),
    "LoRA on parameters": (_config(target_parameters=["experts.up"]), CONFIG, "target_parameters is set; LoRA on"),
    "LoHa": (_config(peft_type="LOHA"), CONFIG, "peft_type is 'LOHA', which is not supported; expected LORA, IA3"),
    "a prefix": (
        _config(peft_type="PREFIX_TUNING"),
        CONFIG,
        "prefix tuning is trained and evaluated in torch, and this takes plain",
    ),
    "a pattern of text": (_config(rank_pattern={"up_proj": "4"}), "", "a rank must be an integer"),
    "a pattern that is a list": (_config(rank_pattern=["up_proj"]), "", "rank_pattern"),
    "modules_to_save that is a number": (_config(modules_to_save=5), "", "modules_to_save"),
    "modules_to_save of a list": (_config(modules_to_save=[["a"]]), "", "modules_to_save"),
    "not JSON": (_config_text(b"{"), CONFIG, "not JSON"),
    "not text": (_config_text(b"\xff\xfe\x00"), CONFIG, "not JSON"),
    "a list": (_config_text(b"[]"), CONFIG, "expected a JSON object, got list"),
    "an abyss of brackets": (_config_text(b"[" * 100_000), CONFIG, "not JSON"),
    "no configuration": (lambda d: (d / CONFIG).unlink(), CONFIG, "expected a PEFT directory with"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), WEIGHTS, "cannot be read: No such file"),
    "cut": (_cut, WEIGHTS, "truncated"),
    "no tensors": (_weights(lambda t: t.clear()), WEIGHTS, "expected lora_A and lora_B of some modules, got none"),
    "missing lora_B": (_weights(lambda t: t.pop(LORA_B)), WEIGHTS, f"{UP} has lora_A only; expected lora_A and lora_B"),
    "missing lora_A": (_weights(lambda t: t.pop(LORA_A)), WEIGHTS, f"{UP} has lora_B only"),
    "NaN": (_weights(lambda t: t[LORA_B][3].fill_(np.nan)), WEIGHTS, f"{UP}.lora_B holds NaN or infinity"),
    "infinity": (_weights(lambda t: t[LORA_A][0].fill_(np.inf)), WEIGHTS, f"{UP}.lora_A holds NaN or infinity"),
    "factors that do not multiply": (
        _weights(lambda t: t.update({LORA_B: torch.zeros(72, 5)})),
        WEIGHTS,
        f"{UP}: expected lora_A [R, I] and lora_B [O, R], got [4, 32] and [72, 5]",
    ),
    "a vector": (_weights(lambda t: t.update({LORA_A: torch.zeros(32)})), WEIGHTS, f"{UP}: expected lora_A [R, I]"),
    "integers": (
        _weights(lambda t: t.update({LORA_A: torch.zeros(4, 32, dtype=torch.int8)})),
        WEIGHTS,
        "has dtype I8; expected F32, F16 or BF16",
    ),
    "a magnitude of DoRA": (
        _weights(lambda t: t.update({f"base_model.model.{UP}.lora_magnitude_vector": torch.zeros(72)})),
        WEIGHTS,
        "lora_magnitude_vector is DoRA's, and adapter_config.json says that the adapter is LoRA",
    ),
    "a base weight": (
        _weights(lambda t: t.update({f"base_model.model.{UP}.base_layer.weight": torch.zeros(2)})),
        WEIGHTS,
        "base_layer.weight is neither",
    ),
    "a name without PEFT's prefix": (
        _weights(lambda t: t.update({f"{UP}.lora_A.weight": t.pop(LORA_A)})),
        WEIGHTS,
        "does not begin with base_model.model., once: PEFT loads none that is named so",
    ),
    "two adapters": (
        _weights(
            lambda t: t.update({LORA_A.replace("weight", f"{n}.weight"): t[LORA_A].clone() for n in ("one", "two")})
        ),
        WEIGHTS,
        "holds several adapters (one, two); save each by itself",
    ),
    "a factor twice": (
        _weights(lambda t: t.update({LORA_A.replace("weight", "default.weight"): t[LORA_A].clone()})),
        WEIGHTS,
        "lora_A is there twice",
    ),
}


@pytest.mark.parametrize("what", SPOILED)
def test_an_adapter_that_is_not_sound_plain_lora_is_refused_by_its_place(directory: Path, what: str) -> None:
    spoil, file, message = SPOILED[what]
    spoil(directory)
    with pytest.raises(AdapterError) as caught:
        read_peft(directory)
    assert str(caught.value).startswith(str(directory / file))
    assert message in str(caught.value)


def test_an_output_that_exists_is_refused_and_left_alone(directory: Path, adapter: Adapter) -> None:
    before = tree(directory.parent)
    with pytest.raises(ConfigError, match="exists already; name another output"):
        write_peft(directory, PeftDirectory(adapter=adapter))
    assert tree(directory.parent) == before


def test_an_adapter_that_cannot_be_written_leaves_nothing(tmp_path: Path, adapter: Adapter) -> None:
    out = tmp_path / "out"
    out.mkdir()
    wrong = {"base_model.model.score.weight": ("BF16", np.zeros(3, np.float32))}
    content = PeftDirectory(adapter=adapter, saved_modules=wrong)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="planned BF16, got float32"):
        write_peft(out / "adapter", content)
    assert tree(out) == {}


def test_reading_keeps_no_hold_on_the_file(directory: Path, adapter: Adapter) -> None:
    content = read_peft(directory)
    (directory / WEIGHTS).write_bytes(b"")
    shutil.rmtree(directory)
    _assert_equal(content.adapter, adapter)


def test_bfloat16_is_stored_as_torch_rounds_it(tmp_path: Path, adapter: Adapter) -> None:
    write_peft(tmp_path / "a", PeftDirectory(adapter=adapter, dtype="BF16"))
    stored = safetensors.torch.load_file(tmp_path / "a" / WEIGHTS)[LORA_A]
    assert torch.equal(stored, torch.tensor(adapter.pairs[UP].lora_A).bfloat16())
    np.testing.assert_array_equal(stored.view(torch.uint16).numpy(), from_float32(adapter.pairs[UP].lora_A, "BF16"))


def test_a_pattern_that_python_would_match_for_ever_is_matched_in_a_moment(directory: Path) -> None:
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**config, "rank_pattern": {"([a-z_.0-9]+)+x": 1}}))
    assert {pair.rank for pair in read_peft(directory).adapter.pairs.values()} == {4}


def test_a_configuration_that_is_a_pipe_is_refused_and_not_waited_for(directory: Path) -> None:
    for name in (WEIGHTS, CONFIG):
        (directory / name).unlink()
        os.mkfifo(directory / name)
        with pytest.raises(AdapterError, match=f"{name}: (cannot be read: )?not a plain file"):
            read_peft(directory)


def _head(tmp_path: Path, saved: list[str], **tensors: NDArray[np.float32]) -> Path:
    """The directory of an adapter with `modules_to_save` and these tensors, dots written as two underscores."""
    write_peft(
        tmp_path,
        PeftDirectory(
            adapter=adapter_on(
                LoraConfig(rank=2, target_modules=("dense",)), {"bert.encoder.layer.0.output.dense": (8, 8)}
            )
        ),
    )
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": saved}))
    path = tmp_path / "adapter_model.safetensors"
    more = {f"base_model.model.{name.replace('__', '.')}": array for name, array in tensors.items()}
    save_file({**load_file(path), **more}, path, metadata={"format": "pt"})
    return tmp_path


TRAINED, ORIGINAL = np.ones((3, 8), np.float32), np.zeros((3, 8), np.float32)


def test_a_head_s_own_copy_of_before_the_training_is_not_the_head(tmp_path: Path) -> None:
    content = read_peft(_head(
        tmp_path / "a", ["classifier"], classifier__modules_to_save__weight=TRAINED,
        classifier__original_module__weight=ORIGINAL,
    ))  # fmt: skip
    np.testing.assert_array_equal(content.adapter.extras["classifier.weight"], TRAINED)
    assert [*content.saved_modules] == ["base_model.model.classifier.original_module.weight"]


def test_a_tensor_of_a_head_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    place = _head(
        tmp_path / "a", ["classifier"], classifier__modules_to_save__weight=TRAINED, classifier__weight=ORIGINAL
    )
    for read in (read_peft, open_mapped):
        with pytest.raises(AdapterError, match=r"classifier.weight is there twice, once with a wrapper's name in it"):
            read(place)


def test_modules_to_save_may_be_named_with_what_they_are_in(tmp_path: Path) -> None:
    content = read_peft(_head(tmp_path / "a", ["bert.pooler"], bert__pooler__dense__weight=TRAINED))
    assert [*content.adapter.extras] == ["bert.pooler.dense.weight"]
