"""The page in a browser: Chromium, as a person with a mouse, a phone or a keyboard uses it. Run by `make page`."""

# Screenshots lie in build/page.

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fedlora.base.pack import BasePack
from fedlora.identity.keys import SigningKey
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora_serve.adapters.signed import SignedNames
from fedlora_serve.adapters.store import AdapterStore
from fedlora_serve.http.access.keys import ApiKey, Keys, key_digest
from fedlora_serve.http.generation import event_stream as sse
from fedlora_serve.http.service.adapter_folder import AdapterFolder
from fedlora_serve.http.service.metrics import Metrics
from fedlora_serve.http.service.state import ServiceState
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.serve.http.fake_engine import FakeEngine, endless, words
from tests.serve.http.own_server import served
from tests.serve.http.services import service
from tests.tiny.adapters import random_adapter
from tests.tiny.releases import write_release

pytestmark = pytest.mark.browser

ADMIN, WEB = "admin-key-0123456789", "web-key-0123456789"
SHOTS = Path(__file__).resolve().parents[3] / "build" / "page"
TEXT = (
    "Federated learning trains a model where the data lives. Each device computes an update from its own examples and "
    "sends the update, not the examples. The server averages what arrives and sends the result back."
)
WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 320, "height": 640}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or os.environ.get("CHROMIUM")
    if not found:
        pytest.fail("no chromium: install it (`make page` does), or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(words(TEXT, speaker=True), pause_s=0.01, max_tokens=2048)


@pytest.fixture
def state(base: BasePack, engine: FakeEngine, tmp_path: Path) -> ServiceState:
    """A service with two adapters, a third to load, and an admin key."""
    state = service(base, engine, limits={"shutdown_timeout_s": 1, "unload_timeout_s": 1})
    state.base_name = "smollm2-135m"
    state.metrics = Metrics(state.base_name)
    state.store = AdapterStore(base, budget_bytes=8 << 20)
    for seed, name in enumerate(("support-tone", "legal/summaries", "team/billing-v2"), 1):
        content = PeftDirectory(adapter=random_adapter(base, seed=seed), base_fingerprint=base.fingerprint)
        write_peft(tmp_path / "adapters" / name, content)
    state.adapter_folder = AdapterFolder(tmp_path / "adapters")
    for name in ("support-tone", "legal/summaries"):
        state.store.load(name, tmp_path / "adapters" / name, pin=name == "support-tone")
    state.keys = Keys(admin=key_digest(ADMIN))
    return state


@pytest.fixture
def visit(browser: Browser, state: ServiceState) -> Iterator[Callable[..., Page]]:
    """Open the page; at the end nothing may have gone wrong in the browser, but for the refusals that a test expects."""
    contexts, problems, awaited = list[BrowserContext](), list[str](), list[str]()
    with served(state) as (host, port):

        def visit(viewport: Any = WIDE, expected: tuple[str, ...] = (), **options: Any) -> Page:
            awaited.extend(expected)
            context = browser.new_context(viewport=viewport, **options)
            contexts.append(context)
            page = context.new_page()
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
            page.on(
                "request", lambda request: problems.extend([request.url] * (f"//{host}:{port}/" not in request.url))
            )
            page.goto(f"http://{host}:{port}/")
            expect(page.locator("#base:not(:empty), #page-error:not(:empty)")).to_have_count(1)
            return page

        yield visit
        for context in contexts:
            context.close()
    left = [problem for problem in problems if not any(word in problem for word in awaited)]
    assert left == []


def test_an_adapter_that_is_a_signed_release_has_a_mark(
    visit: Callable[..., Page], state: ServiceState, base: BasePack, tmp_path: Path
) -> None:
    key = SigningKey.generate()
    write_release(tmp_path / "release", base, key, name="tone", version=7)
    state.store = AdapterStore(base, budget_bytes=8 << 20, signed=SignedNames([("tone", key.public)]))
    state.store.load("tone", tmp_path / "release")
    state.store.load("support-tone", tmp_path / "adapters" / "support-tone")
    for name, viewport in (("signed", WIDE), ("signed-phone", PHONE)):
        page = visit(viewport)
        rows = page.locator("#adapters tr")
        mark = rows.filter(has_text="signed 7")
        expect(mark).to_have_count(1)
        expect(mark.locator(".name")).to_have_text("tone")
        expect(mark.get_by_title(f"Release tone 7, signed by {key.public.keyid}")).to_have_count(1)
        expect(rows).to_have_count(2)
        shot(page, name)


def shot(page: Page, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def use_keys(page: Page, *, admin: str = "", api: str = "") -> None:
    if page.locator("#keys").get_attribute("open") is None:
        page.get_by_text("Keys", exact=True).click()
    if admin:
        page.get_by_label("Admin key").fill(admin)
    if api:
        page.get_by_label("API key").fill(api)
    page.get_by_role("button", name="Use these keys").click()


def generate(page: Page) -> None:
    page.get_by_label("Prompt").fill("What is federated learning?")
    page.get_by_role("button", name="Generate").click()


def ended(page: Page) -> None:
    expect(page.get_by_role("button", name="Generate")).to_be_enabled(timeout=20_000)


def no_wider_than_its_window(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


def test_the_base_and_two_adapters_answer_side_by_side(visit: Callable[..., Page], engine: FakeEngine) -> None:
    page = visit()
    generate(page)
    answers = page.locator(".answer .text")
    for place in range(3):
        expect(answers.nth(place)).not_to_be_empty()
    assert engine.running == 3  # all of them are still at it
    shot(page, "streaming-light")
    ended(page)
    for place, speaker in enumerate(("base", "legal/summaries", "support-tone")):
        expect(answers.nth(place)).to_have_text(f"{speaker}: {TEXT}")
        expect(page.locator(".figures").nth(place)).to_contain_text(f"{1 + len(TEXT.split())} tokens")
    shot(page, "compare-light")


def test_the_prompt_is_a_question_or_a_beginning_as_the_mode_says(
    visit: Callable[..., Page], state: ServiceState
) -> None:
    page = visit()
    prompt = page.get_by_label("Prompt")
    expect(prompt).to_have_attribute("placeholder", "What should each of them answer?")
    page.locator("#mode").select_option("Complete")
    expect(prompt).to_have_attribute("placeholder", "A text that each of them goes on from")
    state.template = None  # a base that does not chat
    page.reload()
    expect(prompt).to_have_attribute("placeholder", "A text that each of them goes on from")


def test_stop_ends_all_answers_here_and_in_the_service(visit: Callable[..., Page], engine: FakeEngine) -> None:
    engine.script = endless()
    page = visit()
    generate(page)
    expect(page.locator(".answer .text").nth(2)).to_contain_text("again again")
    page.get_by_role("button", name="Stop").click()
    ended(page)
    expect(page.locator(".figures").first).to_contain_text("stopped")
    page.wait_for_function("() => true")
    for _ in range(100):
        if not engine.running:
            break
        page.wait_for_timeout(20)
    assert len(engine.cancelled) == 3


def test_the_holder_of_the_admin_key_loads_pins_and_unloads(visit: Callable[..., Page], state: ServiceState) -> None:
    page = visit(expected=("status of 404",))
    expect(page.get_by_role("button", name="Load", exact=True)).to_be_hidden()
    use_keys(page, admin=ADMIN)
    page.get_by_label("Name", exact=True).fill("billing")
    page.get_by_label("Path in the adapter folder").fill("team/none")
    page.get_by_role("button", name="Load", exact=True).click()
    expect(page.locator("#admin-error")).to_contain_text("expected an .onnx_adapter file")
    shot(page, "load-error-light")
    page.get_by_label("Path in the adapter folder").fill("team/billing-v2")
    page.get_by_role("button", name="Load", exact=True).click()
    expect(page.locator("#admin-status")).to_have_text("billing is loaded.")
    expect(page.locator("#admin-error")).to_be_empty()
    expect(page.get_by_role("row").filter(has_text="team/billing-v2")).to_contain_text("billing")
    expect(page.locator(".answer select").first.locator("option")).to_have_count(5)
    page.get_by_role("button", name="Pin billing").click()
    expect(page.get_by_role("row").filter(has_text="team/billing-v2")).to_contain_text("pinned")
    shot(page, "admin-light")
    page.get_by_role("button", name="Unload billing").click()
    expect(page.locator("#admin-status")).to_have_text("billing is unloaded.")
    expect(page.locator("#adapters tr")).to_have_count(2)
    assert state.store.stats().loaded == 2


def test_a_wrong_admin_key_is_told_where_it_was_used(visit: Callable[..., Page]) -> None:
    page = visit(expected=("status of 401",))
    use_keys(page, admin="not-the-admin-key-01")
    page.get_by_role("button", name="Unload support-tone").click()
    expect(page.locator("#admin-error")).to_contain_text("this is not the admin key")
    expect(page.locator("#adapters tr")).to_have_count(2)


def test_a_service_with_keys_asks_for_one_and_shows_what_it_is_good_for(
    visit: Callable[..., Page], state: ServiceState
) -> None:
    state.keys = Keys(
        [ApiKey(name="web", digest=key_digest(WEB), models=("smol*", "legal/*"))], admin=key_digest(ADMIN)
    )
    page = visit(expected=("status of 401",))
    expect(page.locator("#page-error")).to_contain_text("This service needs a key")
    expect(page.get_by_label("API key")).to_be_visible()
    shot(page, "key-needed-light")
    use_keys(page, api="wrong key")
    expect(page.locator("#key-error")).to_contain_text("without spaces")
    use_keys(page, api="not-a-key-of-it-0123")
    expect(page.locator("#page-error")).to_contain_text("this key is not known")
    use_keys(page, api=WEB)
    expect(page.locator("#page-error")).to_be_empty()
    expect(page.locator("#adapters tr")).to_have_count(1)
    generate(page)
    ended(page)
    expect(page.locator(".answer .text").nth(1)).to_contain_text("legal/summaries:")
    page.reload()
    expect(page.locator("#adapters tr")).to_have_count(1)  # the tab has kept the key


def test_what_a_model_cannot_do_is_told_in_its_place(visit: Callable[..., Page], engine: FakeEngine) -> None:
    engine.max_tokens = 4
    page = visit(expected=("status of 400",))
    generate(page)
    ended(page)
    for place in range(3):
        expect(page.locator(".answer .error").nth(place)).not_to_be_empty()


def test_an_answer_that_lets_one_wait_comes_all_the_same(
    visit: Callable[..., Page], engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "QUIET_S", 0.02)  # comments come between the pieces
    engine.script, engine.pause_s = words("late but whole"), 0.2
    page = visit()
    generate(page)
    ended(page)
    for answer in page.locator(".answer").all():
        expect(answer.locator(".text")).to_have_text("late but whole")
        expect(answer.locator(".error")).to_be_empty()


def test_a_service_that_is_gone_is_told(visit: Callable[..., Page]) -> None:
    page = visit(expected=("ERR_CONNECTION_REFUSED",))
    page.route("**/v1/**", lambda route: route.abort("connectionrefused"))
    page.get_by_label("Prompt").fill("x")
    page.get_by_label("Prompt").press("Control+Enter")
    expect(page.locator(".answer .error").first).to_have_text("The service does not answer. Is it still running?")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_all_without_scrolling_sideways(visit: Callable[..., Page], scheme: Any) -> None:
    page = visit(PHONE, color_scheme=scheme, device_scale_factor=2, has_touch=True, is_mobile=True)
    use_keys(page, admin=ADMIN)
    assert no_wider_than_its_window(page)
    generate(page)
    ended(page)
    assert no_wider_than_its_window(page)
    for button in page.get_by_role("button").all():
        if button.is_visible():
            box = button.bounding_box()
            assert box is not None
            assert box["height"] >= 32
            assert box["x"] + box["width"] <= PHONE["width"]
    shot(page, f"phone-{scheme}")


def test_dark_mode_follows_the_system(visit: Callable[..., Page]) -> None:
    backgrounds = []
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme)
        backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert backgrounds == ["rgb(246, 247, 248)", "rgb(16, 20, 23)"]
    use_keys(page, admin=ADMIN)
    generate(page)
    ended(page)
    shot(page, "compare-dark")


def test_every_control_has_a_name_and_the_keyboard_reaches_it(visit: Callable[..., Page]) -> None:
    page = visit()
    use_keys(page, admin=ADMIN)
    unnamed = page.evaluate(
        """[...document.querySelectorAll("input, select, textarea, button")]
           .filter((e) => !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).map((e) => e.outerHTML)"""
    )
    assert unnamed == []
    page.get_by_label("Prompt").focus()
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert reached[:4] == ["mode", "max-tokens", "temperature", "generate"]
    assert "SELECT" in reached


def test_names_are_text_and_never_html(visit: Callable[..., Page], engine: FakeEngine) -> None:
    engine.script = words("<img src=x onerror=alert(1)> <script>alert(1)</script>")
    page = visit()
    page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    generate(page)
    ended(page)
    expect(page.locator(".answer .text").first).to_have_text("<img src=x onerror=alert(1)> <script>alert(1)</script>")
    assert page.locator(".answer img").count() == 0


def test_a_thousand_adapters_are_shown_as_far_as_one_can_read_and_found_by_name(
    visit: Callable[..., Page], state: ServiceState, tmp_path: Path
) -> None:
    state.store = AdapterStore(state.base, budget_bytes=64 << 20)
    for number in range(300):
        state.store.load(f"team-{number:03d}", tmp_path / "adapters" / "support-tone")
    page = visit()
    expect(page.locator("#adapters-count")).to_have_text("300 loaded, 100 not shown")
    expect(page.locator("#adapters tr")).to_have_count(200)
    page.get_by_placeholder("Filter by name").fill("299")
    expect(page.locator("#adapters tr")).to_have_count(1)
