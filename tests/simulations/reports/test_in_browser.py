"""A report in Chromium, on a phone and on a wide screen, light and dark. Run by `make page`; pictures in build/page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from fedlora_simulations.commands.report import report
from fedlora_simulations.partition import Partition
from playwright.sync_api import Browser, sync_playwright

from tests.simulations.reports.runs import losses, write_run

pytestmark = pytest.mark.browser

SHOTS = Path(__file__).resolve().parents[3] / "build" / "page"
WIDTHS = {"phone": 380, "tablet": 820, "wide": 1600}
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
LINE = "getComputedStyle(document.querySelector('figure svg path[style*=series-0]')).{}"
# What sticks out of the card that it is in, unless that can be scrolled to.
OUTSIDE = """[...document.querySelectorAll('.card *')].filter(each => {
  const card = each.closest('.card').getBoundingClientRect(), own = each.getBoundingClientRect();
  return own.width && !each.closest('.scroll, clipPath, defs') && (own.left < card.left - 1 || own.right > card.right + 1);
}).map(each => each.outerHTML.slice(0, 120))"""
# Texts of pictures by the size that they are shown in.
SMALLEST = """Math.min(...[...document.querySelectorAll('figure svg text')].filter(each => each.getClientRects().length)
  .map(each => parseFloat(getComputedStyle(each).fontSize) * Math.hypot(each.getScreenCTM().a, each.getScreenCTM().b)))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or os.environ.get("CHROMIUM")
    if not found:
        pytest.fail("no chromium: install it (`make page` does), or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    runs = []
    for method in ("svd", "a-method-of-a-long-name"):
        for seed in (1, 2, 3):
            means = [4.0 - 0.3 * n * (1 + 0.1 * seed) for n in range(6)]
            run = write_run(folder / f"{method}-{seed}", losses(*means), server__method=method, seed=seed)
            devices = {
                f"device {n} of a long name, as names of people are": {"news": n + 1, "sport": 3} for n in range(12)
            }
            Partition(devices=devices, test=9).write(run)
            runs.append(str(run))
    output = folder / "report.html"
    assert CliRunner().invoke(report, [*runs, "-o", str(output)]).exit_code == 0
    return output


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", WIDTHS)
def test_a_report_fits_its_screen_and_can_be_read(browser: Browser, page: Path, screen: str, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": WIDTHS[screen], "height": 900}, color_scheme="dark" if scheme == "dark" else "light"
    )
    shown, told = context.new_page(), list[str]()
    shown.on("console", lambda message: told.append(message.text))
    shown.on("request", lambda request: told.append(request.url))
    shown.goto(page.as_uri())
    assert told == [page.as_uri()], "nothing else is asked for, and nothing complains"
    width, room = shown.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width <= room, "nobody has to scroll sideways"
    assert shown.evaluate(OUTSIDE) == []
    assert shown.evaluate(SMALLEST) >= 9
    dark = scheme == "dark"
    assert shown.evaluate(BACKGROUND) == ("rgb(16, 20, 23)" if dark else "rgb(246, 247, 248)")
    assert shown.evaluate(LINE.format("stroke")) in (
        ("rgb(45, 212, 191)", "none") if dark else ("rgb(15, 118, 110)", "none")
    )
    columns = shown.evaluate("new Set([...document.querySelectorAll('.small > *')].map(e => e.offsetLeft)).size")
    assert columns == {"phone": 1, "tablet": 2, "wide": 4}[screen]
    SHOTS.mkdir(parents=True, exist_ok=True)
    shown.screenshot(path=str(SHOTS / f"report-{screen}-{scheme}.png"), full_page=True)
    context.close()
