"""What is learned of each device's data is told before a run, and stands in all that a run leaves."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from fedlora.config.run import DataConfig, LoraSection, RunConfig, ServerConfig, SimulationConfig, TrainConfig
from fedlora_client.data.account import Account
from fedlora_server.run.metrics_file import METRICS
from fedlora_server.run.round_record import RoundRecord
from fedlora_server.run.run_directory import loss_unit, read_metrics
from fedlora_simulations.device_accounts import DeviceAccount, data_accounts, tell_data
from fedlora_simulations.report import write_report
from fedlora_simulations.simulation import rounds_table, simulate
from rich.console import Console

from tests.client.encoder.test_training import records, written
from tests.simulations.reports.parsed import Page
from tests.simulations.reports.runs import record
from tests.simulations.reports.test_run_report import report_of
from tests.tiny.checkpoints import llama_config, tiny_pack, write_checkpoint
from tests.tiny.encoders import save_encoder_pack
from tests.tiny.tokenizer_kinds import write_tokenizer


def config_of(folder: Path, devices: int, *, base: str = "nano", length: int = 32) -> RunConfig:
    return RunConfig(
        base=base, output=str(folder / "run"), data=DataConfig(name="files", path=str(folder / "data")),
        lora=LoraSection(rank=2, alpha=4.0), server=ServerConfig(rounds=1), simulation=SimulationConfig(devices=devices),
        train=TrainConfig(steps=1, batch_size=2, sequence_length=length, compute="float32", kernels="off", device="cpu"),
    )  # fmt: skip


def pairs(count: int, prompt: int, completion: int) -> str:
    one = json.dumps({"prompt": "p " * prompt, "completion": "c " * completion, "id": 1}) + "\n"
    return one * count


@pytest.fixture(scope="module")
def told_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(the run, what it said): one device learns all, one has examples that do not fit, of one nothing is measured."""
    folder = tmp_path_factory.mktemp("told")
    data = folder / "data"
    (data / "bob").mkdir(parents=True)
    (data / "alice.jsonl").write_text(pairs(20, 2, 2))
    (data / "bob" / "train.jsonl").write_text(
        pairs(4, 2, 2) + pairs(3, 2, 90) + pairs(5, 90, 2) + '{"text": "x", "weight": 0}\n'
    )
    (data / "bob" / "valid.jsonl").write_text(pairs(2, 2, 2) + pairs(1, 90, 2))
    (data / "bob" / "LICENSE.txt").write_text("All rights reserved.\n")
    (data / "carol.jsonl").write_text(pairs(18, 2, 2) + pairs(2, 90, 2))
    out = io.StringIO()
    run = simulate(config_of(folder, 3), "in-process", 1, Console(file=out, width=200))
    Console(file=out, width=200).print(rounds_table(run))
    return run, out.getvalue()


def test_the_examples_of_each_device_and_file_are_told_before_the_first_round(told_run: tuple[Path, str]) -> None:
    told = told_run[1]
    rows = {line.split()[0]: line.split()[1:] for line in told.splitlines() if line.split()}
    assert rows["alice"] == ["18", "0", "0", "2", "0"]
    assert rows["bob"] == ["7", "3", "6", "2", "1"]
    assert rows["train.jsonl"] == ["7", "3", "6", "0", "0"]
    assert rows["valid.jsonl"] == ["0", "0", "0", "2", "1"]
    assert rows["all"] == ["3", "43", "3", "6", "4", "3"]
    for words in (
        "device bob: train.jsonl: 1 record left out", "device alice: alice.jsonl: fields that are not learned: id",
        "LICENSE.txt: it is about the data", "device carol: it will not be measured: held-out text: none of the 2 examples",
    ):  # fmt: skip
        assert words in told
    assert told.index("device carol: it will not") < told.index("rounds")


def test_the_metrics_hold_what_every_device_said_of_its_data(told_run: tuple[Path, str]) -> None:
    base, trained = read_metrics(told_run[0])
    assert trained["examples"] == {"alice": 18, "bob": 7, "carol": 18}
    assert trained["cut_examples"] == {"alice": 0, "bob": 3, "carol": 0}
    assert trained["left_out_examples"] == {"alice": 0, "bob": 6, "carol": 0}
    for measured in (base, trained):
        assert measured["held_out_examples"] == {"alice": 2, "bob": 2}
        assert measured["held_out_left_out"] == {"alice": 0, "bob": 1}
        assert measured["measured_of"] == 3


def test_a_mean_over_fewer_devices_is_marked_and_a_device_has_one_name(told_run: tuple[Path, str]) -> None:
    run, told = told_run
    assert "(2 of 3)" in told
    assert "device carol was not measured: held-out text: none of the 2 examples" in " ".join(told.split())
    page = (run / "report.html").read_text()
    assert page.count("(2 of 3)") == 2
    assert "carol" in Page(page).column("all-devices", "base"), "though it was never measured"
    for heading in ("examples trained on", "left out of these", "nats per token"):
        assert heading in page


def test_what_a_template_leaves_out_of_a_devices_chats_is_told(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", config=llama_config(vocab_size=512, max_position_embeddings=128))
    write_tokenizer("bytes, no processor", source)
    # Of an earlier answer it writes a letter, and none of its thoughts.
    (source / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role[0] }}: {{ m.content if loop.last else m.content.split('</think>')[-1][:1] }}\n"
        "{% endfor %}{% if add_generation_prompt %}a: {% endif %}"
    )
    pack = tiny_pack(tmp_path / "pack", source)
    said = ("user", "a"), ("assistant", "<think>b</think>cd"), ("user", "e"), ("assistant", "f")
    chat = {"messages": [{"role": role, "content": content} for role, content in said]}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ann.jsonl").write_text((json.dumps(chat) + "\n") * 20)
    [told] = data_accounts(config_of(tmp_path, 1, base=str(pack.directory), length=128))
    assert "not learned: 18 answers in chats" in told.notices[0]
    assert told.notices[1].endswith("fields of messages: thoughts in content")


def test_an_encoders_loss_is_per_text_wherever_it_is_told(tmp_path: Path) -> None:
    base = save_encoder_pack("bert", tmp_path / "pack")
    for device in range(2):
        (tmp_path / "data" / str(device)).mkdir(parents=True)
        written(tmp_path / "data" / str(device) / "notes.jsonl", records(30, seed=device))
    out = io.StringIO()
    console = Console(file=out, width=200)
    run = simulate(config_of(tmp_path, 2, base=str(base.directory), length=24), "in-process", 1, console)
    console.print(rounds_table(run))
    page = (run / "report.html").read_text()
    assert loss_unit(run) == "text"
    for told in (out.getvalue(), page):
        assert "nats per text" in told
        assert "per token" not in told


def test_a_run_of_an_earlier_version_has_its_report(tmp_path: Path) -> None:
    page = report_of(tmp_path, record(0, {"a": 3.0, "b": 2.0}), record(1, {"a": 2.5}))
    assert "nats per token" in page
    assert "examples trained on" not in page
    assert page.count("(1 of 2)") == 1
    assert "b" in Page(page).column("all-devices", "base")
    assert write_report(tmp_path).exists()


def test_what_a_round_took_on_each_device_is_in_the_record_and_the_report(told_run: tuple[Path, str]) -> None:
    run, _ = told_run
    costs = read_metrics(run)[1]["costs"]
    assert set(costs) == {"alice", "bob", "carol"}
    for told in costs.values():
        assert set(told) - {"joules"} == {
            "step_s", "step_cpu_s", "work_s", "download_s", "upload_s", "server_s", "rss_mb", "peak_mb", "bytes_down",
            "bytes_up",
        }  # fmt: skip
        assert 0 < told["step_s"] < told["work_s"]
        assert 0 < told["rss_mb"] <= told["peak_mb"] * 1.01
    assert sum(told["bytes_up"] for told in costs.values()) == read_metrics(run)[1]["bytes_up"]
    assert "What a round took on each device" in (run / "report.html").read_text(encoding="utf-8")


def test_one_client_who_never_trained_is_no_clients(tmp_path: Path) -> None:
    record = RoundRecord(0, loss={"a": 3.0}, never_trained_loss={"b": 2.5})
    (tmp_path / METRICS).write_text(json.dumps(record.line()) + "\n")
    assert str(rounds_table(tmp_path).caption).startswith("1 client who never trained: loss 2.5000 to 2.5000")


def test_examples_of_all_devices_without_a_token_of_their_answer_are_one_warning() -> None:
    out = io.StringIO()
    devices = [
        DeviceAccount(all=Account(name=name, train=4, left_out=3), without_answer=left_out, length=32)
        for name, left_out in (("a", 2), ("b", 0), ("c", 1))
    ]
    tell_data(devices, Console(file=out, width=80))
    told = [line for line in out.getvalue().splitlines() if line.startswith("warning:")]
    assert [line.partition(";")[0] for line in told] == [
        "warning: 3 of 15 examples left out: no token of the answer is among the first 32"
    ]
