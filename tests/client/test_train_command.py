"""`fedlora train` and `fedlora doctor`, as a person runs them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from fedlora.base.pack import BasePack
from fedlora.base.packing import make_pack
from fedlora.base.quantize import dequantize
from fedlora.errors import AdapterMismatchError, ConfigError, DataError, RunError
from fedlora.family import EMBEDDING
from fedlora.files.tensor_file import Dtype
from fedlora.lora.adapter import with_extras
from fedlora.peft.directory import read_peft, write_peft
from fedlora.peft.layout import saved_name
from fedlora_client.commands.doctor import doctor
from fedlora_client.commands.train import train
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.ops.compute import choose_compute
from fedlora_client.training.training import Training
from numpy.typing import NDArray

from tests.reference.agreement import assert_close
from tests.reference.oracles import read_by_peft
from tests.tiny.checkpoints import tiny_quantization
from tests.tiny.llamas import VARIANTS, Packs
from tests.tiny.tokens import random_tokens

LINES = "".join(f"line {number}: the quick brown fox jumps over the lazy dog\n" for number in range(60))
FLOAT32 = ("--set", "train.compute=float32")
Run = Callable[..., Result]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.txt"
    path.write_text(LINES)
    return path


@pytest.fixture
def run(base: BasePack, data: Path, tmp_path: Path) -> Run:
    """`fedlora train DATA -o adapter ...`; an error of ours is raised."""

    def run(*options: object, output: str = "adapter", source: Path = data, steps: int = 4) -> Result:
        words = [source, "-o", tmp_path / output, "--base", base.directory, "--lr", 0.01]
        words += ["--set", "train.sequence_length=32", "--set", "train.batch_size=4", *options]
        if "--adapter" not in options and "--full" not in options:
            words += ["--rank", 4]
        if "--epochs" not in options:
            words += ["--steps", steps]
        return CliRunner().invoke(train, [str(word) for word in words], catch_exceptions=False)

    return run


def test_what_is_trained_is_a_directory_that_peft_reads_with_the_same_logits(
    run: Run, base: BasePack, tmp_path: Path
) -> None:
    result = run(*FLOAT32)
    assert result.exit_code == 0
    assert result.stdout.strip() == str(tmp_path / "adapter")
    assert "held-out loss" in result.stderr
    found = read_peft(tmp_path / "adapter")
    assert found.base_fingerprint == base.fingerprint
    tokens = torch.from_numpy(random_tokens(base, 2, 12))
    decoder = Decoder(base, choose_compute("float32"))
    with torch.no_grad():
        expected = read_by_peft(base, tmp_path / "adapter")(tokens).logits
    assert_close(decoder.logits(tokens, decoder.lora(found.adapter)), expected)
    assert float((decoder.logits(tokens) - expected).abs().max()) > 0.01


def test_the_plan_is_told_before_the_first_step_and_then_speed_memory_and_loss(run: Run) -> None:
    told = run().stderr
    assert told.index("plan: ") < told.index("held-out loss before the first step") < told.index("step 1/4  loss")
    last = next(line for line in told.splitlines() if line.startswith("step 4/4"))
    assert "tokens/s" in last
    assert "MB" in last


def test_training_json_tells_what_was_done(run: Run, base: BasePack, tmp_path: Path) -> None:
    run("--evaluate-every", 2, "--set", "train.schedule=cosine")
    report = json.loads((tmp_path / "adapter" / "training.json").read_text())
    assert report["base"] == base.fingerprint
    assert report["train"]["schedule"] == "cosine"
    assert len(report["losses"]) == 4
    assert [step for step, _ in report["evaluations"]] == [0, 2, 4]
    assert report["evaluations"][-1][1] < report["evaluations"][0][1]


def test_epochs_count_the_windows_of_the_data(run: Run, tmp_path: Path) -> None:
    result = run("--epochs", 2)
    windows = int(next(line for line in result.stderr.splitlines() if " windows, " in line).split("; ")[1].split()[0])
    report = json.loads((tmp_path / "adapter" / "training.json").read_text())
    assert len(report["losses"]) == round(2 * windows / 4) > 10


def test_patience_ends_a_training_that_gets_no_better_and_keeps_the_best(run: Run, tmp_path: Path) -> None:
    # A learning rate that destroys the model: the base was the best.
    result = run("--evaluate-every", 1, "--patience", 2, "--set", "train.lr=0.9", steps=30)
    report = json.loads((tmp_path / "adapter" / "training.json").read_text())
    assert len(report["losses"]) == 2
    assert all(not pair.lora_B.any() for pair in read_peft(tmp_path / "adapter").adapter.pairs.values())
    assert "training made it no better" in result.stderr


def test_a_stopped_training_goes_on_with_resume_to_the_same_bits(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*FLOAT32, output="whole", steps=6)
    step = Training.run_step

    def stopping(self: Training) -> object:
        if self.step == 4:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Training, "run_step", stopping)
    with pytest.raises(RunError, match=r"stopped; --resume goes on"):
        run(*FLOAT32, "--save-every", 3, steps=6)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"\.adapter\.training: a training of this output was stopped; pass --resume"):
        run(*FLOAT32, steps=6)
    run(*FLOAT32, "--save-every", 3, "--resume", steps=6)
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "adapter")]
    assert files[0] == files[1]
    assert not (tmp_path / ".adapter.training").exists()
    with pytest.raises(ConfigError, match="--resume: there is no "):
        run(*FLOAT32, "--resume", output="other", steps=6)


def test_training_goes_on_from_an_adapter(run: Run, tmp_path: Path) -> None:
    run(*FLOAT32, output="first")
    run(*FLOAT32, "--adapter", tmp_path / "first", output="second")
    evaluations = [json.loads((tmp_path / n / "training.json").read_text())["evaluations"] for n in ("first", "second")]
    assert evaluations[1][0][1] == pytest.approx(evaluations[0][-1][1], abs=1e-6)


def test_an_adapter_of_another_base_is_refused(run: Run, tmp_path: Path) -> None:
    run(output="first")
    with pytest.raises(AdapterMismatchError, match=r"first: trained on the base \w{16}, not on \w{16}"):
        run("--base", "nano", "--adapter", tmp_path / "first", output="second")


def test_a_head_of_modules_to_save_trains_and_means_the_same_to_peft(run: Run, packs: Packs, tmp_path: Path) -> None:
    base = packs(VARIANTS["4-bit-symmetric-block64-4-bit-untied-head"])
    options = (*FLOAT32, "--base", base.directory)
    run(*options, "--set", "lora.modules_to_save=lm_head")
    found = read_peft(tmp_path / "adapter")
    _, head = found.saved_modules[saved_name("lm_head")]
    decoder = Decoder(base, choose_compute("float32"))
    tokens = torch.from_numpy(random_tokens(base, 2, 12))
    with torch.no_grad():
        expected = read_by_peft(base, tmp_path / "adapter")(tokens).logits
    got = decoder.logits(tokens, decoder.lora(with_extras(found.adapter, {"lm_head.weight": np.asarray(head)})))
    assert_close(got, expected)
    assert float((decoder.logits(tokens, decoder.lora(found.adapter)) - got).abs().max()) > 1e-3
    with pytest.raises(AdapterMismatchError, match=r"pass --set lora\.modules_to_save=lm_head"):
        run(*options, "--adapter", tmp_path / "adapter", output="second")
    run(*options, "--adapter", tmp_path / "adapter", "--set", "lora.modules_to_save=lm_head", output="third")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epochs", 1, "--steps", 3), "--steps and --epochs both"),
        (("--patience", 2), "say how often there is one, with --evaluate-every"),
        (("--set", "train.lrr=1"), "unknown key train.lrr; did you mean train.lr"),
        (("--set", "lora.rank_pattern=up_proj"), "lora.rank_pattern: expected MODULE=VALUE"),
        (("--set", "lora.rank_pattern=upproj=2"), "lora.rank_pattern: the base has no module upproj"),
        (("--set", "lora.modules_to_save=embed"), r"lora.modules_to_save takes auto or heads only \(lm_head, classifier"),
        (("--memory-mb", 10), r"a training takes at least \d+ MB"),
        (("--set", "train.sequence_length=65"), "the base's context is 64 tokens"),
        (("--full", "--resume"), "--full is a plain baseline"),
        (("--full", "--save-every", 3), "--full is a plain baseline: leave .*--save-every"),
        (("--full", "--memory-mb", 400), "train.memory_mb mean nothing to it"),
        (("--full", "--base", "nano"), "and nano is a base pack; give --base the directory of a Hugging Face checkpoint"),
        (("--set", "data.name=stdlib"), r"--set data\.name: one device alone takes lora\.\*, train\.\*, seed and"),
        (("--adapter", "x", "--set", "lora.alpha=3"), "lora.alpha: the adapter x has its own; leave it out"),
        (("--set", "train.device=mps"), "train.device must be cpu, cuda or auto"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_sentence_and_leaves_nothing(
    run: Run, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(*options)
    assert {path.name for path in tmp_path.iterdir()} == {"data.txt"}


def test_an_output_that_exists_is_replaced_only_with_force(run: Run, tmp_path: Path) -> None:
    run()
    before = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="adapter exists already; name another output, or pass --force"):
        run("--set", "seed=2")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == before
    run("--set", "seed=2", "--force")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "no text in 1 file"),
        ("latin.txt", b"caf\xe9\n", "not UTF-8 text: byte 3 is wrong"),
        ("gap.jsonl", b'{"text": "a"}\n{"prompt": "b"}\n', r"gap\.jsonl.*line 2"),
    ],
)
def test_data_that_cannot_be_used_is_refused_by_its_place(
    run: Run, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        run(source=tmp_path / name)


def test_examples_that_were_cut_are_told(run: Run, tmp_path: Path) -> None:
    records = [{"prompt": f"{number}: ", "completion": "long answer " * 9} for number in range(20)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    told = run(source=tmp_path / "long.jsonl").stderr
    assert "18 of 18 examples cut to 32 tokens; raise train.sequence_length" in told
    assert "left out:" not in told


def test_examples_without_a_token_of_their_answer_are_told(run: Run, tmp_path: Path) -> None:
    records = [{"prompt": "long " * 40 * (number % 3 == 0), "completion": "answer"} for number in range(1, 21)]
    (tmp_path / "late.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    told = run(source=tmp_path / "late.jsonl").stderr
    assert (
        "6 of 18 examples left out: no token of the answer is among the first 32; raise train.sequence_length" in told
    )


def test_data_that_no_adapter_of_this_size_can_hold_are_warned_of(run: Run, tmp_path: Path) -> None:
    (tmp_path / "much.txt").write_text(LINES * 40)
    assert "more than an adapter of" in run("--rank", 1, source=tmp_path / "much.txt").stderr
    assert "more than an adapter of" not in run("--rank", 1, output="little").stderr


def test_full_fine_tuning_writes_a_checkpoint_that_is_better_than_the_one_it_read(
    run: Run, base: BasePack, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    checkpoint = base.directory.with_name(f"{base.directory.name}-checkpoint")
    result = run("--full", "--base", checkpoint, steps=8)
    assert "parameters in float32, learning rate 0.01\n" in result.stderr
    after, before = result.stderr.split("held-out loss ")[1].split(" nats per token, before ")
    assert float(after) < float(before)
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    first = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    changed = [not torch.equal(a, b) for a, b in zip(trained.parameters(), first.parameters(), strict=True)]
    assert all(changed)


def test_doctor_tells_the_path_and_what_it_stands_on() -> None:
    result = CliRunner().invoke(doctor, [], catch_exceptions=False)
    assert result.exit_code == 0
    for word in ("training runs in", "kernels", "instruction set", "while they wait", "GFLOP/s", "memory", "GPU"):
        assert word in result.stdout


def test_an_output_that_cannot_be_written_is_refused_before_the_first_step(
    run: Run, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary").write_text("not an adapter")
    with pytest.raises(
        ConfigError, match=r"mine exists and holds no adapter_config\.json: only its own kind is replaced"
    ):
        run("--force", output="mine")
    with pytest.raises(ConfigError, match=r"cannot be written: .*data\.txt is no folder that may be written"):
        run(output=f"{data.name}/adapter")


def test_a_result_that_cannot_be_written_is_kept_in_the_state(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    run(*FLOAT32, output="whole")
    with monkeypatch.context() as patch:
        patch.setattr("fedlora_client.local_training.write_peft", full_disk)
        with pytest.raises(OSError, match="No space left"):
            run(*FLOAT32)
    run(*FLOAT32, "--resume")  # trains no step
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "adapter")]
    assert files[0] == files[1]


def test_held_out_examples_that_are_too_long_cost_the_measurement_and_no_more(run: Run, tmp_path: Path) -> None:
    records = [{"prompt": "a", "completion": "b"}] * 10 + [{"prompt": "long " * 20, "completion": "b"}]
    (tmp_path / "last.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    told = run(source=tmp_path / "last.jsonl").stderr
    assert "nothing is measured on held-out data" in told
    assert read_peft(tmp_path / "adapter").adapter.pairs


def test_a_json_file_is_not_taken_for_text(run: Run, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('{"a": "b", "c": [1]}')
    with pytest.raises(DataError, match=r"data\.json: an object with a, c; expected a list of objects"):
        run(source=tmp_path / "data.json")


def test_what_is_read_of_each_file_is_told_before_the_first_step(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    records = [{"text": f"a short one {number}", "id": number} for number in range(20)]
    (folder / "train.json").write_text(json.dumps(records))
    (folder / "LICENSE.txt").write_text("All rights reserved.\n" * 20)
    (folder / "plot.png").write_bytes(b"\x89PNG")
    told = run(source=folder).stderr
    assert "train.json: 18 examples to train on, 2 held out" in told
    assert "train.json: fields that are not learned: id" in told
    assert "LICENSE.txt: it is about the data, not data" in told
    assert "plot.png: neither text nor records" in told
    assert told.index("held out") < told.index("step 1")


def test_fields_that_are_called_otherwise_are_named_on_the_command_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "qa.csv").write_text("question,answer\n" + "two and two,four\n" * 10)
    with pytest.raises(
        DataError, match=r"qa\.csv: the first line must name the columns: .* got question, answer; .*data\.fields"
    ):
        run(source=tmp_path / "qa.csv")
    names = ("--set", "data.fields.prompt=question", "--set", "data.fields.completion=answer")
    assert "qa.csv: 9 examples to train on, 1 held out" in run(*names, source=tmp_path / "qa.csv").stderr


def test_full_fine_tuning_reads_chats_and_keeps_the_template(run: Run, base: BasePack, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(base.directory.with_name(f"{base.directory.name}-checkpoint"), checkpoint)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    (checkpoint / "chat_template.jinja").write_text(template)
    chat = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}]}
    (tmp_path / "chats.jsonl").write_text((json.dumps(chat) + "\n") * 12)
    run("--full", "--base", checkpoint, "--epochs", 1, source=tmp_path / "chats.jsonl")
    assert (tmp_path / "adapter" / "chat_template.jinja").read_text() == template


def test_an_adapter_of_peft_with_the_bases_own_embeddings_is_trained_further(
    run: Run, packs: Packs, tmp_path: Path
) -> None:
    base = packs(VARIANTS["4-bit-symmetric-block64-4-bit-untied-head"])
    run("--base", base.directory, output="first")
    content = read_peft(tmp_path / "first")
    own = {f"base_model.model.{module}.weight": dequantize(base.matrix(module)) for module in ("lm_head", EMBEDDING)}
    stored: dict[str, tuple[Dtype, NDArray[np.float32]]] = {name: ("F32", values) for name, values in own.items()}
    write_peft(tmp_path / "peft", replace(content, embeddings=stored))
    run("--base", base.directory, "--adapter", tmp_path / "peft", output="second")
    assert not read_peft(tmp_path / "second").beside
    name = f"base_model.model.{EMBEDDING}.weight"
    trained = replace(content, saved_modules={name: ("F32", own[name] + np.float32(0.1))})
    write_peft(tmp_path / "trained", trained)
    for options in ((), ("--set", "lora.modules_to_save=lm_head")):  # no option takes it, and none is named
        with pytest.raises(
            AdapterMismatchError, match=r"embed_tokens\.weight, which did train and cannot be trained fur"
        ):
            run("--base", base.directory, "--adapter", tmp_path / "trained", *options, output="third")


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (  # an end once, after the last answer
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% else %}{{ eos_token }}{% endif %}",
            "fields of messages: name",
        ),
        (  # a thought in the last answer alone
            "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"
            "{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
            "fields of messages: name",
        ),
        (  # of earlier answers the beginning
            "{% for m in messages %}<{{ m.role }}>{{ m.content if loop.last else m.content[:2] }}<end>{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}",
            "not learned: 11 answers in chats",
        ),
    ],
    ids=["ends-once", "thinks-last", "shortens"],
)
def test_chats_of_several_answers_are_learned_and_what_is_not_is_told(
    run: Run, base: BasePack, tmp_path: Path, template: str, told: str
) -> None:
    checkpoint, pack = tmp_path / "checkpoint", tmp_path / "pack"
    shutil.copytree(base.directory.with_name(f"{base.directory.name}-checkpoint"), checkpoint)
    (checkpoint / "chat_template.jinja").write_text(template)
    make_pack(str(checkpoint), pack, tiny_quantization())
    said = [("user", "Hi"), ("assistant", "Yo."), ("user", "How?"), ("assistant", "Well.")]
    messages = [{"role": role, "content": content, "name": "me"} for role, content in said]
    (tmp_path / "chats.jsonl").write_text((json.dumps({"messages": messages}) + "\n") * 12)
    result = run("--base", pack, "--set", "train.sequence_length=64", source=tmp_path / "chats.jsonl", steps=1)
    assert result.exit_code == 0
    assert told in result.stderr
    assert ("not learned" in result.stderr) == ("not learned" in told)
