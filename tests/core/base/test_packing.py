"""From a checkpoint to a base pack."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fedlora.base.pack import open_pack, read_manifest
from fedlora.base.packing import make_pack
from fedlora.base.quantize import Quantization, dequantize, quantize
from fedlora.base.scales import SCALE_RULES, ScaleRule
from fedlora.data.chat_template import load_chat_template
from fedlora.errors import CheckpointError, ConfigError, FedloraError
from fedlora.files.tensor_file import Dtype

from tests.tiny.checkpoints import (
    LLAMA,
    llama_config,
    llama_shape,
    random_weights,
    tiny_quantization,
    tree,
    write_checkpoint,
)

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def _remake(directory: Path, name: str, values: object) -> None:
    """The checkpoint's single weights file again, with one tensor changed, or gone where `values` is None."""
    weights = random_weights(LLAMA)
    if values is None:
        del weights[name]
    else:
        weights[name] = np.asarray(values, np.float32)
    aside = directory.parent / "again"
    write_checkpoint(aside, weights=weights)
    (aside / "model.safetensors").replace(directory / "model.safetensors")


@pytest.mark.parametrize(
    ("bits", "embedding_bits", "symmetric", "tied"),  # every pair of them
    [(4, 4, True, True), (4, 8, False, False), (8, 4, False, True), (8, 8, True, True), (8, 8, False, False),
     (8, 4, True, False)],
)  # fmt: skip
def test_every_packed_matrix_is_the_quantized_weight(
    tmp_path: Path, bits: int, embedding_bits: int, symmetric: bool, tied: bool
) -> None:
    config = llama_config(tie_word_embeddings=tied)
    weights = random_weights(config)
    source = write_checkpoint(tmp_path / "source", config=config, weights=weights)
    wanted = tiny_quantization(bits=bits, embedding_bits=embedding_bits, symmetric=symmetric)
    make_pack(str(source), tmp_path / "pack", wanted)
    pack = open_pack(tmp_path / "pack")
    assert pack.quantization == wanted
    shape = llama_shape(tie_word_embeddings=tied)
    for module in shape.vocabulary_modules() | shape.linear_modules():
        module_bits = embedding_bits if module in shape.vocabulary_modules() else bits
        matrix = pack.matrix(module)
        expected = quantize(weights[f"{module}.weight"], bits=module_bits, block_size=32, symmetric=symmetric)
        assert matrix.bits == module_bits
        np.testing.assert_array_equal(matrix.qweight, expected.qweight, err_msg=module)
        np.testing.assert_array_equal(dequantize(matrix), dequantize(expected), err_msg=module)
    for module in shape.norm_modules():
        np.testing.assert_array_equal(pack.norm(module), weights[f"{module}.weight"])


@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_every_block_size_packs(tmp_path: Path, block_size: int) -> None:
    config = llama_config(hidden_size=128)
    source = write_checkpoint(tmp_path / "source", config=config)
    make_pack(str(source), tmp_path / "pack", tiny_quantization(block_size=block_size))
    assert open_pack(tmp_path / "pack").matrix("model.layers.0.mlp.up_proj").block_size == block_size


@pytest.mark.parametrize("rule", SCALE_RULES)
def test_scales_are_found_by_the_rule_that_was_asked_for_and_base_json_tells_it(
    tmp_path: Path, checkpoint: Path, rule: ScaleRule
) -> None:
    make_pack(str(checkpoint), tmp_path / "pack", tiny_quantization(), scale_rule=rule)
    pack, weight = open_pack(tmp_path / "pack"), random_weights(LLAMA)[Q_PROJ]
    assert pack.scales == rule
    expected = quantize(weight, bits=4, block_size=32, symmetric=True, scale_rule=rule)
    np.testing.assert_array_equal(pack.matrix(Q_PROJ.removesuffix(".weight")).scales, expected.scales)


def test_rules_that_find_the_same_scales_make_the_same_base(tmp_path: Path) -> None:
    weights = random_weights(LLAMA)
    for name, weight in weights.items():
        if weight.ndim == 2:  # on the grid of max-abs, where nothing is left to gain
            bits = 8 if "embed" in name else 4
            exact = quantize(weight, bits=bits, block_size=32, symmetric=True, scale_rule="max-abs")
            weights[name] = dequantize(exact)
    source = str(write_checkpoint(tmp_path / "source", weights=weights))
    for rule in SCALE_RULES:
        make_pack(source, tmp_path / rule, tiny_quantization(), scale_rule=rule)
    assert open_pack(tmp_path / "mse").fingerprint == open_pack(tmp_path / "max-abs").fingerprint


def test_an_unknown_rule_is_refused_with_the_rules_there_are(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="scales must be max-abs or mse, got best"):
        make_pack(str(checkpoint), tmp_path / "pack", tiny_quantization(), scale_rule="best")  # type: ignore[arg-type]
    assert not (tmp_path / "pack").exists()


def test_slices_of_rows_make_the_same_pack_as_whole_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(write_checkpoint(tmp_path / "source"))
    make_pack(source, tmp_path / "whole", tiny_quantization(symmetric=False))
    monkeypatch.setattr("fedlora.base.packing._SLICE_ELEMENTS", 100)  # 3 rows of 32, one of 72
    make_pack(source, tmp_path / "sliced", tiny_quantization(symmetric=False))
    assert tree(tmp_path / "whole") == tree(tmp_path / "sliced")


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a_sharded_checkpoint_packs_to_the_same_bytes_as_one_file(tmp_path: Path, dtype: Dtype) -> None:
    one = write_checkpoint(tmp_path / "one" / "model", dtype=dtype)
    many = write_checkpoint(tmp_path / "many" / "model", dtype=dtype, shards=3)
    make_pack(str(one), tmp_path / "pack-of-one", tiny_quantization())
    make_pack(str(many), tmp_path / "pack-of-many", tiny_quantization())
    assert tree(tmp_path / "pack-of-one") == tree(tmp_path / "pack-of-many")


def test_packing_twice_gives_the_same_fingerprint(tmp_path: Path, checkpoint: Path) -> None:
    for name in ("a", "b"):
        make_pack(str(checkpoint), tmp_path / name, tiny_quantization())
    assert read_manifest(tmp_path / "a")["fingerprint"] == read_manifest(tmp_path / "b")["fingerprint"]


@pytest.mark.parametrize(
    "other", [tiny_quantization(bits=8), tiny_quantization(embedding_bits=4), tiny_quantization(symmetric=False)]
)
def test_another_quantization_is_another_fingerprint(tmp_path: Path, checkpoint: Path, other: Quantization) -> None:
    make_pack(str(checkpoint), tmp_path / "a", tiny_quantization())
    make_pack(str(checkpoint), tmp_path / "b", other)
    assert read_manifest(tmp_path / "a")["fingerprint"] != read_manifest(tmp_path / "b")["fingerprint"]


def test_one_changed_weight_is_another_fingerprint(tmp_path: Path, checkpoint: Path) -> None:
    make_pack(str(checkpoint), tmp_path / "a", tiny_quantization())
    weights = random_weights(LLAMA)
    weights[Q_PROJ][0, 0] += 1
    _remake(checkpoint, Q_PROJ, weights[Q_PROJ])
    make_pack(str(checkpoint), tmp_path / "b", tiny_quantization())
    assert read_manifest(tmp_path / "a")["fingerprint"] != read_manifest(tmp_path / "b")["fingerprint"]


def test_the_tokenizer_travels_as_it_is_and_the_config_keeps_its_values(tmp_path: Path, checkpoint: Path) -> None:
    for name in ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (checkpoint / name).write_text(f'{{"of": "{name}"}}')
    (checkpoint / "README.md").write_text("not part of the model")
    make_pack(str(checkpoint), tmp_path / "pack", tiny_quantization())
    packed = {path.name for path in (tmp_path / "pack").iterdir()}
    copied = {path.name for path in checkpoint.iterdir()} - {"model.safetensors", "config.json", "README.md"}
    assert packed == copied | {"model.safetensors", "config.json", "base.json"}
    for name in copied:
        assert (tmp_path / "pack" / name).read_bytes() == (checkpoint / name).read_bytes()
    assert json.loads((tmp_path / "pack" / "config.json").read_text()) == dict(LLAMA)
    assert read_manifest(tmp_path / "pack")["files"].keys() == packed - {"base.json"}


def test_the_template_of_chats_with_tools_travels_and_is_under_the_fingerprint(
    tmp_path: Path, checkpoint: Path
) -> None:
    (checkpoint / "additional_chat_templates").mkdir()
    for name in ("tool_use", "rag"):
        (checkpoint / "additional_chat_templates" / f"{name}.jinja").write_text(name)
    (checkpoint / "chat_template.jinja").write_text("plain")
    make_pack(str(checkpoint), tmp_path / "pack", tiny_quantization())
    assert (tmp_path / "pack" / "tool_use.jinja").read_text() == "tool_use"
    assert "tool_use.jinja" in read_manifest(tmp_path / "pack")["files"]
    template = load_chat_template(tmp_path / "pack")
    assert template is not None
    assert template.text([], "here") == "plain"
    assert template.text([], "here", tools=[{"name": "f"}]) == "tool_use"


def test_progress_names_every_tensor_of_the_file_in_its_order(tmp_path: Path, checkpoint: Path) -> None:
    seen: list[str] = []
    make_pack(str(checkpoint), tmp_path / "pack", tiny_quantization(), progress=seen.append)
    assert seen == list(open_pack(tmp_path / "pack").weights.entries)


def test_the_checkpoint_is_left_as_it_was(tmp_path: Path, checkpoint: Path) -> None:
    before = tree(checkpoint)
    make_pack(str(checkpoint), tmp_path / "pack", tiny_quantization())
    assert tree(checkpoint) == before


def _truncate(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        (directory / "config.json").write_text(json.dumps(llama_config(**changes)))

    return edit


def _poisoned(value: float) -> Callable[[Path], None]:
    def poison(directory: Path) -> None:
        weights = random_weights(LLAMA)
        weights[Q_PROJ][-1, -1] = value
        _remake(directory, Q_PROJ, weights[Q_PROJ])

    return poison


SPOILED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "truncated": (_truncate, "model.safetensors: truncated or extended: expected", "copy the file again"),
    "no weights": (
        lambda d: (d / "model.safetensors").unlink(),
        "tiny-llama: no model.safetensors",
        "safetensors format",
    ),
    "foreign architecture": (
        _edit_config(architectures=["GPT2LMHeadModel"]),
        "config.json: architecture GPT2LMHeadModel is not supported",
        "expected one of LlamaForCausalLM",
    ),
    "missing tensor": (
        lambda d: _remake(d, Q_PROJ, None),
        f"tiny-llama: tensor {Q_PROJ} is missing",
        "the weights hold",
    ),
    "missing norm": (lambda d: _remake(d, "model.norm.weight", None), "tensor model.norm.weight is missing", ""),
    "wrong shape": (
        lambda d: _remake(d, Q_PROJ, np.zeros((32, 16))),
        f"tiny-llama: {Q_PROJ} has shape (32, 16)",
        "config.json implies (32, 32)",
    ),
    "a vector for a matrix": (lambda d: _remake(d, Q_PROJ, np.zeros(32)), f"{Q_PROJ} has shape (32,)", "(32, 32)"),
    "NaN": (_poisoned(np.nan), f"model.safetensors: {Q_PROJ} holds NaN or infinity", "cannot be used"),
    "infinity": (_poisoned(np.inf), f"model.safetensors: {Q_PROJ} holds NaN or infinity", "cannot be used"),
    "NaN in a norm": (
        lambda d: _remake(d, "model.norm.weight", np.full(32, np.nan)),
        "model.safetensors: model.norm.weight holds NaN",
        "",
    ),
    "missing tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "tiny-llama: no tokenizer.json", "fast tokenizer"),
    "a git-lfs pointer for a tokenizer": (
        lambda d: (d / "tokenizer.json").write_bytes(POINTER),
        "tokenizer.json: a git-lfs pointer",
        "git lfs pull",
    ),
    "a tokenizer without a model": (
        lambda d: (d / "tokenizer.json").write_text("{}"),
        "tokenizer.json: no tokenizer",
        "AutoTokenizer.from_pretrained",
    ),
    "a web page for a config": (
        lambda d: (d / "config.json").write_text("<!DOCTYPE html><html>Sign in"),
        "config.json: a web page, not the file",
        "expected a model's config.json",
    ),
    "missing config": (lambda d: (d / "config.json").unlink(), "config.json: cannot be read: No such file", ""),
    "more layers than weights": (_edit_config(num_hidden_layers=3), "model.layers.2.", "is missing"),
    "a head that is not there": (_edit_config(tie_word_embeddings=False), "tensor lm_head.weight is missing", ""),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_checkpoint_that_cannot_be_packed_is_refused_and_leaves_nothing(
    tmp_path: Path, checkpoint: Path, what: str
) -> None:
    spoil, where, then = SPOILED[what]
    spoil(checkpoint)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(CheckpointError) as caught:
        make_pack(str(checkpoint), out / "pack", tiny_quantization())
    assert where in str(caught.value)
    assert then in str(caught.value)
    assert str(checkpoint) in str(caught.value)
    assert tree(out) == {}


@pytest.mark.parametrize("what", SPOILED)
def test_a_checkpoint_that_cannot_be_packed_leaves_the_pack_that_was_there(
    tmp_path: Path, checkpoint: Path, what: str
) -> None:
    out = tmp_path / "out"
    make_pack(str(checkpoint), out / "pack", tiny_quantization())
    before = tree(out)
    SPOILED[what][0](checkpoint)
    with pytest.raises(CheckpointError):
        make_pack(str(checkpoint), out / "pack", tiny_quantization(), replace=True)
    assert tree(out) == before


def test_a_hidden_size_that_the_block_does_not_divide_is_refused_with_what_to_do(
    tmp_path: Path, checkpoint: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(CheckpointError, match="hidden_size 32 is not a multiple of the block size 64; pass a smaller"):
        make_pack(str(checkpoint), out / "pack", tiny_quantization(block_size=64))
    assert tree(out) == {}


@pytest.mark.parametrize(
    ("hidden", "block", "advice"),
    [
        (80, 32, "take a model whose hidden size is a multiple of 32"),
        (96, 64, "pass a smaller --block-size: 32"),
        (192, 128, "pass a smaller --block-size: 32 or 64"),
    ],
)
def test_the_block_size_that_is_advised_can_be_followed(tmp_path: Path, hidden: int, block: int, advice: str) -> None:
    source = write_checkpoint(tmp_path / "source", config=llama_config(hidden_size=hidden, num_hidden_layers=1))
    with pytest.raises(CheckpointError) as caught:
        make_pack(source, tmp_path / "pack", tiny_quantization(block_size=block))
    assert str(caught.value).endswith(advice)


def test_an_output_that_exists_is_refused_and_left_alone(tmp_path: Path, checkpoint: Path) -> None:
    out = tmp_path / "out"
    (out / "pack").mkdir(parents=True)
    (out / "pack" / "precious").write_text("keep me")
    before = tree(out)
    with pytest.raises(ConfigError, match="out/pack exists already; name another output, or pass --force"):
        make_pack(str(checkpoint), out / "pack", tiny_quantization())
    assert tree(out) == before


def test_force_replaces_an_output_that_exists(tmp_path: Path, checkpoint: Path) -> None:
    out = tmp_path / "out"
    make_pack(str(checkpoint), out / "pack", tiny_quantization())
    make_pack(str(checkpoint), out / "pack", tiny_quantization(bits=8), replace=True)
    assert open_pack(out / "pack").quantization.bits == 8
    assert [path.name for path in out.iterdir()] == ["pack"]


def test_an_output_below_a_file_is_an_error_of_ours(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FedloraError, match="file"):
        make_pack(str(checkpoint), tmp_path / "file" / "pack", tiny_quantization())


# VmHWM is the peak of this program alone: ru_maxrss of a child begins at its parent's peak on Linux (exec keeps it), and
# would hide everything behind a test process that holds torch.
_PEAK = """
import sys
from pathlib import Path
from fedlora.base.packing import make_pack
from fedlora.base.quantize import Quantization
def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) * 1024
before = peak()
if len(sys.argv) > 1:
    make_pack(sys.argv[1], Path(sys.argv[2]), Quantization(block_size=64))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of resident memory from /proc")
def test_packing_never_holds_the_largest_tensor(tmp_path: Path) -> None:
    config = llama_config(hidden_size=256, head_dim=64, vocab_size=100_000, num_hidden_layers=1)
    weights = random_weights(llama_config(hidden_size=256, head_dim=64, vocab_size=3, num_hidden_layers=1))
    generator = np.random.default_rng(0)
    weights["model.embed_tokens.weight"] = generator.random((100_000, 256), np.float32)
    largest = weights["model.embed_tokens.weight"].nbytes
    assert largest > 100e6
    source = write_checkpoint(tmp_path / "source", config=config, weights=weights)
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(source), str(tmp_path / "pack")], capture_output=True, text=True, check=True
    )
    # Less than the float tensor alone: neither it nor the weights file is ever whole in memory.
    assert int(done.stdout) < largest


def test_a_path_may_be_a_text(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    make_pack(str(tmp_path / "checkpoint"), str(tmp_path / "a"), Quantization(block_size=32))
    make_pack(tmp_path / "checkpoint", tmp_path / "b", Quantization(block_size=32))
    assert open_pack(str(tmp_path / "a")).fingerprint == open_pack(tmp_path / "b").fingerprint
