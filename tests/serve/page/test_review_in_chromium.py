"""The review page of `grr-coca match`: keyboard, narrow window, dark scheme."""

import json
import re

import pytest

from grr_coca.cli import main


@pytest.fixture(scope="module")
def review(icon_index, tmp_path_factory) -> str:
    """The address of the review of two of the icon sets."""
    path = tmp_path_factory.mktemp("review") / "review.html"
    sets = [str(icon_index.parent / f"{prefix}.json") for prefix in ("lucide", "tabler")]
    assert main(["match", *sets, "--out", str(path)]) == 0
    return path.as_uri()


def test_icons_are_chosen_by_keyboard_and_saved(review, axe, tab):
    one = tab(review)
    page = one.page
    assert "chosen" not in page.locator("header p").inner_text().partition(".")[0], "no count before the first choice"
    page.locator("#filter").focus()
    page.keyboard.press("Tab")
    rows = page.locator("#rows li")
    names = [row.locator(".source small").first.inner_text() for row in rows.all()]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    second = rows.nth(0).locator("button").nth(1)
    assert second.get_attribute("aria-pressed") == "true"
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.closest('li') === document.querySelectorAll('#rows li')[1]")
    page.keyboard.press("ArrowDown")
    for _ in range(rows.nth(2).locator("button").count() - 1):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert rows.nth(2).locator("button.none").get_attribute("aria-pressed") == "true"
    page.keyboard.press("ArrowRight")  # to the field that searches all icons of the target
    page.keyboard.type("o")
    found = rows.nth(2).locator("input ~ button")
    assert "tabler:home" in [one.locator("small").first.inner_text() for one in found.all()]
    page.evaluate(axe)
    assert page.evaluate("async () => (await axe.run(document)).violations.map(({ id }) => id)") == []
    rows_to_review = page.locator("header p").inner_text().partition(".")[0]
    assert re.fullmatch(r"\d+ safe, \d+ to review( \([12] chosen\))?", rows_to_review)
    with page.expect_download() as saved:
        page.locator("#save").click()
    found = json.loads(saved.value.path().read_text())
    assert found["icons"][names[0]] == second.locator("small").first.inner_text()
    assert found["icons"][names[2]] is None


def test_all_candidates_of_an_icon_are_seen_at_once_on_a_phone(review, tab):
    one = tab(review, viewport={"width": 390, "height": 800}, color_scheme="dark")
    assert one.page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    assert one.page.locator("#rows li").first.bounding_box()["height"] < 420
    paper = one.page.evaluate("() => getComputedStyle(document.querySelector('header')).backgroundColor")
    assert paper == "rgb(18, 18, 18)"


def test_nothing_shows_through_the_head_of_the_page(review, tab):
    page = tab(review, viewport={"width": 1200, "height": 300}).page
    page.mouse.move(600, 200)
    for _ in range(6):
        page.mouse.wheel(0, 25)
        page.wait_for_function("() => true")
        assert page.evaluate("""() => {
            const { left, right, top, bottom } = document.querySelector("header p").getBoundingClientRect();
            const points = [0.01, 0.05, 0.1, 0.2, 0.4].map((share) => left + share * (right - left));
            return points.every((x) => document.elementFromPoint(x, (top + bottom) / 2).closest("header"));
        }""")
