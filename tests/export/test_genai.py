"""The files for onnxruntime-genai: what they say, and, where genai is installed, that it speaks as torch does with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fedlora.base.pack import BasePack, open_pack
from fedlora.errors import ConfigError
from fedlora.exported.profiles import Profile
from fedlora.family import decoder_shape
from fedlora_client.reference import logits as torch_logits
from fedlora_export.adapter_export import write_onnx_adapter
from fedlora_export.export import export_base
from fedlora_export.genai import genai_config, write_genai

from tests.reference.agreement import assert_close
from tests.reference.greedy import NEW_TOKENS, generator_of, prompt_of, ranks_8_and_16, rest_of, torch_tokens
from tests.tiny.adapters import random_adapter
from tests.tiny.checkpoints import llama_config, llama_shape
from tests.tiny.families import FAMILIES, family_pack
from tests.tiny.tokenizer import BOS, EOS, byte_tokenizer
from tests.tiny.tokens import random_tokens

# As the runtime's own exporter names them.
GENAI_TYPES = {"llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text"}
Folder = Callable[[str], BasePack]


@pytest.fixture(scope="session")
def og() -> Any:
    return pytest.importorskip(
        "onnxruntime_genai", reason="onnxruntime-genai is not installed: pip install fedlora[dev]"
    )


@pytest.fixture(scope="session")
def folder(family_folder: Folder) -> Folder:
    """An exported folder of a family with the files for genai."""
    return family_folder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sizes_are_those_of_the_base(family: str) -> None:
    shape = family_pack(family).shape
    config: Any = genai_config(shape)
    model, decoder = config["model"], config["model"]["decoder"]
    assert model["type"] == FAMILIES[family].model_type
    assert model["type"] in GENAI_TYPES
    assert (model["vocab_size"], model["context_length"]) == (shape.vocab_size, shape.max_positions)
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (BOS, [EOS, BOS], EOS)
    assert decoder["filename"] == "decoder.onnx"
    assert (decoder["hidden_size"], decoder["head_size"]) == (shape.hidden_size, shape.head_dim)
    assert (decoder["num_attention_heads"], decoder["num_key_value_heads"]) == (shape.num_heads, shape.num_kv_heads)
    assert decoder["num_hidden_layers"] == shape.num_layers
    # Its caches have full length; genai would shorten those of a layer whose window it knows.
    assert "sliding_window" not in decoder


def test_the_inputs_and_outputs_are_those_of_the_graph(folder: Folder) -> None:
    base = folder("llama")
    graph = onnx.load(base.directory / "decoder.onnx", load_external_data=False).graph
    config: Any = genai_config(base.shape)

    def names(of: dict[str, str]) -> set[str]:
        return {name.replace("%d", str(layer)) for name in of.values() for layer in range(base.shape.num_layers)}

    given = {value.name for value in graph.input} - {value.name for value in graph.initializer}
    assert names(config["model"]["decoder"]["inputs"]) == given
    assert names(config["model"]["decoder"]["outputs"]) == {value.name for value in graph.output}


def test_a_token_that_a_base_does_not_have_is_left_out() -> None:
    bare = genai_config(decoder_shape(llama_config(eos_token_id=None, bos_token_id=None), "bare"))
    assert not {"bos_token_id", "eos_token_id"} & set(json.loads(json.dumps(bare))["model"])
    several: Any = genai_config(llama_shape(eos_token_id=[2, 1]))  # one of them is the bos token too
    assert (several["model"]["eos_token_id"], several["model"]["pad_token_id"]) == ([2, 1], 2)


def test_a_decoder_of_another_name_is_any_decoder() -> None:
    config: Any = genai_config(llama_shape(model_type="mine"))
    assert config["model"]["type"] == "decoder"


def test_the_graph_is_that_of_the_profile() -> None:
    config: Any = genai_config(llama_shape(), "base")
    assert config["model"]["decoder"]["filename"] == "decoder.base.onnx"
    with pytest.raises(ConfigError, match="gives a batch one adapter, not one for each row; export profile compat"):
        genai_config(llama_shape(), "rows")


def test_whatever_else_is_exported_the_files_name_the_graph_that_adapter_files_fit(tmp_path: Path) -> None:
    def named() -> str:
        config = json.loads((tmp_path / "model" / "genai_config.json").read_text(encoding="utf-8"))
        name: str = config["model"]["decoder"]["filename"]
        assert (tmp_path / "model" / name).is_file()
        return name

    export_base(family_pack("llama"), tmp_path / "model", profiles=("fast", "base"))
    assert named() == "decoder.fast.onnx"  # there is no other that takes an adapter
    base, later = open_pack(tmp_path / "model"), list[Profile](("compat", "fast", "base", "rows", "kernel"))
    for profile in later:
        export_base(base, profiles=(profile,))
        assert named() == "decoder.onnx"
    export_base(base, tmp_path / "model", profiles=("base", "fast", "compat"))
    assert named() == "decoder.onnx"


def test_a_long_context_is_not_allocated_unless_it_is_asked_for() -> None:
    config: Any = genai_config(llama_shape(max_position_embeddings=131072))
    assert (config["model"]["context_length"], config["search"]["max_length"]) == (131072, 2048)
    short: Any = genai_config(llama_shape())
    assert short["search"]["max_length"] == 64


def test_no_file_of_the_pack_is_changed(folder: Folder) -> None:
    source, base = family_pack("llama"), folder("llama")
    assert base.fingerprint == source.fingerprint
    made = {file.name for file in base.directory.iterdir()} - {file.name for file in source.directory.iterdir()}
    # Its checkpoint had no tokenizer_config.json, without which genai opens no tokenizer.
    assert {"genai_config.json", "tokenizer_config.json"} <= made
    (base.directory / "tokenizer_config.json").write_text('{"model_max_length": 7}')
    write_genai(base)
    assert (base.directory / "tokenizer_config.json").read_text() == '{"model_max_length": 7}'


@pytest.mark.parametrize("family", FAMILIES)
def test_genai_computes_the_logits_of_torch_without_and_with_an_adapter(
    og: Any, folder: Folder, tmp_path: Path, family: str
) -> None:
    base = folder(family)
    model, tokens = og.Model(str(base.directory)), random_tokens(base, 1, 14)
    adapters, every = og.Adapters(model), {"none": None} | ranks_8_and_16(base)
    for name, adapter in every.items():
        if adapter is not None:
            write_onnx_adapter(adapter, base.fingerprint, tmp_path / name)
            adapters.load(str(tmp_path / name), name)
    for name in [*every, *every]:  # both ranks in one process, on one session, and again
        generator = generator_of(og, model, tokens.shape[1])
        if name != "none":
            generator.set_active_adapter(adapters, name)
        expected = torch_logits(base, tokens, every[name])[0]
        for begin, end in ((0, 7), (7, 8), (8, 9), (9, 12), (12, 14)):  # a prompt, then parts after the cache
            generator.append_tokens(tokens[0, begin:end].astype(np.int32))
            assert_close(generator.get_logits()[0, -1], expected[end - 1])


@pytest.mark.parametrize("family", ["llama", "qwen3"])  # rotated outside the attention, and within
def test_genai_gives_the_tokens_of_torch(og: Any, folder: Folder, family: str) -> None:
    base = folder(family)
    prompt = prompt_of(base)
    generator = generator_of(og, og.Model(str(base.directory)), len(prompt) + NEW_TOKENS)
    generator.append_tokens(prompt)
    assert rest_of(generator) == torch_tokens(base, prompt)


def test_generators_side_by_side_keep_their_adapters(og: Any, folder: Folder, tmp_path: Path) -> None:
    base = folder("llama")
    model, prompt, adapter = og.Model(str(base.directory)), prompt_of(base), random_adapter(folder("llama"))
    write_onnx_adapter(adapter, base.fingerprint, tmp_path / "a")
    adapters = og.Adapters(model)
    adapters.load(str(tmp_path / "a"), "a")
    plain, adapted = (generator_of(og, model, len(prompt) + NEW_TOKENS) for _ in range(2))
    adapted.set_active_adapter(adapters, "a")
    for generator in (plain, adapted):
        generator.append_tokens(prompt)
        generator.generate_next_token()
    assert rest_of(plain) == torch_tokens(base, prompt)[1:]
    assert rest_of(adapted) == torch_tokens(base, prompt, adapter)[1:]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_rows_of_a_batch_may_differ_in_length(og: Any, folder: Folder, family: str) -> None:
    base = folder(family)
    prompts = [prompt_of(base, length) for length in (9, 4, 1)]
    padded = np.array([prompt + [EOS] * (9 - len(prompt)) for prompt in prompts], np.int32)
    generator = generator_of(og, og.Model(str(base.directory)), 9 + NEW_TOKENS, batch_size=3)
    generator.append_tokens(padded)
    rows: list[list[int]] = [[], [], []]
    while not generator.is_done():
        generator.generate_next_token()
        for row, token in zip(rows, generator.get_next_tokens(), strict=True):
            row.append(int(token))
    for prompt, row in zip(prompts, rows, strict=True):
        expected = torch_tokens(base, prompt)
        assert row[: len(expected)] == expected


def test_tokens_may_follow_what_was_generated(og: Any, folder: Folder) -> None:
    base = folder("llama")
    model, prompt, more = og.Model(str(base.directory)), prompt_of(base), [65, 66, 67]
    generator = generator_of(og, model, 64)
    generator.append_tokens(prompt)
    generator.generate_next_token()
    generator.get_logits()  # genai 0.18 otherwise never reads the token that it gave last
    generator.append_tokens(more)
    first = torch_tokens(base, prompt)[0]
    assert rest_of(generator)[:NEW_TOKENS] == torch_tokens(base, [*prompt, first, *more])


def test_genais_tokenizer_reads_the_packs(og: Any, folder: Folder) -> None:
    tokenizer, own = og.Tokenizer(og.Model(str(folder("llama").directory))), byte_tokenizer()
    for text in ("Once upon a time", " two  blanks\n", "é, 日本"):
        tokens = own.encode(text, add_special_tokens=False).ids
        assert [int(token) for token in tokenizer.encode(text)] == tokens
        assert tokenizer.decode(np.array(tokens, np.int32)) == text
    assert (tokenizer.bos_token_id, list(tokenizer.eos_token_ids)) == (BOS, [EOS, BOS])
