"""Counts in the filters of the page: on a server, in an export and in the icon site."""

from browsing import Tab


def numbers(one: Tab, field: str) -> dict[str, str]:
    """The values of a filter, with their numbers."""
    panel = one.page.locator(f"#filters details[data-field='{field}']")
    if panel.get_attribute("open") is None:
        panel.locator("summary").click()
    return {item.locator("span").inner_text(): item.locator("small").inner_text() for item in panel.locator("li").all()}


def choose(one: Tab, field: str, value: str) -> Tab:
    panel = one.page.locator(f"#filters details[data-field='{field}']")
    if panel.get_attribute("open") is None:
        panel.locator("summary").click()
    panel.get_by_label(value).check()
    one.page.keyboard.press("Escape")
    one.settled().page.wait_for_timeout(300)  # the numbers come after the pictures
    return one


SETS = {"Lucide": "3", "Tabler Icons": "3", "Castles": "2"}


def test_numbers_follow_the_other_filters_and_not_their_own(place, tab):
    one = tab(place).ready()
    assert numbers(one, "set") == SETS
    choose(one, "licence", "MIT")
    assert numbers(one, "set") == {"Lucide": "0", "Tabler Icons": "3", "Castles": "0"}
    assert numbers(one, "licence") == {"ISC": "3", "MIT": "3", "CC-BY-4.0": "2"}, "its own choice does not count"
    choose(one, "licence", "ISC")
    assert numbers(one, "set") == {"Lucide": "3", "Tabler Icons": "3", "Castles": "0"}
    choose(one, "set", "Lucide")
    assert numbers(one, "set") == {"Lucide": "3", "Tabler Icons": "3", "Castles": "0"}
    assert numbers(one, "licence") == {"ISC": "3", "MIT": "0", "CC-BY-4.0": "0"}
    one.page.go_back()
    one.settled().page.wait_for_timeout(300)
    assert numbers(one, "set") == {"Lucide": "3", "Tabler Icons": "3", "Castles": "0"}
    one.page.keyboard.press("Escape")
    one.page.go_back()
    one.page.wait_for_url(lambda url: "ISC" not in url)
    one.page.get_by_role("button", name="Clear filters").click()
    one.settled().page.wait_for_timeout(300)
    assert numbers(one, "set") == SETS


def test_facet_counts_follow_other_filters(place, tab):
    one = tab(place).ready().ask("heart")
    every = numbers(one, "set")
    note = one.page.locator("#filters details[open] .note").inner_text()
    assert note == f"Of the nearest {one.page.locator('#pictures .tile').count()}"
    one.page.keyboard.press("Escape")
    choose(one, "set", "Castles")
    assert numbers(one, "set") == every
    licences = numbers(one, "licence")
    assert (licences["CC-BY-4.0"], licences["MIT"]) == (every["Castles"], "0")
    assert {tile.get_attribute("title").split(chr(10))[0] for tile in one.page.locator("#pictures .tile").all()} <= {
        "castle",
        "heart-line",
    }
