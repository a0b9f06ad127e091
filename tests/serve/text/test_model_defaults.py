"""A model's own generation_config.json: what stands for a parameter that nobody gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from fedlora.base.pack import BasePack, open_pack
from fedlora_serve.commands import generate as generate_module
from fedlora_serve.commands.serve import defaults_lines
from fedlora_serve.http.protocol.chat import ChatBody
from fedlora_serve.http.protocol.completions import CompletionBody
from fedlora_serve.text.model_defaults import ModelDefaults, model_defaults
from fedlora_serve.text.sampling import Sampling

from tests.tiny.checkpoints import tiny_pack, write_checkpoint

Make = Callable[[Any], BasePack]


@pytest.fixture
def base_with(tmp_path: Path) -> Make:
    def make(config: Any) -> BasePack:
        checkpoint = write_checkpoint(tmp_path / "checkpoint")
        if config is not None:
            (checkpoint / "generation_config.json").write_text(json.dumps(config))
        return tiny_pack(tmp_path / "pack", checkpoint)

    return make


QWEN = {
    "do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05, "max_new_tokens": 512,
    "pad_token_id": 1, "bos_token_id": 1, "eos_token_id": [2, 1], "transformers_version": "4.37.0",
}  # fmt: skip
TAKEN = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05, "max_tokens": 512}


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (None, {}),
        ({}, {}),
        (QWEN, TAKEN),
        ({key: value for key, value in QWEN.items() if key != "do_sample"}, TAKEN),
        ({**QWEN, "do_sample": False}, {"repetition_penalty": 1.05, "max_tokens": 512}),
        ({"top_k": -1, "min_p": 0.1}, {"top_k": 0, "min_p": 0.1}),
        ({"temperature": None, "top_p": None}, {}),
        ({"temperature": 0}, {"temperature": 0}),
    ],
)
def test_what_vllm_takes_is_taken(base_with: Make, config: Any, values: dict[str, float]) -> None:
    defaults = model_defaults(base_with(config))
    assert defaults == ModelDefaults(values)
    assert defaults.max_tokens == values.get("max_tokens")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1), ("temperature", "hot"), ("temperature", True), ("temperature", [0.5]), ("temperature", 1e400),
        ("top_p", 0), ("top_p", 2.0), ("top_k", 1.5), ("top_k", -7), ("max_new_tokens", 0), ("repetition_penalty", {}),
    ],
)  # fmt: skip
def test_a_value_that_makes_no_sense_is_told_and_not_used(base_with: Make, name: str, value: object) -> None:
    defaults = model_defaults(base_with({name: value, "min_p": 0.25}))
    assert defaults.values == {"min_p": 0.25}
    assert [name in note for note in defaults.notes] == [True]


def test_what_is_not_done_is_told_where_it_would_change_an_answer(base_with: Make) -> None:
    config = {"num_beams": 4, "no_repeat_ngram_size": 3, "typical_p": 1.0, "min_length": 0, "stop_strings": ["x"]}
    (note,) = model_defaults(base_with(config)).notes
    assert "num_beams, no_repeat_ngram_size, stop_strings are not used here" in note


@pytest.mark.parametrize("body", [CompletionBody, ChatBody])
def test_a_request_counts_more_than_the_model_and_the_model_more_than_openai(body: Any) -> None:
    prompt = {"prompt": "x"} if body is CompletionBody else {"messages": [{"role": "user", "content": "x"}]}

    def sampled(defaults: dict[str, float], **fields: Any) -> Sampling:
        request = body.model_validate({"model": "m", **prompt, **fields})
        sampling: Sampling = request.sampling(max_tokens=4, logprobs=None, index=0, defaults=defaults)
        return sampling

    values = {name: value for name, value in TAKEN.items() if name != "max_tokens"}
    expected = Sampling(max_tokens=4, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)
    assert sampled(values) == sampled(values, temperature=None, top_k=None) == expected
    given = sampled(values, temperature=0, top_p=1.0, top_k=-1, min_p=0.5, repetition_penalty=1)
    assert given == Sampling(max_tokens=4, temperature=0, min_p=0.5)
    assert sampled({}) == Sampling(max_tokens=4, temperature=1.0)


def _generated(monkeypatch: pytest.MonkeyPatch, base: BasePack, *options: str) -> tuple[Sampling, str]:
    """(how `fedlora generate` chooses, what it says of it)"""
    seen: list[Sampling] = []

    def generate(engine: object, prompt: str, sampling: Sampling, **_: object) -> Any:
        seen.append(sampling)
        yield "!"

    monkeypatch.setattr(
        "fedlora_serve.local.engine.Engine",
        lambda *_, **__: SimpleNamespace(base=base, load_adapters=lambda *_, **__: None),
    )
    monkeypatch.setattr("fedlora_serve.local.generate.generate", generate)
    result = CliRunner().invoke(generate_module.generate, [str(base.directory), "--prompt", "x", *options])
    assert result.exception is None, result.exception
    return seen[0], result.stderr


def test_generate_takes_them_says_so_and_can_do_without(base_with: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_with(QWEN)
    sampling, told = _generated(monkeypatch, base)
    assert sampling == Sampling(**TAKEN, seed=0)  # type: ignore[arg-type]
    assert "temperature 0.7, top_p 0.8, top_k 20, repetition_penalty 1.05, max_tokens 512" in told
    sampling, told = _generated(monkeypatch, base, "--temperature", "0", "--max-tokens", "3")
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0, 0.8, 3)
    assert "temperature" not in told
    assert _generated(monkeypatch, base, "--generation-config", "none") == (Sampling(seed=0), "")


def test_without_the_file_generate_is_greedy_as_before(base_with: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _generated(monkeypatch, base_with(None)) == (Sampling(seed=0), "")


def test_the_service_tells_what_it_takes_and_how_to_do_without() -> None:
    assert defaults_lines(ModelDefaults()) == []
    (line,) = defaults_lines(ModelDefaults({"temperature": 0.6}))
    assert "generation_config.json says: temperature 0.6 (--generation-config none)" in line


def test_a_pack_is_opened_whatever_its_file_says_of_sampling(base_with: Make) -> None:
    assert open_pack(base_with({"temperature": "hot"}).directory).shape.vocab_size == 264
