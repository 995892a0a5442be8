"""Icons that leave the page: copied, saved, dragged and linked, from a server, an export and the icon site."""

import io
import re
from contextlib import suppress
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from browsing import Tab
from icon_places import opened_place
from PIL import Image
from serving import serving

pytest.importorskip("resvg_py")

RIGHTS = {"permissions": ["clipboard-read", "clipboard-write"]}


def icon(tab, address: str, name: str, **context: object) -> Tab:
    """The detail of an icon, which is found by its name."""
    one = tab(address, **RIGHTS, **context).ready().ask(name)
    one.page.locator("#pictures .tile").first.click()
    one.page.locator("#detail[open] .actions").first.wait_for()
    return one


def copied(one: Tab, label: str) -> str:
    """What a button copies."""
    button = one.page.locator("#detail").get_by_role("button", name=label, exact=True).element_handle()
    button.click()
    one.page.wait_for_function("(button) => button.textContent === 'Copied'", arg=button)
    return one.page.evaluate("navigator.clipboard.readText()")


def labels(one: Tab) -> list[str]:
    return one.page.locator("#detail .icon > .actions button").all_inner_texts()


def paths(svg: str) -> list[str]:
    return [element.get("d") for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path")]


def test_icon_is_copied_into_code_in_every_form(place, tab):
    one = icon(tab, place, "lucide:house")
    assert one.page.locator("#detail h2").inner_text() == "house"
    svg = copied(one, "Copy SVG")
    assert paths(svg) == ["M4 11 12 4l8 7v9H4z"]
    assert copied(one, "Name") == "house"
    assert copied(one, "Iconify") == "lucide:house"
    assert copied(one, "Import") == 'import { House } from "lucide-react";'
    jsx = copied(one, "JSX")
    assert jsx.startswith("export function House(props) {")
    assert re.search(r'<svg [^>]*height="24"[^>]* \{\.\.\.props\}>', jsx), "what the caller gives counts"
    assert 'strokeLinecap="round"' in jsx
    assert 'className="a"' in jsx
    assert "stroke-linecap" not in jsx
    vue = copied(one, "Vue")
    assert re.fullmatch(r"<template>\s*<svg .*</svg>\s*</template>\s*", vue, re.DOTALL)
    assert paths(vue[vue.index("<svg") : vue.index("</template>")]) == paths(svg)
    uri = copied(one, "Data URI")
    assert uri.startswith("data:image/svg+xml,")
    assert paths(unquote(uri.partition(",")[2])) == paths(svg)
    assert "Credit" not in labels(one), "its licence asks for none"


def test_copied_css_rule_draws_the_icon_in_text_colour(place, tab):
    one = icon(tab, place, "lucide:house")
    rule = copied(one, "CSS")
    page = tab().page
    page.set_content(
        f"<style>{rule} i {{ display: block; font-size: 96px; color: #d02020 }}</style><i class=icon-house></i>"
    )
    image = Image.open(io.BytesIO(page.locator("i").screenshot())).convert("RGB")
    colours = {colour for _, colour in image.getcolors(100_000)}
    assert image.size == (96, 96)
    assert (208, 32, 32) in colours, "the lines are drawn"
    assert image.getpixel((48, 55)) == (255, 255, 255), "and not a filled square"


def test_icon_whose_licence_requests_it_has_a_line_of_credit(place, tab):
    one = icon(tab, place, "castle")
    assert copied(one, "Credit") == "castle from Castles by Ada, CC-BY-4.0"
    assert "Import" not in labels(one), "no package is known"
    facts = one.page.locator("#detail dl").inner_text()
    assert "CC-BY-4.0" in facts
    assert "Ada" in facts


def test_icon_is_saved_as_svg_and_sized_coloured_png(place, tab, tmp_path):
    one = icon(tab, place, "lucide:house")
    part = one.page.locator("#detail .tried")
    with one.page.expect_download() as saved:
        part.get_by_role("button", name="Save SVG").click()
    assert saved.value.suggested_filename == "house.svg"
    saved.value.save_as(tmp_path / "house.svg")
    assert paths((tmp_path / "house.svg").read_text()) == ["M4 11 12 4l8 7v9H4z"]
    controls = one.page.locator("#icon-style")
    controls.get_by_label("Size in pixels").fill("96")
    controls.get_by_label("Colour", exact=True).fill("#2040c0")
    with one.page.expect_download() as saved:
        part.get_by_role("button", name="Save PNG").click()
    assert saved.value.suggested_filename == "house.png"
    saved.value.save_as(tmp_path / "house.png")
    image = Image.open(io.BytesIO((tmp_path / "house.png").read_bytes()))
    assert image.size == (96, 96)
    assert (0x20, 0x40, 0xC0, 255) in {colour for _, colour in image.convert("RGBA").getcolors(100_000)}
    assert image.convert("RGBA").getpixel((2, 2))[3] == 0, "its paper is transparent"
    shown = one.page.locator("#pictures .frame img").first.bounding_box()
    assert shown["width"] == 96, "the size is shown"


def test_icon_is_dragged_out_as_a_file_and_as_text(place, tab):
    one = icon(tab, place, "lucide:house")
    one.page.evaluate(
        """() => addEventListener("dragstart", ({ dataTransfer }) => {
            window.dragged = [dataTransfer.getData("text/plain"), dataTransfer.getData("DownloadURL")];
        })"""
    )
    image = one.page.locator("#detail .frame img")
    image.hover()
    one.page.mouse.down()
    box = image.bounding_box()
    for step in (10, 40, 80):  # a drag begins after some pixels
        one.page.mouse.move(box["x"] + box["width"] / 2 + step, box["y"] + box["height"] / 2)
    one.page.wait_for_function("() => window.dragged")
    text, file = one.page.evaluate("window.dragged")
    assert one.page.locator("#drop").is_hidden(), "the page does not ask for its own picture"
    one.page.mouse.up()
    assert paths(text) == ["M4 11 12 4l8 7v9H4z"]
    kind, name, address = file.split(":", 2)
    assert (kind, name) == ("image/svg+xml", "house.svg")
    assert paths(unquote(address.partition(",")[2])) == paths(text)


def test_link_opens_this_image(place, tab):
    link = copied(icon(tab, place, "lucide:house"), "Link")
    other = tab(link).ready()
    other.page.locator("#detail[open]").wait_for()
    assert other.page.locator("#detail h2").inner_text() == "house"
    assert other.page.locator("#detail .set").inner_text() == "Lucide"


def test_equivalents_are_shown_with_probability_and_open(place, tab):
    one = icon(tab, place, "lucide:heart")
    strip = one.page.locator("#detail .copies", has_text="In the other sets")
    strip.wait_for()
    own, *names = [button.get_attribute("aria-label") for button in strip.get_by_role("button").all()]
    assert own == "heart (Lucide)"
    assert all(re.search(r"^heart(-line)? \((Tabler Icons|Castles)\), \d+%$", name) for name in names), names
    above, below = strip.bounding_box(), one.page.locator("#detail dl").bounding_box()
    assert above["y"] < below["y"]
    strip.get_by_role("button", name="Tabler Icons").click()
    one.page.locator("#detail .set", has_text="Tabler Icons").wait_for()


def test_icon_has_the_size_of_its_drawing(place, tab):
    one = icon(tab, place, "lucide:house")
    assert one.page.locator("#detail dt:text-is('Size') + dd").inner_text() == "24 × 24, vector"


STYLES = {
    "JSX": r'<style>\{" *path \{ stroke: #d21 \}"\}</style>',
    "Vue": r'<component is="style"> *path \{ stroke: #d21 \}</component>',
}
"""How languages write rules of style whose braces would mean something else."""


@pytest.mark.parametrize("name", ["serve", "export"])
def test_scripts_and_links_are_removed_from_svg(name, icon_index, icon_sites, tab):
    with opened_place(name, icon_index, icon_sites) as address:
        asked: list[str] = []
        one = tab(**RIGHTS)
        one.page.on("request", lambda request: asked.append(request.url))
        one.page.goto(address)
        one.ready().ask("hostile")
        one.page.locator("#pictures .tile").first.click()
        one.page.locator("#detail .icon").wait_for()
        assert one.page.locator("#detail h2").inner_text() == "hostile"
        for label in ("Copy SVG", "JSX", "Vue", "CSS", "Data URI"):
            text = unquote(copied(one, label))
            assert "M4 11 12 4l8 7v9H4z" in text, label
            assert re.search(STYLES.get(label, r"<style>\W*path \{ stroke: #d21 \}"), text), (
                label,
                "its own rule stays",
            )
            for bad in ("script", "evil", "onload", "onclick", "foreignObject", "iframe", "@import"):
                assert bad not in text, (label, bad)
        assert one.page.title() != "run"
        assert not [url for url in asked if "evil" in url]


def test_page_holds_no_drawing_of_an_icon_as_elements(place, tab):
    one = icon(tab, place, "lucide:house")
    drawn = "() => [...document.querySelectorAll('svg:not(.glyph), object, embed, iframe')].map((one) => one.outerHTML)"
    assert one.page.evaluate(drawn) == []
    assert one.page.locator("#detail .frame img[src]").count() == 1


def test_server_sends_a_vector_that_can_do_nothing(icon_index, tab):
    with serving(icon_index) as client:
        found = client.post("/search", {"texts": ["hostile"], "limit": 1}).json()["hits"][0]
        other = tab()
        other.page.goto(f"{client.address}vector/{found['id']}")
        with suppress(Exception):  # a sandbox without scripts
            other.page.evaluate("document.title = 'run'")
        assert other.page.evaluate("self.origin") == "null", "it is of an origin of its own"
