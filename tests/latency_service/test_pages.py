"""The dashboard in a real Chromium, and what of it a browser is not needed for."""

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from latency_contract.operators import IBConv
from latency_service import pages, tokens
from latency_service.database import Database
from tests import chromium
from tests.conftest import live_service
from tests.latency_service.shown_farm import HOSTILE, fill, queued

OPERATORS = [
    IBConv(height=h, width=h, in_channels=8, out_channels=8, kernel=k, stride=1, expansion=3, residual=False)
    for h in (7, 14, 28)
    for k in (3, 5, 7)
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Where Chromium cannot be had, its tests are skipped; under CI they fail."""
    try:
        path = chromium.installed()
    except chromium.CannotInstall as reason:
        if os.environ.get("CI"):
            pytest.fail(str(reason))
        pytest.skip(str(reason))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('pages') / 'farm.db'}"


@pytest.fixture(scope="module")
def farm(url: str) -> Iterator[str]:
    """A service with much to show, and free words that mean harm."""
    with live_service(url) as address:
        database = Database(url)
        fill(database, OPERATORS, now=datetime.now(UTC), text=HOSTILE)
        database.dispose()
        yield address


@pytest.fixture
def page(browser: Browser, farm: str) -> Iterator[Page]:
    """At the front page. Whatever the browser complains of meanwhile fails the test."""
    complaints: list[str] = []
    page = browser.new_page(base_url=farm, viewport={"width": 1280, "height": 900})
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if not request.url.startswith(farm) else None)
    page.goto("/")
    yield page
    page.close()
    assert complaints == []


def table_of(page: Page, model: str) -> None:
    page.get_by_role("region", name="Tables").get_by_role("link", name=model).click()


def test_the_front_page_says_how_devices_queue_searches_and_tables_are(page: Page) -> None:
    expect(page.locator("#queue-said")).to_contain_text("13 jobs wait, 4 are leased to devices.")
    resting = page.locator("#devices tr", has_text="1B071FDF9")
    expect(resting).to_contain_text("rests for")
    expect(resting).to_contain_text("the phone is unauthorized")
    held = page.locator("#devices tr", has_text="1C091FDF2")
    expect(held).to_contain_text("quarantine")
    expect(held).to_contain_text("takes 21 % longer than usual; let it cool down")
    expect(page.locator("#devices tr", has_text="89AX0KCQ1")).to_contain_text("°C")
    page.locator("#queue summary").first.click()
    expect(page.locator("#queue details pre").first).to_contain_text("signal 11 (SIGSEGV)")
    expect(page.locator("#searches")).to_contain_text("71.3% at 64.2 ms")


def test_hostile_words_are_shown_and_not_obeyed(page: Page, farm: str) -> None:
    for path in ("/", "/devices/Pixel%203", "/measurements/1"):
        page.goto(path)
        expect(page.locator("main")).to_contain_text("<script>document.title='taken'</script>")
        assert "taken" not in page.title()
        assert page.locator("main script, main img").count() == 0
    answer = httpx.get(f"{farm}/", trust_env=False)
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert "<script>document" not in answer.text


def test_a_number_of_the_heat_map_opens_its_measurement_and_escape_leads_back(page: Page) -> None:
    table_of(page, "Pixel 6")
    cell = page.get_by_role("table").first.get_by_role("link").first
    cell.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    for said in (
        "95 %",
        "1A051FDF6",
        "a" * 64,
        "Rounds: 8",
        "smallest reading of the reference operator",
        "Rejected rounds: 1",
        "the cap on the frequency fell",
    ):
        expect(dialog).to_contain_text(said)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(cell).to_be_focused()


def test_a_table_says_how_it_was_calibrated_and_opens_the_networks(page: Page) -> None:
    table_of(page, "Pixel 6")
    section = page.get_by_role("region", name="Whole networks against the sums of their operators")
    expect(section).to_contain_text("with 12 networks of 'basic</pre><script>")
    expect(section).to_contain_text("left out one by one they are")
    section.get_by_text("The 12 networks").click()
    section.get_by_role("table").get_by_role("link").first.click()
    expect(page.get_by_role("dialog")).to_contain_text("Rounds: 8")


# Contrast of each text with what is behind it (WCAG 2.2, "relative luminance" and "contrast ratio"), and how light
# the page is.
CONTRASTS = """() => {
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = colour => {
    const [r, g, b] = parts(colour).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    const colour = getComputedStyle(element).backgroundColor;
    return parts(colour)[3] === 0 ? behind(element.parentElement) : luminance(colour);
  };
  const contrast = element => {
    const [a, b] = [luminance(getComputedStyle(element).color), behind(element)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const texts = [...document.querySelectorAll("h1, h2, th, td a, dd, p, nav a")];
  return {page: behind(document.body), lowest: Math.min(...texts.map(contrast)), texts: texts.length};
}"""


def test_text_is_legible_in_either_colour_scheme(page: Page) -> None:
    table_of(page, "Pixel 6")
    pages = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        seen = page.evaluate(CONTRASTS)
        assert seen["texts"] > 20
        assert seen["lowest"] >= 4.5, scheme
        pages[scheme] = seen["page"]
    assert pages["light"] > 0.8
    assert pages["dark"] < 0.1


def test_every_endpoint_is_described_without_another_host(page: Page) -> None:
    page.get_by_role("navigation", name="Pages").get_by_role("link", name="REST").click()
    question = page.locator("[data-path='/v1/latencies/query']")
    expect(question).to_be_visible(timeout=30_000)  # Swagger UI takes a busy machine some seconds


def test_two_tables_are_compared_operator_by_operator(page: Page) -> None:
    page.get_by_role("link", name="Compare", exact=True).click()
    page.get_by_label("First").select_option(index=0)
    page.get_by_label("Second").select_option(index=1)
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", name="Pixel 6 over Pixel 3")).to_be_visible()
    expect(page.locator(".lead")).to_contain_text("Of 9 operators in both, 9 differ significantly")
    expect(page.locator("tbody tr").first).to_contain_text("faster")


def test_the_queue_is_renewed_without_a_reload(page: Page, url: str) -> None:
    page.clock.install()
    page.reload()
    said = page.locator("#queue-said")
    before = said.inner_text()
    page.evaluate("window.same = true")
    database = Database(url)
    with database.writing() as session:
        wanted = IBConv.model_validate(OPERATORS[0].model_dump() | {"expansion": 6})
        queued(session, wanted, model="Pixel 3", now=datetime.now(UTC))
    database.dispose()
    page.clock.run_for(6000)
    expect(said).not_to_have_text(before)
    assert page.evaluate("window.same"), "the page was not loaded anew"
    assert said.get_attribute("aria-live") == "polite"


def test_pages_have_landmarks_headed_tables_and_fit_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    for path in ("/", "/devices/Pixel%203", "/measurements/1", "/compare"):
        page.goto(path)
        for landmark in ("banner", "main", "contentinfo"):
            expect(page.get_by_role(landmark)).to_have_count(1)
        assert page.locator("th:not([scope])").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, "only tables scroll sideways"
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="To the content")).to_be_focused()


def test_a_browser_is_let_in_with_a_token_as_password(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    url = f"sqlite:///{tmp_path_factory.mktemp('tokens') / 'farm.db'}"
    with live_service(url) as address:
        database = Database(url)
        with database.writing() as session:
            secret = tokens.create(session, name="ana", role=tokens.Role.CLIENT, now=datetime.now(UTC))
        database.dispose()
        context = browser.new_context(base_url=address, http_credentials={"username": "ana", "password": secret})
        page = context.new_page()
        page.goto("/")
        expect(page.get_by_text("None has reported. Start one")).to_be_visible()
        context.close()


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/tables/" + "0" * 64, 404, "There is no table"),
        ("/tables/x", 422, "table_id"),
        ("/devices/Nokia", 404, "There is no device"),
        ("/measurements/999999", 404, "There is no measurement"),
        ("/?page=0", 422, "page"),
    ],
)
def test_what_is_refused_is_a_page_with_a_sentence(farm: str, path: str, status: int, sentence: str) -> None:
    response = httpx.get(farm + path, trust_env=False)
    assert response.status_code == status
    assert response.headers["Content-Type"].startswith("text/html")
    assert sentence in response.text


@pytest.mark.parametrize(
    ("write", "value", "expected"),
    [
        (pages.milliseconds, 0.012345, "0.0123"),
        (pages.milliseconds, 1.2345, "1.23"),
        (pages.milliseconds, 1234.5, "1,234"),
        (pages.finely, 1.23456, "1.2346"),
        (pages.half_width, 0.04, "0.04"),
        (pages.half_width, 1.26, "1.3"),
        (pages.celsius, None, "–"),
        (pages.reading, True, "yes"),
        (pages.reading, 0, "0"),
    ],
)
def test_numbers_are_written_as_people_read_them(write: Callable[[object], str], value: object, expected: str) -> None:
    assert write(value) == expected
