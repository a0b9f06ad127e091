"""`fedlora report`: several runs on one page, and its files, read back by parsers."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from fedlora.config.run import RunConfig
from fedlora.errors import ConfigError
from fedlora_simulations.commands.report import report
from fedlora_simulations.reports.tables import DASH

from tests.simulations.reports.parsed import Page, pictures, tabular, texts
from tests.simulations.reports.runs import losses, record, write_run

SVD = {1: (4.0, 3.0, 2.0), 2: (4.0, 3.2, 2.1), 3: (4.0, 3.1, 2.4)}
FEDAVG = {1: (4.0, 3.5, 2.5), 2: (4.0, 3.3, 2.4), 3: (4.0, 3.4, 2.8)}


def said(*arguments: object) -> str:
    result = CliRunner().invoke(report, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [
        write_run(folder / f"{method}-{seed}", losses(*means), server__method=method, seed=seed)
        for method, of in (("svd", SVD), ("fedavg", FEDAVG))
        for seed, means in of.items()
    ]


@pytest.fixture(scope="module")
def written(runs: list[Path]) -> Path:
    output = runs[0].parent / "compared"
    told = said(*runs, "-o", output, "--figures", "svg,pdf,csv", "--tables", "latex,csv", "--level", "full & whole=1.5")
    files = [path for path in output.rglob("*") if path.is_file()]
    assert told == f"{output / 'report.html'}\n{len(files) - 1} files in {output / 'figures'} and {output / 'tables'}\n"
    return output


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page((written / "report.html").read_text(encoding="utf-8"))


def of_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_the_results_are_means_and_sample_deviations_over_the_seeds(page: Page) -> None:
    column = page.column("results", "held-out loss")
    for name, runs in (("svd", SVD), ("fedavg", FEDAVG)):
        ends = np.array([means[-1] for means in runs.values()])
        assert column[name] == f"{ends.mean():.3f} ± {ends.std(ddof=1):.3f}"
    assert column["base"] == "4.000"
    assert column["full & whole"] == "1.500"
    assert column["pooled"] == column["alone"] == f"{DASH} not measured"
    assert page.column("results", "seeds")["svd"] == "3"
    best = [values for tag, values in page.elements if tag == "td" and "best" in (values.get("class") or "")]
    assert len(best) >= 2, "of the results, and a difference that is clear"


def test_a_paired_difference_stands_with_its_interval(page: Page) -> None:
    stats = pytest.importorskip("scipy.stats")
    oracle = stats.ttest_rel([m[-1] for m in FEDAVG.values()], [m[-1] for m in SVD.values()])
    low, high = oracle.confidence_interval(0.95)
    [row] = page.tables["differences"][1:]
    assert row == ["fedavg", "held-out loss", "+0.400", f"{low:+.3f} to {high:+.3f}", f"{oracle.pvalue:.3f}", "3"]


def test_the_band_in_the_csv_is_numpys(written: Path) -> None:
    rows = of_csv(written / "figures" / "loss.csv")
    for name, runs in (("svd", SVD), ("fedavg", FEDAVG)):
        own = [row for row in rows if row["line"] == name]
        values = np.array(list(runs.values()))
        np.testing.assert_allclose([float(row["nats per token"]) for row in own], values.mean(0))
        deviation = values.std(0, ddof=1)
        np.testing.assert_allclose([float(row["low"]) for row in own], values.mean(0) - deviation)
        np.testing.assert_allclose([float(row["high"]) for row in own], values.mean(0) + deviation)
        assert [row["round"] for row in own] == ["0", "1", "2"]


def test_a_table_is_the_same_in_latex_and_csv_and_on_the_page(written: Path, page: Page) -> None:
    rows = tabular((written / "tables" / "results.tex").read_text())
    assert [len(row) for row in rows] == [len(row) for row in page.tables["results"]]
    by_name = {row[0]: row for row in rows[1:]}
    assert by_name["svd"][2] == r"\textbf{2.167 $\pm$ 0.208}"
    assert by_name[r"full \& whole"][2] == "1.500"
    [svd] = [row for row in of_csv(written / "tables" / "results.csv") if row[""] == "svd"]
    ends = np.array([means[-1] for means in SVD.values()])
    assert float(svd["held-out loss"]) == pytest.approx(ends.mean())
    assert float(svd["held-out loss, sd"]) == pytest.approx(ends.std(ddof=1))


def test_every_table_of_the_page_is_sound_latex_and_csv(written: Path, page: Page) -> None:
    assert {path.stem for path in (written / "tables").glob("*.tex")} == set(page.tables)
    for path in (written / "tables").glob("*.tex"):
        assert tabular(path.read_text())
        lines = list(csv.reader(io.StringIO(path.with_suffix(".csv").read_text())))
        assert len({len(line) for line in lines}) == 1


def test_every_picture_is_well_formed_and_has_its_title(written: Path, page: Page) -> None:
    files = sorted((written / "figures").glob("*.svg"))
    assert len(files) >= 6
    for path in files:
        picture = ElementTree.parse(path).getroot()
        assert picture.get("aria-label") in page.headings
        assert picture.get("aria-label") in texts(picture)
        assert path.with_suffix(".csv").read_text().count("\n") > 1


def test_every_pdf_can_be_read(written: Path) -> None:
    pypdf = pytest.importorskip("pypdf")
    files = sorted((written / "figures").glob("*.pdf"))
    assert [path.stem for path in files] == [path.stem for path in sorted((written / "figures").glob("*.svg"))]
    for path in files:
        [sheet] = pypdf.PdfReader(path).pages
        assert sheet.extract_text().strip()
    text = pypdf.PdfReader(written / "figures" / "loss.pdf").pages[0].extract_text()
    for word in ("Held-out loss", "svd", "fedavg", "nats per token", "round"):
        assert word in text


def test_two_methods_make_no_strip(written: Path) -> None:
    for name in ("final-loss", "difference-loss"):
        picture = ElementTree.parse(written / "figures" / f"{name}.svg").getroot()
        height = float(picture.attrib["height"].removesuffix("pt"))
        assert height > 120


@pytest.mark.usefixtures("drawn_anew")
def test_the_same_report_has_the_same_bytes(runs: list[Path], written: Path) -> None:
    again = written.with_name("again")
    said(*runs, "-o", again, "--figures", "svg,pdf,csv", "--tables", "latex,csv", "--level", "full & whole=1.5")
    for path in (path for path in written.rglob("*") if path.is_file()):
        assert (again / path.relative_to(written)).read_bytes() == path.read_bytes(), path


def test_another_group_can_be_what_the_others_are_held_against(runs: list[Path], tmp_path: Path) -> None:
    said(*runs, "-o", tmp_path / "x.html", "--against", "fedavg")
    page = Page((tmp_path / "x.html").read_text())
    assert page.tables["differences"][1][:3] == ["svd", "held-out loss", "-0.400"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.html"]


def test_what_differs_and_what_is_shared_stand_in_two_tables(page: Page) -> None:
    assert page.tables["differs"] == [
        ["", "svd", "fedavg"], ["server.method", "svd", "fedavg"], ["seeds", "1, 2, 3", "1, 2, 3"],
    ]  # fmt: skip
    shared = page.column("configuration", "value")
    assert shared["train.lr"] == str(RunConfig().train.lr)
    assert not {"server.method", "seed", "output"} & set(shared)


def test_runs_of_two_bases_are_compared_and_it_is_said(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, losses(4.0, 3.0), base=name * 64) for name in "ab"]
    result = CliRunner().invoke(report, [*map(str, paths), "-o", str(tmp_path / "x.html")], catch_exceptions=False)
    assert "of different models" in result.stderr
    page = Page((tmp_path / "x.html").read_text())
    assert "differences" not in page.tables
    assert page.column("differs", "svd (a)")["fingerprint of the base"] == "a" * 16
    assert "2 bases" in (tmp_path / "x.html").read_text()


def test_a_directory_named_twice_counts_once(runs: list[Path], tmp_path: Path) -> None:
    said(runs[0], runs[0], runs[3], "-o", tmp_path / "x.html")
    assert Page((tmp_path / "x.html").read_text()).column("results", "seeds")["svd"] == "1"


def test_with_one_seed_there_is_a_difference_and_no_interval(runs: list[Path], tmp_path: Path) -> None:
    said(runs[0], runs[3], "-o", tmp_path / "x.html")
    [row] = Page((tmp_path / "x.html").read_text()).tables["differences"][1:]
    assert row == ["fedavg", "held-out loss", "+0.500", f"{DASH} one pair", DASH, "1"]


def test_a_device_that_would_be_a_formula_is_none_in_a_spreadsheet(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [record(n, {"=1+1": 2.0, "-x": 1.0, "b": 1.5}) for n in range(2)])
    said(run, "-o", tmp_path / "out", "--tables", "csv")
    names = [row["device"] for row in of_csv(tmp_path / "out" / "tables" / "all-devices.csv")]
    assert names == ["'-x", "'=1+1", "b"]
    change = {row["device"]: row["change"] for row in of_csv(tmp_path / "out" / "tables" / "all-devices.csv")}
    assert set(change.values()) == {"0.0"}


def test_one_run_has_its_page_in_its_directory(runs: list[Path]) -> None:
    assert said(runs[0]) == f"{runs[0] / 'report.html'}\n"
    assert "Held-out loss" in Page((runs[0] / "report.html").read_text()).headings


def test_a_page_of_every_kind_has_pictures_that_are_xml(written: Path) -> None:
    found = pictures((written / "report.html").read_text())
    assert len(found) > 10
    for picture in found:
        for text in texts(picture):
            assert text == text.strip()


WRONG = [
    (["nowhere"], "nowhere: there is no such file or folder"),
    (["RUN", "RUN2"], "-o is missing; of several runs, name a folder or a file"),
    (["RUN", "-o", "x.html", "--figures", "svg"], "a page alone has no room for files of svg; name a folder"),
    (["RUN", "-o", "FILE"], "a file lies there; name a folder"),
    (["RUN", "--figures", "sgv"], "--figures sgv: did you mean svg"),
    (["RUN", "--tables", "word"], "--tables word: known kinds: latex, csv"),
    (["RUN", "--against", "svt"], "--against svt: there is no such group; did you mean svd"),
    (["RUN", "--level", "full"], "--level full: expected NAME=LOSS"),
    (["RUN", "--level", "full=nan"], "--level full=nan: expected NAME=LOSS"),
    (["EMPTY"], "holds no run: it has no config.json"),
]


@pytest.mark.parametrize(("words", "told"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_what_cannot_be_done_is_one_clear_error(runs: list[Path], tmp_path: Path, words: list[str], told: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    places = {"RUN": runs[0], "RUN2": runs[1], "EMPTY": tmp_path / "empty", "FILE": tmp_path / "file"}
    with pytest.raises(ConfigError, match=told):
        CliRunner().invoke(report, [str(places.get(word, word)) for word in words], catch_exceptions=False)
