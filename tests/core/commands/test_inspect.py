"""`fedlora inspect`: a pack, an adapter, an update, and what is none of them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from fedlora.base.pack import BasePack
from fedlora.commands.inspect import inspect
from fedlora.errors import AdapterError, ConfigError, FedloraError, PackError, UpdateError
from fedlora.files.tensor_file import Dtype
from fedlora.lora.adapter import Adapter, with_extras
from fedlora.lora.config import LoraConfig
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora.wire.update import Update, encode_update
from numpy.typing import NDArray

from tests.tiny.adapters import adapter_on
from tests.tiny.checkpoints import llama_config


def _inspect(path: Path) -> Result:
    return CliRunner().invoke(inspect, [str(path)])


def _error(path: Path) -> FedloraError:
    result = _inspect(path)
    assert result.output == ""
    assert isinstance(result.exception, FedloraError)
    return result.exception


def _facts(path: Path) -> dict[str, str]:
    result = _inspect(path)
    assert result.exception is None, result.exception
    lines = result.output.splitlines()[1:]
    return {line[2:24].strip(): line[24:] for line in lines}


def _update(adapter: Adapter, run: str = "a run") -> Update:
    return Update(
        adapter=adapter, run=run, server_round=4, base_fingerprint="ab" * 32, num_examples=9, metrics={"l": 2.5}
    )


def test_a_pack_is_shown_with_its_fingerprint_and_sizes(pack: BasePack) -> None:
    facts = _facts(pack.directory)
    assert facts["fingerprint"] == pack.fingerprint
    assert facts["source"] == "tiny-llama"
    assert facts["quantization"] == "4 bits, block 32, symmetric; embedding 8 bits"
    assert facts["scales"] == "mse"
    assert facts["layers"] == "2"
    assert facts["vocabulary"] == "264, tied head"


def test_an_adapter_is_shown_with_its_base_and_sizes(tmp_path: Path, adapter: Adapter) -> None:
    write_peft(tmp_path / "a", PeftDirectory(adapter=adapter, base_fingerprint="cd" * 32))
    facts = _facts(tmp_path / "a")
    assert facts["rank"] == "4"
    assert facts["alpha"] == "8"
    assert facts["modules"] == "14"
    assert facts["base"] == "cd" * 32
    assert facts["stored as"] == "F32"
    assert facts["parameters"] == f"{adapter.size_bytes // 4:,}"


def test_the_norm_that_is_shown_is_that_of_the_dense_update(tmp_path: Path, adapter: Adapter) -> None:
    write_peft(tmp_path / "a", PeftDirectory(adapter=adapter))
    dense = sum(float((adapter.product(module).dense().astype(float) ** 2).sum()) for module in adapter.pairs) ** 0.5
    assert _facts(tmp_path / "a")["norm of B A"] == f"{dense:.4g}"


def test_an_adapter_of_peft_is_shown_with_the_base_it_names(tmp_path: Path, adapter: Adapter) -> None:
    write_peft(tmp_path / "a", PeftDirectory(adapter=adapter), base_name="someones/model")
    assert _facts(tmp_path / "a")["base"] == "not recorded (someones/model)"


def test_an_update_is_shown_with_its_circumstances(tmp_path: Path, adapter: Adapter) -> None:
    (tmp_path / "u").write_bytes(encode_update(_update(adapter), "f16"))
    facts = _facts(tmp_path / "u")
    assert (facts["run"], facts["round"], facts["examples"], facts["metrics"]) == ("a run", "4", "9", "l 2.5")


@pytest.mark.parametrize("more", [1 << 33, -1], ids=["holes", "cut short"])
def test_an_update_is_read_whole_only_where_its_header_tells_of_its_length(
    tmp_path: Path, adapter: Adapter, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    path = tmp_path / "u.update"
    path.write_bytes(encode_update(Update(adapter=adapter, run="1", server_round=1, base_fingerprint="f" * 64)))
    due = path.stat().st_size
    os.truncate(path, due + more)
    monkeypatch.setattr("fedlora.commands.inspect.read_open", lambda *_: pytest.fail("it was read"))
    assert f"{due + more} bytes; its header tells of {due}" in str(_error(path))


def test_a_run_name_that_no_terminal_can_show_breaks_nothing(tmp_path: Path, adapter: Adapter) -> None:
    (tmp_path / "u").write_bytes(encode_update(_update(adapter, run="a\ud800b")))
    assert "run" in _facts(tmp_path / "u")


def test_control_characters_from_a_stranger_do_not_reach_the_terminal(tmp_path: Path, adapter: Adapter) -> None:
    (tmp_path / "u").write_bytes(encode_update(_update(adapter, run="a\x1b[2Jb\nbase  forged")))
    output = _inspect(tmp_path / "u").output
    assert "\x1b" not in output
    assert "\nbase  forged" not in output


def test_a_damaged_pack_is_refused_by_file(tmp_path: Path, pack: BasePack) -> None:
    shutil.copytree(pack.directory, tmp_path / "p")
    (tmp_path / "p" / "tokenizer.json").write_text("{}")
    error = _error(tmp_path / "p")
    assert isinstance(error, PackError)
    assert str(tmp_path / "p" / "tokenizer.json") in str(error)


def test_a_damaged_adapter_is_refused_by_file(tmp_path: Path, adapter: Adapter) -> None:
    write_peft(tmp_path / "a", PeftDirectory(adapter=adapter))
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"x")
    error = _error(tmp_path / "a")
    assert isinstance(error, AdapterError)
    assert str(tmp_path / "a" / "adapter_model.safetensors") in str(error)


@pytest.mark.parametrize("content", [b"", b"no update", b"FLUP\x01\x00\x00\x00\x00"])
def test_a_file_that_is_no_update_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "u").write_bytes(content)
    error = _error(tmp_path / "u")
    assert isinstance(error, UpdateError)
    assert str(tmp_path / "u") in str(error)


def test_what_is_nothing_of_ours_is_refused_with_what_could_be_shown(tmp_path: Path) -> None:
    error = _error(tmp_path)
    assert isinstance(error, ConfigError)
    assert "neither a base pack (base.json), nor a PEFT adapter (adapter_config.json), nor an update" in str(error)


def test_a_checkpoint_is_shown_with_how_to_pack_it(checkpoint: Path) -> None:
    facts = _facts(checkpoint)
    assert facts["model"] == "llama, a decoder"
    assert f"fedlora pack {checkpoint} -o " in facts["not packed yet"]


def test_a_checkpoint_that_is_quantized_already_is_refused_by_the_method(checkpoint: Path) -> None:
    config = llama_config(quantization_config={"quant_method": "gptq", "bits": 4})
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert "quantized already, with GPTQ, 4 bits" in str(_error(checkpoint))


def test_a_gguf_file_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(68))
    assert "m.gguf: a GGUF file" in str(_error(tmp_path / "m.gguf"))


def test_what_an_adapter_has_beside_its_factors_is_shown(tmp_path: Path, adapter: Adapter) -> None:
    head: tuple[Dtype, NDArray[np.float32]] = ("F32", np.zeros((264, 32), np.float32))
    content = PeftDirectory(
        adapter=adapter,
        saved_modules={"base_model.model.lm_head.weight": head},
        embeddings={"base_model.model.model.embed_tokens.weight": head},
    )
    write_peft(tmp_path / "a", content)
    facts = _facts(tmp_path / "a")
    assert facts["also trained"].startswith("lm_head.weight [264, 32] (modules_to_save)")
    assert facts["also stored"].startswith("model.embed_tokens.weight [264, 32] (save_embedding_layers)")


def test_a_head_of_an_adapters_own_is_shown(tmp_path: Path, adapter: Adapter) -> None:
    own = with_extras(adapter, {"classifier.weight": np.ones((5, 32), np.float32)})
    write_peft(tmp_path / "a", PeftDirectory(adapter=own))
    assert _facts(tmp_path / "a")["head"] == "classifier.weight [5, 32]: its own, in place of the base's"


def test_lora_on_the_head_is_shown_as_what_is_not_supported(tmp_path: Path) -> None:
    modules = {"model.layers.0.self_attn.q_proj": (32, 32), "lm_head": (264, 32)}
    adapter = adapter_on(LoraConfig(rank=4, target_modules=("q_proj", "lm_head")), modules)
    write_peft(tmp_path / "a", PeftDirectory(adapter=adapter))
    assert _facts(tmp_path / "a")["not supported"] == "LoRA on lm_head: train without it among target_modules"


def test_a_path_at_which_nothing_lies_is_refused_with_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    assert str(_error(tmp_path / "adaptor")) == (
        f"{tmp_path / 'adaptor'}: there is no such file or folder; did you mean {tmp_path / 'adapter'}?"
    )


def test_how_an_adapter_is_spoken_to_is_shown(tmp_path: Path, adapter: Adapter) -> None:
    write_peft(tmp_path / "a", PeftDirectory(adapter=adapter))
    assert not {"chat template", "answers end with"} & _facts(tmp_path / "a").keys()
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "a" / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    (tmp_path / "a" / "generation_config.json").write_text('{"eos_token_id": [7]}')
    facts = _facts(tmp_path / "a")
    assert facts["chat template"] == str(tmp_path / "a" / "chat_template.jinja")
    assert facts["answers end with"] == "<|im_end|>, 7"
