"""The report of one run is made from what it left on disk, whatever names its devices give themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fedlora.errors import ConfigError, RunError
from fedlora.files.lock_file import hold
from fedlora_simulations.partition import Partition
from fedlora_simulations.report import write_report
from fedlora_simulations.reports.tables import DASH

from tests.simulations.reports.parsed import Page, pictures, texts
from tests.simulations.reports.runs import record, write_run


def report_of(run: Path, *records: dict[str, Any], **keys: Any) -> str:
    return write_report(write_run(run, records, **keys)).read_text(encoding="utf-8")


def test_the_report_shows_the_numbers_of_every_round_and_device(tmp_path: Path) -> None:
    text = report_of(tmp_path, record(0, {"a": 3.0, "b": 4.0}), record(1, {"a": 2.5, "b": 2.0}))
    page = Page(text)
    assert page.open == [], "every element is closed"
    assert page.headings[0] == "kitchen"
    assert page.column("rounds", "loss, nats per token") == {"0": "3.5000", "1": "2.2500"}
    assert page.column("rounds", "answers") == {"0": "base", "1": "2 of 2"}
    assert page.column("rounds", "error") == {"0": DASH, "1": "25.00%"}
    assert page.column("rounds", "down, MB")["1"] == "2.00"
    assert page.column("all-devices", "change") == {"a": "-0.5000", "b": "-2.0000"}
    assert page.column("results", "held-out loss")["base"] == "3.500"
    assert page.column("results", "held-out loss")["svd"] == "2.250"
    assert page.column("results", "aggregation error")["svd"] == "25.0%"


def test_what_was_not_measured_has_a_dash_and_the_word(tmp_path: Path) -> None:
    column = Page(report_of(tmp_path, record(0, {"a": 3.0}), record(1, {"a": 2.5}))).column("results", "held-out loss")
    assert {name: column[name] for name in ("alone", "pooled", "full fine-tuning")} == dict.fromkeys(
        ("alone", "pooled", "full fine-tuning"), f"{DASH} not measured"
    )


@pytest.mark.parametrize("count", [1, 10, 70])
def test_the_report_names_every_device_however_many_there_are(tmp_path: Path, count: int) -> None:
    losses = {f"device-{number}": 1.0 + number for number in range(count)}
    page = Page(report_of(tmp_path, record(0, losses), record(1, losses)))
    assert set(page.column("all-devices", "base")) == set(losses)
    [row] = page.tables["devices"][1:]
    picked = [name.partition(" (")[0] for name in row[2:5]]
    assert picked == ["device-0", f"device-{(count - 1) // 2}", f"device-{count - 1}"]


NAMES = [
    "<script>alert(1)</script>", "a & b", '"quoted"', "$x$", "$\\frac$", "_hidden", "ünïcode", "{{ config }}", " ", "🦊",
    "\x00\x1b[2J", "</svg><b>", "style=\"fill:#0f766e\"", "<!-- x -->",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_report_shows_whatever_name_a_device_gives_itself_as_text(tmp_path: Path, name: str) -> None:
    write_run(tmp_path, [record(0, {name: 3.0}), record(1, {name: 2.5})])
    Partition(devices={name: {name: 3, "other": 2}}).write(tmp_path)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert not {"script", "b", "iframe"} & {tag for tag, _ in page.elements if tag != "b"}
    assert "-0.5000" in page.column("all-devices", "change").values()
    found = pictures(text)  # which raises where one is not XML
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
    assert any(shown.strip() in told for picture in found for told in texts(picture))
    assert any(shown.strip() == row[0].strip() for row in page.tables["all-devices"][1:])


def test_the_page_runs_and_loads_nothing(tmp_path: Path) -> None:
    text = report_of(tmp_path, record(0, {"a": 3.0}), record(1, {"a": 2.5}))
    page = Page(text)
    policies = [values["content"] for tag, values in page.elements if values.get("http-equiv")]
    assert policies == [
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    ]
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.elements}
    for _, values in page.elements:
        assert not [name for name in values if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert (values.get(name) or "#").startswith("#"), "within the page"
    assert not re.search(r"@import|url\((?!#)", text)


def test_a_report_has_no_identity_twice(tmp_path: Path) -> None:
    page = Page(report_of(tmp_path, record(0, {"a": 3.0}), record(1, {"a": 2.5})))
    named = [values["id"] for _, values in page.elements if values.get("id")]
    assert len(named) == len(set(named))


def test_the_report_of_a_run_without_evaluation_has_its_other_pictures(tmp_path: Path) -> None:
    page = Page(report_of(tmp_path, record(0, {}), record(1, {})))
    assert {"Bytes", "Seconds", "Aggregation error"} <= set(page.headings)
    assert "Held-out loss" not in page.headings
    assert page.column("rounds", "loss, nats per token") == {"0": DASH, "1": DASH}


def test_the_report_leaves_out_the_picture_of_an_error_that_was_not_measured(tmp_path: Path) -> None:
    page = Page(report_of(tmp_path, record(0, {"a": 1.0}), record(1, {"a": 1.0}, aggregation_error=None)))
    assert "Aggregation error" not in page.headings


def test_accuracy_stands_beside_the_loss(tmp_path: Path) -> None:
    scores = {"accuracy": 0.5, "macro_f1": 0.4, "mcc": 0.1}
    lines = [
        record(number, {"a": 2.0, "b": 3.0}, accuracy={"a": 0.25 + number / 4, "b": 0.5}, scores=scores,
               test={"loss": 2.5, "tokens": 50, "devices": 2, **scores, "accuracy": 0.6 + number / 10})
        for number in range(2)
    ]  # fmt: skip
    page = Page(report_of(tmp_path, *lines))
    places = [page.headings.index(heading) for heading in ("Held-out loss", "Test set: accuracy")]
    assert places[1] == places[0] + 1
    assert page.column("results", "test set: accuracy")["svd"] == "70.0%"
    assert page.column("results", "test set: accuracy")["base"] == "60.0%"
    assert page.column("rounds", "accuracy, test")["1"] == "70.0%"
    assert page.column("all-devices", "accuracy") == {"a": "50.0%", "b": "50.0%"}


def test_the_report_counts_who_was_left_out_over_all_rounds(tmp_path: Path) -> None:
    page = report_of(
        tmp_path,
        record(0, {"a": 1.0}),
        record(1, {"a": 1.0}, excluded={"not-finite": 2}),
        record(2, {"a": 1.0}, excluded={"not-finite": 1, "no-answer": 4}),
    )
    assert "4 \N{MULTIPLICATION SIGN} no-answer, 3 \N{MULTIPLICATION SIGN} not-finite" in page


@pytest.mark.usefixtures("drawn_anew")
def test_the_same_metrics_give_the_same_report(tmp_path: Path) -> None:
    records = record(0, {"a": 1.0}), record(1, {"a": 0.5})
    one, two = (report_of(tmp_path / folder / "run", *records) for folder in ("one", "two"))
    assert one == two


def test_the_report_tells_what_a_round_took_on_each_device(tmp_path: Path) -> None:
    rounds = [
        record(1, {}, costs={"a": {"step_s": 0.25, "bytes_up": 1000}, "b": {"step_s": 2.0}}),
        record(2, {}, costs={}),
    ]
    page = Page(report_of(tmp_path / "told", record(0, {}), *rounds))
    assert page.column("costs", "local step, s") == {"a": "0.250", "b": "2.000"}
    assert page.column("costs", "bytes up") == {"a": "1000", "b": DASH}
    assert "energy, J" not in page.tables["costs"][0]
    assert "costs" not in Page(report_of(tmp_path / "silent", record(0, {}), record(1, {}))).tables


def test_groups_of_numbers_that_this_version_does_not_know_are_shown(tmp_path: Path) -> None:
    lines = [
        record(number, {"a": 2.0, "b": 1.0}, unseen={"loss": 3.0 - number, "accuracy": 0.5, "tokens": 90, "note": "x"},
               unseen_loss={"a": 1.0, "b": 3.0}, patience=number, deep={"x": {"y": 1}}, words="<b>", nothing=None)
        for number in range(2)
    ]  # fmt: skip
    page = Page(report_of(tmp_path, *lines))
    assert page.column("more", "after the last round") == {
        "unseen: loss": "2.000", "unseen: accuracy": "50.0%", "unseen loss: mean": "2.000", "unseen loss: least": "1.000",
        "unseen loss: most": "3.000", "patience": "1.000",
    }  # fmt: skip
    assert page.column("more", "base")["unseen: loss"] == "3.000"
    assert "Unseen: loss" in page.headings


def test_what_each_device_reached_alone_is_a_row(tmp_path: Path) -> None:
    write_run(tmp_path, [record(0, {"a": 3.0, "b": 4.0}), record(1, {"a": 2.5, "b": 2.0})])
    (tmp_path / "baselines.json").write_text('{"alone": {"a": 2.0, "b": 3.0}}')
    assert Page(write_report(tmp_path).read_text()).column("results", "held-out loss")["alone"] == "2.500"
    (tmp_path / "baselines.json").write_text('{"alone": {"a": "2.0"}}')
    with pytest.raises(RunError, match=r"baselines\.json: alone is .*; expected a loss by device"):
        write_report(tmp_path)


def test_versions_are_told_and_a_changed_file_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, [record(0, {"a": 3.0}), record(1, {"a": 2.5})])
    (tmp_path / "environment.json").write_text('{"torch": "9.9", "python": "3.12.1"}')
    assert Page(write_report(tmp_path).read_text()).column("versions", "version") == {
        "torch": "9.9",
        "python": "3.12.1",
    }
    (tmp_path / "environment.json").write_text('{"torch": 9}')
    with pytest.raises(RunError, match=r"environment\.json: expected names and versions"):
        write_report(tmp_path)


def test_a_run_that_is_at_work_or_was_stopped_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [record(0, {"a": 3.0}), record(1, {"a": 2.5})], server__rounds=8)
    assert "run: stopped after round 1 of 8" in write_report(run).read_text()
    with hold(run / "lock"):
        assert "run: still running after round 1 of 8" in write_report(run).read_text()


def test_rounds_that_are_missing_are_told_and_not_invented(tmp_path: Path) -> None:
    text = report_of(tmp_path / "run", *(record(number, {"a": 1.0}) for number in (0, 1, 4, 6)))
    assert "run: no line of rounds 2 to 3, 5 in metrics.jsonl" in text
    assert list(Page(text).column("rounds", "answers")) == ["0", "1", "4", "6"]


def test_a_run_cut_anywhere_in_its_metrics_has_a_report_or_one_clear_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [record(0, {"a": 3.0}), record(1, {"a": 2.5})])
    content = (run / "metrics.jsonl").read_bytes()
    first = content.index(b"\n") + 1
    for length in (0, 1, first - 1, first, first + 40, len(content) - 1):
        (run / "metrics.jsonl").write_bytes(content[:length])
        if length < first:
            with pytest.raises(ConfigError, match=r"run: no round has a line in metrics\.jsonl yet; wait"):
                write_report(run)
        else:
            assert "stopped after round 0 of 1" in write_report(run).read_text()


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", '"3"', "true", "1" + "0" * 400])
def test_a_loss_that_is_no_number_is_one_clear_error(tmp_path: Path, value: str) -> None:
    run = write_run(tmp_path, [record(0, {"a": 3.0}), record(1, {"a": 12345.0})])
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text.replace("12345.0", value))
    with pytest.raises(RunError, match=r"metrics\.jsonl: line 2: loss is .*; the file was changed: copy the run again"):
        write_report(run)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", None, "holds no run: it has no config.json; name the directory of a run"),
        ("config.json", "{", r"config\.json: not JSON"),
        ("config.json", '{"server.rounds": "many"}', r"server\.rounds must be of type int"),
        ("metrics.jsonl", None, r"no round has a line in metrics\.jsonl yet"),
        ("partition.json", "[]", r"partition\.json: expected a JSON object"),
    ],
)
def test_what_is_wrong_with_a_directory_is_one_clear_error(
    tmp_path: Path, name: str, content: str | None, told: str
) -> None:
    run = write_run(tmp_path, [record(0, {"a": 3.0})])
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    with pytest.raises((ConfigError, RunError), match=told):
        write_report(run)


def test_keys_of_a_later_version_are_shown_and_hinder_nothing(tmp_path: Path) -> None:
    text = report_of(tmp_path, record(0, {"a": 3.0}), record(1, {"a": 2.0}), train__shiny="<b>yes")
    assert Page(text).column("configuration", "value")["train.shiny"] == "<b>yes"
