from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import fedlora_serve
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fedlora.base.pack import BasePack, open_pack
from fedlora.base.packing import make_pack
from fedlora.base.quantize import Quantization
from fedlora.cli import main
from fedlora.combine.combining import combine
from fedlora.combine.ways import Combination
from fedlora.errors import ConfigError
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora_client.decoder.decoder import Decoder
from fedlora_export.adapter_export import export_peft, write_onnx_adapter
from fedlora_export.export import export_base
from fedlora_serve.adapters.loading import LoadedAdapter
from fedlora_serve.commands.generate import generate as generate_command
from fedlora_serve.local.engine import Engine
from fedlora_serve.local.generate import generate
from fedlora_serve.text.sampling import Sampling
from fedlora_serve.text.tokenizer import open_tokenizer, tokens_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.tiny.adapters import random_adapter
from tests.tiny.llamas import DEFAULT, save_pack
from tests.tiny.tokenizer import BOS, EOS, byte_tokenizer

# karpathy/llama2.c, doc/stories260K.md: what the model says first, at temperature 0.
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball."
)


class ForcedDecoding:
    """A sequence in which the given tokens are the likeliest, one after another."""

    def __init__(self, tokens: Sequence[int], read: list[list[int]]) -> None:
        self._tokens, self._read = iter(tokens), read
        self.length = 0

    def step(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self._read.append(list(tokens))
        self.length += len(tokens)
        scores = np.zeros(258, np.float32)
        scores[next(self._tokens)] = 1
        return scores


class ForcedEngine:
    """An engine that says what it is told to."""

    def __init__(self, base: BasePack, tokens: Sequence[int], **shape: Any) -> None:
        self.base = SimpleNamespace(shape=dataclasses.replace(base.shape, **shape))
        self.tokenizer = byte_tokenizer()
        self.read: list[list[int]] = []
        self._tokens = tokens

    def start(self, adapter: LoadedAdapter | None = None) -> ForcedDecoding:
        return ForcedDecoding(self._tokens, self.read)


def ids(text: str) -> list[int]:
    return byte_tokenizer().encode(text, add_special_tokens=False).ids


def pieces_of(engine: ForcedEngine, prompt: str = "", max_tokens: int = 128, **how: Any) -> list[str]:
    return list(generate(cast(Engine, engine), prompt, Sampling(max_tokens=max_tokens, **how)))


@pytest.fixture(scope="module")
def stories(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> BasePack:
    """stories260K at 8 bits, with its graph."""
    source = shared / "models" / "stories260K"
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    folder = tmp_path_factory.mktemp("stories") / "pack"
    make_pack(str(source), folder, Quantization(bits=8, block_size=32))
    export_base(open_pack(folder))
    return open_pack(folder)


def test_torch_on_the_packed_base_tells_the_story_of_stories260k(stories: BasePack) -> None:
    decoder, tokenizer = Decoder(stories), open_tokenizer(stories.directory)
    tokens = [1]
    while len(tokens) < 80 and not tokenizer.decode(tokens).strip().startswith(STORY):
        with torch.no_grad():
            tokens.append(int(decoder.logits(torch.tensor([tokens]))[0, -1].argmax()))
    assert tokenizer.decode(tokens).strip() == STORY


def test_the_engine_tells_the_story_of_stories260k(stories: BasePack) -> None:
    engine = Engine(stories.directory, threads=1)
    text = "".join(generate(engine, "", Sampling(max_tokens=80)))
    assert text.strip().startswith(STORY)
    # Where a prompt ends inside the story, the engine goes on with the same words.
    rest = "".join(generate(engine, "Once upon a time, there was", Sampling(max_tokens=60)))
    assert ("Once upon a time, there was" + rest).startswith(STORY)


def test_the_command_prints_the_prompt_and_the_story_and_nothing_else(
    stories: BasePack, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = "Once upon a time, there was"
    arguments = [
        "generate",
        "--model",
        str(stories.directory),
        "--prompt",
        prompt,
        "--max-tokens",
        "20",
        "--threads",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["fedlora", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    out, err = capfd.readouterr()
    expected = "".join(generate(Engine(stories.directory, threads=1), prompt, Sampling(max_tokens=20)))
    assert out == f"{prompt}{expected}\n"
    assert out.startswith(STORY[:60])
    assert err == ""


def test_the_command_speaks_with_an_adapter(
    model: Path, tmp_path: Path, engine: Engine, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.onnx_adapter"
    write_onnx_adapter(random_adapter(engine.base), engine.base.fingerprint, path)
    texts = []
    for options in ([], ["--adapter", str(path)]):
        arguments = ["generate", "--model", str(model), "--prompt", "ab", "--max-tokens", "12", *options]
        monkeypatch.setattr(sys, "argv", ["fedlora", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        texts.append(capfd.readouterr().out)
    assert texts[0] != texts[1]
    adapter = engine.load_adapter(path)
    expected = "".join(generate(engine, "ab", Sampling(max_tokens=12), adapter=adapter))
    assert texts[1] == f"ab{expected}\n"


def test_the_command_takes_the_base_as_an_argument_or_an_option_and_a_peft_directory_as_well_as_a_file(
    model: Path, tmp_path: Path, engine: Engine
) -> None:
    peft = PeftDirectory(adapter=random_adapter(engine.base), base_fingerprint=engine.base.fingerprint)
    write_peft(tmp_path / "mine", peft)
    export_peft(tmp_path / "mine", tmp_path / "mine.onnx_adapter")
    expected = "".join(generate(engine, "ab", Sampling(max_tokens=12), adapter=engine.load_adapter(tmp_path / "mine")))
    assert expected != "".join(generate(engine, "ab", Sampling(max_tokens=12)))
    for base in ([str(model)], ["--model", str(model)]):
        for adapter in ("mine", "mine.onnx_adapter"):
            options = ["--prompt", "ab", "--max-tokens", "12", "--adapter", str(tmp_path / adapter)]
            assert CliRunner().invoke(generate_command, [*base, *options]).output == f"ab{expected}\n"


def test_the_command_speaks_with_several_adapters_together_as_with_what_fedlora_combine_makes_of_them(
    model: Path, tmp_path: Path, engine: Engine
) -> None:
    places = [tmp_path / name for name in ("law", "a=verse")]
    for seed, place in enumerate(places):
        adapter = random_adapter(engine.base, seed=seed)
        write_peft(place, PeftDirectory(adapter=adapter, base_fingerprint=engine.base.fingerprint))
    combine(places, tmp_path / "both", Combination(weights=(0.75, -0.5), how="cat"))
    options = [str(model), "--prompt", "ab", "--max-tokens", "12"]

    def said(*adapters: str) -> str:
        named = [part for adapter in adapters for part in ("--adapter", str(tmp_path / adapter))]
        result = CliRunner().invoke(generate_command, [*options, *named])
        assert result.exit_code == 0, result.exception
        return result.output

    assert said("law=0.75", "a=verse=-0.5") == said("both") != said("law", "a=verse=-0.5")
    assert said("law") == said("law=1") != said("law=0.25")
    for wrong, told in (("law=much", "expected a path, or PATH=WEIGHT with a number"), ("law=nan", "the weight nan;")):
        refused = CliRunner().invoke(generate_command, [*options, "--adapter", str(tmp_path / wrong)])
        assert told in str(refused.exception)


def test_the_command_wants_one_base(model: Path) -> None:
    for arguments, got in (([], "neither"), (["a", "--model", "b"], "a and --model b")):
        result = CliRunner().invoke(generate_command, [*arguments, "--prompt", "x"])
        assert result.exit_code == 2
        assert f"expected one BASE, as fedlora generate BASE or as --model BASE; got {got}" in result.output


def test_an_adapter_that_is_neither_a_directory_of_peft_nor_an_adapter_file_is_refused_with_what_was_expected(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("text", "adapter_config.json"):
        (tmp_path / name).write_text("hello")
    for name, message in {
        "folder": "expected a PEFT directory with adapter_config.json and adapter_model.safetensors",
        "text": "not a file of ONNX Runtime's adapter format",
        "nowhere": "there is no such file or folder",
        "adapter_config.json": f"a file of a PEFT directory; name the directory: {tmp_path}",
    }.items():
        arguments = ["generate", str(model), "--prompt", "x", "--adapter", str(tmp_path / name)]
        monkeypatch.setattr(sys, "argv", ["fedlora", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert (ended.value.code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith(f"error: {tmp_path / name}")
        assert message in err


def test_a_few_lines_of_python_say_what_the_command_says(model: Path, tmp_path: Path, base: BasePack) -> None:
    write_peft(tmp_path / "mine", PeftDirectory(adapter=random_adapter(base), base_fingerprint=base.fingerprint))
    engine = fedlora_serve.Engine(str(model), threads=1)
    adapter = engine.load_adapter(str(tmp_path / "mine"))
    text = "".join(fedlora_serve.generate(engine, "ab", fedlora_serve.Sampling(max_tokens=12), adapter=adapter))
    options = ["--prompt", "ab", "--max-tokens", "12", "--adapter", str(tmp_path / "mine")]
    assert CliRunner().invoke(generate_command, [str(model), *options]).output == f"ab{text}\n"


def test_a_prompt_longer_than_the_context_is_one_line_on_standard_error_and_nothing_on_standard_output(
    model: Path, engine: Engine, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["generate", "--model", str(model), "--prompt", "x" * 64]  # and <s>: 65 tokens
    with pytest.raises(ConfigError, match="65 tokens are more than the base's context of 64; shorten the prompt"):
        next(generate(engine, "x" * 64, Sampling()))
    monkeypatch.setattr(sys, "argv", ["fedlora", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "error: 65 tokens are more than the base's context of 64; shorten the prompt\n"


def test_a_seed_below_zero_is_refused_by_the_option(model: Path) -> None:
    result = CliRunner().invoke(generate_command, ["--model", str(model), "--prompt", "x", "--seed", "-1"])
    assert result.exit_code == 2
    assert "Invalid value for '--seed': -1 is not in the range x>=0" in result.output


def test_an_error_of_the_command_line_is_one_line_on_standard_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["fedlora", "generate", "--model", str(tmp_path), "--prompt", "x"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_sampling_is_repeatable_by_its_seed(engine: Engine) -> None:
    samplings = [Sampling(temperature=1.5, max_tokens=30, seed=seed) for seed in (1, 1, 2)]
    first, second, other = ("".join(generate(engine, "a", sampling)) for sampling in samplings)
    assert first == second
    assert first != other


def test_the_prompt_is_read_once_after_bos_and_then_each_new_token(base: BasePack) -> None:
    engine = ForcedEngine(base, ids("xyz"))
    assert pieces_of(engine, "ab", max_tokens=3) == ["x", "y", "z"]
    assert engine.read == [[BOS, *ids("ab")], ids("x"), ids("y")]
    bare = ForcedEngine(base, ids("x"), tokens_before_text=())
    assert pieces_of(bare, "ab", max_tokens=1) == ["x"]
    assert bare.read == [ids("ab")]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_at_most_max_tokens_are_generated(base: BasePack, count: int) -> None:
    engine = ForcedEngine(base, ids("x" * 50))
    assert pieces_of(engine, "a", max_tokens=count) == ["x"] * count
    assert len(engine.read) == count


@pytest.mark.parametrize("stop", [EOS, BOS, 7])
def test_generation_stops_where_the_model_ends_its_text(base: BasePack, stop: int) -> None:
    engine = ForcedEngine(base, [*ids("xy"), stop, *ids("never")], eos_token_ids=(EOS, 7))
    assert pieces_of(engine, "a") == ["x", "y"]


def test_generation_goes_on_after_the_end_where_it_is_told_to(base: BasePack) -> None:
    engine = ForcedEngine(base, [*ids("x"), EOS, *ids("y")])
    assert "".join(pieces_of(engine, "a", max_tokens=3, ignore_eos=True)) == "xy"


def test_generation_stops_before_a_stop_string_and_reads_no_further(base: BasePack) -> None:
    engine = ForcedEngine(base, ids("one END two"))
    assert "".join(pieces_of(engine, "a END ", stop=("never", "END"))) == "one "
    assert len(engine.read) == len("one END")


def test_what_may_have_become_a_stop_string_is_yielded_at_the_end(base: BasePack) -> None:
    assert pieces_of(ForcedEngine(base, ids("xEN")), "a", max_tokens=3, stop=("END",)) == ["x", "EN"]


def test_tokens_that_were_said_are_chosen_less_with_a_repetition_penalty(engine: Engine) -> None:
    plain, penalized = (
        engine.tokenizer.encode("".join(generate(engine, "ab", Sampling(max_tokens=40, repetition_penalty=factor)))).ids
        for factor in (1.0, 5.0)
    )
    assert len(set(penalized)) > len(set(plain))


def test_the_command_takes_every_option_of_sampling(
    stories: BasePack, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"temperature": 0.9, "top-k": 40, "top-p": 0.9, "min-p": 0.02, "repetition-penalty": 1.1, "seed": 3}
    arguments = [
        "generate",
        "--model",
        str(stories.directory),
        "--prompt",
        "Once",
        "--max-tokens",
        "60",
        "--threads",
        "1",
    ]
    arguments += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["fedlora", *arguments, "--stop", ".", "--stop", "never"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    how: dict[str, Any] = {name.replace("-", "_"): value for name, value in options.items()}
    sampling = Sampling(max_tokens=60, stop=(".", "never"), **how)
    expected = "".join(generate(Engine(stories.directory, threads=1), "Once", sampling))
    assert capfd.readouterr().out == f"Once{expected}\n"
    assert "." not in expected


def test_an_option_out_of_range_is_refused_before_anything_is_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["fedlora", "generate", "--model", str(tmp_path), "--prompt", "x", "--top-p", "2"])
    with pytest.raises(SystemExit):
        main()
    assert capfd.readouterr().err == "error: top_p must be above 0 and at most 1, got 2.0\n"


def test_a_tokenizer_that_would_cut_or_fill_texts_does_not(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert tokens_of(open_tokenizer(tmp_path), "abcdefgh", add_special_tokens=False) == ids("abcdefgh")


def test_generation_stops_at_the_end_of_the_context(base: BasePack) -> None:
    engine = ForcedEngine(base, ids("x" * 200), max_positions=10)
    # <s> a b are 3 tokens; the 10th is read, and gives one more.
    assert pieces_of(engine, "ab") == ["x"] * 8


def test_the_real_engine_generates_up_to_the_end_of_the_context(engine: Engine) -> None:
    generated = list(itertools.islice(generate(engine, "x" * 60, Sampling(temperature=1.0, max_tokens=99)), 99))
    assert len(generated) <= 64 - 61 + 1


@settings(deadline=None, max_examples=60)
@given(
    prompt=st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=8),
    text=st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), min_size=1, max_size=16),
)
@example(prompt="é", text="naïve \N{GRINNING FACE}\N{FAMILY}\u200d\N{BOY} 日本語")
def test_a_character_of_many_tokens_is_never_split(base: BasePack, prompt: str, text: str) -> None:
    tokens = ids(text)
    pieces = pieces_of(ForcedEngine(base, [*tokens, EOS], max_positions=1000), prompt)
    assert "".join(pieces) == text
    assert all(pieces)
    assert all("\ufffd" not in piece for piece in pieces)


def test_half_a_character_at_the_end_is_left_out(base: BasePack) -> None:
    tokens = ids("a\N{GRINNING FACE}")
    assert len(tokens) == 5
    for count in (2, 3, 4):
        assert pieces_of(ForcedEngine(base, tokens), max_tokens=count) == ["a"]
    assert pieces_of(ForcedEngine(base, tokens), max_tokens=5) == ["a", "\N{GRINNING FACE}"]


def test_special_tokens_of_a_text_are_not_printed(base: BasePack) -> None:
    engine = ForcedEngine(base, [*ids("x"), EOS, *ids("y")], eos_token_ids=(), tokens_after_text=())
    assert "".join(pieces_of(engine, "a", max_tokens=3)) == "xy"


def test_a_pack_that_a_generator_serves_is_not_changed(tmp_path: Path) -> None:
    pack = save_pack(DEFAULT, tmp_path / "pack")
    export_base(pack)
    before = {file.name: file.read_bytes() for file in pack.directory.iterdir()}
    "".join(generate(Engine(pack.directory, threads=1), "ab", Sampling(max_tokens=5)))
    assert {file.name: file.read_bytes() for file in pack.directory.iterdir()} == before
