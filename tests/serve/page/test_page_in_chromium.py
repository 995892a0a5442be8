"""The page in headless Chromium: search, dropped images, keyboard, screen readers, invalid files."""

import base64
import functools
import gzip
import json
import os
import shutil
import struct
import threading
import time
import zlib
from contextlib import ExitStack, suppress
from typing import ClassVar

import numpy as np
import pytest
from browsing import StaticHost, hosted, static

from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.model.checkpoint_files import bundled_folder
from grr_coca_search.relevance import MIN_RELEVANCE, RelevanceCurve, hit_features
from grr_coca_serve.page import FILES, POLICY
from grr_coca_serve.site import RANKING, find_runtime, graphs_of, write_site

DROP = """async ([data, name, type, kind]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type }));
    const event = kind === "drop"
        ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
        : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true });
    document.body.dispatchEvent(event);
}"""


def hand_over(tab, content: bytes, name: str, kind: str = "drop", media: str = "image/webp") -> None:
    tab.page.evaluate(DROP, [base64.b64encode(content).decode(), name, media, kind])


# --- Search


def test_words_find_images_as_they_are_typed(host, tab):
    one = tab(host).ready()
    assert "151 images" in one.status
    one.page.locator("#query").press_sequentially("clock", delay=30)
    one.settled()
    assert "clock" in one.captions(1)[0]
    assert "%" not in one.page.locator("#pictures").inner_text(), "numbers stand in the detail"
    one.page.locator("#pictures .tile").first.click()
    relevance = one.page.locator("#detail dt:text-is('Relevance') + dd").inner_text()
    assert int(relevance.removesuffix("%")) >= 100 * MIN_RELEVANCE
    one.page.keyboard.press("Escape")
    one.page.wait_for_url("**/#q=clock")
    one.page.reload()
    one.ready()
    assert one.page.locator("#query").input_value() == "clock"
    assert "clock" in one.captions(1)[0]
    assert one.ask("cathedral").status.startswith("No good match.")
    assert "151 images" in one.ask("").status


def test_search_can_include_or_exclude_another_image(host, tab):
    one = tab(host).ready().ask("face")
    before = one.captions(8)
    one.page.locator("#pictures .tile").nth(1).click()
    one.page.get_by_role("button", name="Exclude similar").click()
    one.settled()
    assert "unlike=" in one.page.url
    assert one.captions(8) != before
    one.page.locator("#parts button").click()
    one.settled()
    assert one.captions(8) == before
    one.page.locator("#pictures .tile").nth(2).click()
    one.page.get_by_role("button", name="More like this").click()
    one.ask("")
    assert one.captions(1) == [before[2]]
    one.page.go_back()
    one.page.wait_for_url("**/#q=face&like=*")
    one.page.go_back()
    one.page.wait_for_url("**/#q=face&open=*")


def test_full_cache_keeps_all_texts_of_a_search(site, tmp_path, tab):
    small = tmp_path / "site"
    shutil.copytree(site, small)
    worker = small / "worker.js"
    code = worker.read_text()
    assert "MAX_CACHED = 20_000" in code
    worker.write_text(code.replace("MAX_CACHED = 20_000", "MAX_CACHED = 70"))
    with hosted(static(small)) as address:
        one = tab(address).ready()
        for words in ("clock", "face", "clock on a face"):
            assert any(shown in one.ask(words).status for shown in ("Best matches", "Closest"))
            assert one.page.locator("#message").is_hidden()


def test_words_after_a_minus_are_avoided_and_become_chips(host, tab):
    one = tab(host).ready().ask("face")
    before = one.captions(6)
    assert one.ask("face -monkey").captions(6) != before
    one.page.keyboard.press("Enter")
    one.settled()
    assert one.page.locator("#query").input_value() == "face"
    assert one.page.locator("#parts .without").inner_text() == "without monkey"
    assert "without=monkey" in one.page.url
    assert one.captions(6) != before
    one.page.locator("#parts .without").click()
    assert one.settled().captions(6) == before


def test_example_in_the_field_is_a_caption_of_the_index(host, tab):
    one = tab(host).ready()
    one.page.wait_for_selector("#query[placeholder$='for example']")
    example = one.page.locator("#query").get_attribute("placeholder").removesuffix(", for example")
    assert example in one.ask(example).captions(3)


def test_less_likely_images_stand_below_a_line(host, tab):
    one = tab(host).ready().ask("clock")
    line = one.page.locator("#pictures .divider")
    assert line.inner_text() == "Less likely"
    below = line.bounding_box()["y"]
    tops = [tile.bounding_box()["y"] for tile in one.page.locator("#pictures .tile").all()]
    assert tops[0] < below < tops[-1]
    assert one.page.locator("#status").inner_text() == "Best matches from 151 images"
    one.ask("qwrtzxp")
    assert line.count() == 0, "where nothing is likely, all is said above the pictures"
    assert not one.status.startswith("Best matches")


def test_each_query_view_and_detail_is_one_step_back(host, tab):
    from playwright.sync_api import expect  # of the extra `browser`

    one = tab(host).ready()
    page = one.page
    page.locator("#query").press_sequentially("clock", delay=20)
    one.settled()
    page.keyboard.press("Enter")
    page.locator("#query").fill("face")
    one.settled()
    faces = one.captions(3)
    page.locator("#pictures .tile").first.click()
    page.locator("#detail[open]").wait_for()
    page.locator("#detail .on").click()
    page.go_back()
    page.locator("#detail[open]").wait_for(state="detached")
    assert page.locator("#query").input_value() == "face"
    page.go_forward()
    page.locator("#detail[open]").wait_for()
    # A dialog reports that it was closed with the next frame, after it may have been opened again.
    page.locator("#detail").dispatch_event("close")
    assert "open=" in page.url
    page.reload()
    one.ready()
    page.locator("#detail[open]").wait_for()
    assert page.locator("#detail h2").inner_text() == faces[1]
    page.go_back()
    one.settled().page.locator("#show-duplicates").click()
    page.locator("#duplicates section").first.wait_for()
    assert "view=duplicates" in page.url
    page.go_back()
    page.locator("#duplicates").wait_for(state="hidden")
    assert one.settled().captions(3) == faces
    page.go_back()
    expect(page.locator("#query")).to_have_value("clock")
    assert "clock" in one.settled().captions(1)[0]
    page.go_back()
    expect(page.locator("#query")).to_have_value("")
    assert "151 images" in one.settled().status


def test_chip_keeps_its_image_when_the_page_is_loaded_again(host, tab):
    one = tab(host).ready()
    one.page.locator("#pictures .tile").first.click()
    one.page.get_by_role("button", name="More like this").click()
    one.settled().page.locator("#parts .like img[src]").wait_for()
    one.page.reload()
    one.ready().page.locator("#parts .like img[src]").wait_for()


def test_link_to_the_images_does_not_erase_the_search(host, tab):
    one = tab(host).ready().ask("clock")
    one.page.locator(".skip").focus()
    one.page.keyboard.press("Enter")
    one.page.locator("[data-index='0']:focus").wait_for()
    assert one.page.url.endswith("#q=clock")
    assert one.page.locator("#query").input_value() == "clock"


def test_tile_size_has_three_values_and_is_remembered(host, tab):
    one = tab(host).ready()

    def width() -> float:
        return one.page.locator("#pictures li").first.bounding_box()["width"]

    widths = [width()]
    for _ in range(2):
        one.page.locator("#size").click()
        widths.append(width())
    assert len(set(widths)) == 3
    one.page.reload()
    one.ready()
    assert width() == widths[-1]


def test_filter_of_a_link_is_shown_and_updates_counts(host, tab):
    one = tab(f"{host}#filters=" + '{"licence":{"in":["MIT"]}}').ready()
    assert "No image matches the filters." in one.status
    assert one.page.locator("#filters .on summary").inner_text() == "Licence: MIT"
    one.page.get_by_role("button", name="Clear filters").click()
    one.ask("clock")
    one.page.locator("#filters summary", has_text="Folder").click()
    counts = one.page.locator("#filters details[open] small").all_inner_texts()
    assert sum(map(int, counts)) <= 151
    one.page.keyboard.press("Escape")
    one.page.mouse.wheel(0, 1500)
    one.page.wait_for_function("() => scrollY > 0")
    assert one.page.locator("#filters").bounding_box()["y"] < 200, "filters stay in view"


def test_all_filters_can_be_reached(at):
    fields = [f"column_{number}" for number in range(12)]
    facets = [{"field": field, "kind": "text", "values": [["a", 1], ["b", 2]]} for field in fields]
    one = at(facets=facets).ready()
    assert one.page.locator("#filters summary").count() == 6
    one.page.get_by_role("button", name="More filters").click()
    assert one.page.locator("#filters summary").count() == 12
    one.page.locator("#filters summary").nth(11).click()
    one.page.locator("#filters details[open] input").nth(1).check()
    one.page.reload()
    one.ready().page.locator("#filters .on summary", has_text="Column 11: b").wait_for()


def test_near_duplicates_are_one_hit_and_have_a_view(host, tab):
    one = tab(host).ready()
    one.page.locator("#show-duplicates").click()
    one.page.locator("#duplicates section").first.wait_for()
    assert "1 group" in one.status
    assert one.page.locator("#duplicates .tile").count() == 2
    one.page.locator("#show-duplicates").click()
    one.ask("writing hand")
    assert one.page.locator("#pictures .alike").first.inner_text().startswith("+1")


# --- Pictures from outside


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_image_is_captioned_word_by_word_and_searched_by(kind, host, drawings, tab):
    one = tab(host).ready()
    path = sorted((drawings / "things").glob("*.webp"))[10]
    one.page.evaluate(
        """() => {
            window.shown = [];
            new MutationObserver(() => shown.push(document.querySelector("#dropped .caption").textContent))
                .observe(document.querySelector("#dropped"), { subtree: true, childList: true, characterData: true });
        }"""
    )
    hand_over(one, path.read_bytes(), path.name, kind)
    one.captioned()
    caption = one.settled().page.locator("#dropped .caption").inner_text()
    shown = [text for text in one.page.evaluate("window.shown") if text]
    assert shown[-1] == caption
    assert all(caption.startswith(text) for text in shown)
    one.page.locator("#pictures .tile").first.click()
    assert path.name in one.page.locator("#detail dl").inner_text(), "its own picture is nearest"
    one.page.keyboard.press("Escape")
    one.page.get_by_role("button", name="Remove your image").click()
    assert "151 images" in one.settled().status


def test_open_image_is_closed_when_another_one_is_pasted(host, photo, tab):
    one = tab(host).ready()
    one.page.locator("#pictures .tile").first.click()
    one.page.locator("#detail[open]").wait_for()
    hand_over(one, photo.read_bytes(), "a.webp", "paste")
    one.captioned()
    assert one.page.locator("#detail[open]").count() == 0


def test_svg_is_drawn_and_captioned(host, tab):
    one = tab(host).ready()
    svg = (
        b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><script>document.title = "run"</script>'
        b'<path fill="#d22" d="M12 21C5 15 2 12 2 8a5 5 0 0 1 10-2 5 5 0 0 1 10 2c0 4-3 7-10 13z"/></svg>'
    )
    hand_over(one, svg, "heart.svg", media="image/svg+xml")
    one.captioned()
    assert "heart" in one.settled().page.locator("#dropped .caption").inner_text()
    assert one.page.title() != "run"


def header_of_png(width: int, height: int) -> bytes:
    """A PNG that says it has this size."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (header_of_png(20_000, 10_000), "huge.png", "huge.png: too many pixels: 200,000,000"),
        (
            b"%PDF-1.7 not a picture at all, but long enough to be one",
            "paper.pdf",
            "paper.pdf: not an image in a format",
        ),
        (b"", "empty.png", "empty.png: the file is empty."),
        (header_of_png(20, 10) + bytes(40), "cut.png", "cut.png: corrupt, or not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><path d=", "cut.svg", "cut.svg: an SVG file that cannot be drawn."),
    ],
)
def test_invalid_image_shows_an_error(content, name, message, photo, host, tab):
    one = tab(host).ready()
    hand_over(one, photo.read_bytes(), "a.webp")
    assert one.captioned().settled().status == "Closest results from 151 images", "of an image, relevance is unknown"
    one.page.evaluate("scrollTo(0, 2000)")
    hand_over(one, content, name)
    one.page.locator("#message:not([hidden])").wait_for()
    assert one.page.locator("#message").inner_text().startswith(message)
    assert one.page.locator("#dropped").is_hidden()
    assert "151 images" in one.settled().status, "hits of the earlier image are gone"
    assert one.page.evaluate("scrollY") == 0
    assert "clock" in one.ask("clock").captions(1)[0], "the page still works"
    assert one.page.locator("#message").is_hidden()


# --- Keyboard, screen readers, looks


def test_all_can_be_done_with_the_keyboard(host, tab):
    one = tab(host).ready()
    keyboard, page = one.page.keyboard, one.page
    page.locator("#home").focus()
    keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"
    keyboard.type("clock")
    one.settled()
    keyboard.press("ArrowDown")
    keyboard.press("ArrowRight")
    page.locator("[data-index='1']:focus").wait_for()
    keyboard.press("Enter")
    page.locator("#detail[open]").wait_for()
    first = page.locator("#detail h2").inner_text()
    is_taken = """(altKey) => {
        const event = new KeyboardEvent("keydown", { key: "ArrowLeft", altKey, bubbles: true, cancelable: true });
        return !document.querySelector("#detail h2").dispatchEvent(event);
    }"""
    assert not page.evaluate(is_taken, True), "the browser goes back"
    keyboard.press("ArrowRight")
    page.locator("#detail h2").filter(has_not_text=first).wait_for()
    keyboard.press("Escape")
    page.locator("[data-index='2']:focus").wait_for()  # where the dialog was left
    keyboard.press("?")
    page.locator("#help[open]").wait_for()
    keyboard.press("Escape")
    page.locator("#help").wait_for(state="hidden")
    page.locator("[data-index='2']").focus()
    keyboard.press("End")
    assert int(page.evaluate("document.activeElement.dataset.index")) > 20
    keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "query"
    keyboard.press("Escape")
    assert "151 images" in one.settled().status


def test_arrow_key_after_enter_keeps_the_first_hit_focused(tab):
    may_search = threading.Event()
    may_search.set()
    with hosted(server(may_search=may_search)) as address:
        one = tab(address).ready().ask("red heart")
        may_search.clear()
        one.page.locator("#query").fill("blue heart")
        one.page.keyboard.press("Enter")
        one.page.keyboard.press("ArrowDown")  # the hits of the query before are still there
        may_search.set()
        one.settled().page.locator(".tile[data-index='0']:focus").wait_for()
        one.page.keyboard.press("ArrowRight")
        one.page.locator(".tile[data-index='1']:focus").wait_for()


@pytest.mark.parametrize(
    ("typed", "texts", "avoided"),
    [
        ("circle without plus", ["circle"], ["plus"]),
        ("dog without a hat, the leash and grass", ["dog"], ["hat", "leash", "grass"]),
        ("dog -grass without hat", ["dog"], ["grass", "hat"]),
        ("without plus", ["without plus"], []),
        ("face-without-mouth", ["face-without-mouth"], []),
        ("circle without", ["circle without"], []),
    ],
)
def test_words_after_without_are_avoided(typed, texts, avoided, at):
    one = at().ready()
    for act in (lambda: one.page.locator("#query").fill(typed), lambda: one.page.keyboard.press("Enter")):
        with one.page.expect_request("**/search") as asked:
            act()
        query = asked.value.post_data_json
        assert (query["texts"], query["without"]) == (texts, avoided)
        one.settled()
    assert one.page.locator("#parts .without").all_inner_texts() == [f"without {word}" for word in avoided]


AXE_RUN = """async () => (await axe.run(document, { resultTypes: ["violations"] })).violations
    .map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 120)).join(" | ")}`)"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(scheme, host, photo, axe, tab):
    one = tab(host, color_scheme=scheme).ready()

    def found() -> list[str]:
        one.page.evaluate(axe)
        return one.page.evaluate(AXE_RUN)

    assert found() == []
    one.ask("clock")
    assert found() == []
    one.page.locator("#filters summary").first.click()
    assert found() == []
    one.page.keyboard.press("Escape")
    one.page.locator("#pictures .tile").first.click()
    assert found() == []
    one.page.keyboard.press("Escape")
    hand_over(one, photo.read_bytes(), "a.webp")
    one.captioned()
    assert found() == []
    one.settled().page.locator("#show-duplicates").click()
    one.page.locator("#duplicates section").first.wait_for()
    assert found() == []


def test_dark_is_dark(host, tab):
    def paper(one) -> str:
        return one.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")

    assert paper(tab(host, color_scheme="light").ready()) == "rgb(251, 250, 248)"
    assert paper(tab(host, color_scheme="dark").ready()) == "rgb(22, 22, 21)"


# --- Sites without an index, browsers that lack something, hosts that are gone


@pytest.fixture(scope="module")
def captions_only(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "site"
    with graphs_of(bundled_folder("icons")) as graphs:
        write_site(graphs, folder, find_runtime(), title="Captions", model="icons")
    return folder


def test_server_without_an_index_captions_an_image(captions_only, photo, axe, tab):
    with hosted(static(captions_only)) as address:
        one = tab(address).ready()
        assert one.page.locator("#empty h2").inner_text() == "Drop an image here"
        one.page.evaluate(axe)
        assert one.page.evaluate(AXE_RUN) == []
        one.page.set_input_files("#file", photo)
        one.captioned()
        assert one.page.locator("#dropped .caption").inner_text()
        assert one.page.locator("#empty").is_hidden()


def test_browser_without_simd_shows_an_error(host, browser, tab):
    one = tab()
    one.context.add_init_script("WebAssembly.validate = () => false")
    one.page.goto(host)
    one.page.locator("#message:not([hidden])").wait_for()
    assert "WebAssembly SIMD" in one.page.locator("#message").inner_text()


COPY_AGAIN = "Copy the whole exported folder to the host, or export the site again."


@pytest.mark.parametrize(
    ("name", "reason"),
    [("model/text.onnx.gz", "the host answers 404."), ("runtime/ort.js", "it cannot be loaded.")],
)
def test_missing_file_on_the_host_is_named(name, reason, site, tmp_path, tab):
    shutil.copytree(site, tmp_path / "site")
    (tmp_path / "site" / name).unlink()
    with hosted(static(tmp_path / "site")) as address:
        one = tab(address)
        one.page.locator("#message:not([hidden])").wait_for()
        assert one.page.locator("#message").inner_text() == f"{name}: {reason} {COPY_AGAIN}"
        one.errors.clear()  # the browser itself may log the missing file


def test_closed_connection_shows_an_error(site, tab):
    class Closing(StaticHost):
        def do_GET(self) -> None:
            if self.path.startswith("/model/"):
                self.connection.close()
                return
            super().do_GET()

    with hosted(functools.partial(Closing, directory=str(site))) as address:
        one = tab(address)
        one.page.locator("#message:not([hidden])").wait_for()
        shown = one.page.locator("#message").inner_text()
        assert shown.startswith("model/")
        assert shown.endswith(": the host cannot be reached. Reload the page when it answers again.")
        one.errors.clear()


def test_site_that_was_loaded_works_without_its_host(site, tab):
    one = tab()
    with hosted(static(site)) as address:
        one.page.goto(address)
        one.ready()
        one.page.wait_for_selector("html[data-kept]")
    one.page.reload()
    assert "clock" in one.ready().ask("clock").captions(1)[0]
    one.errors.clear()  # thumbnails that were never shown


def test_words_find_images_while_the_model_loads(site, tab):
    """Files travel compressed, and the rows come first."""
    may_load = threading.Event()
    asked: list[str] = []

    class SlowHost(StaticHost):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path.startswith("/model/") or self.path.endswith(".wasm.gz"):
                assert may_load.wait(60)
            super().do_GET()

    with hosted(functools.partial(SlowHost, directory=str(site))) as address:
        one = tab(address)
        one.page.locator("#pictures .tile img[src]").first.wait_for()
        one.ask("clock")
        assert one.status.startswith("Text matches.")
        assert "clock" in one.captions(1)[0]
        assert not any(path.endswith(".bin.gz") for path in asked), "vectors come later"
        may_load.set()
        one.ready()
        assert "Best matches" in one.status
        assert len([path for path in asked if path.endswith("0000.json.gz")]) == 1
        later = [place for place, path in enumerate(asked) if path.startswith("/model/") or path.endswith(".wasm.gz")]
        assert min(later) > asked.index("/library/0000.json.gz"), "the rows come first"


def test_no_request_leaves_the_host(host, tab):
    one = tab()
    asked: list[str] = []
    one.page.on("request", lambda request: asked.append(request.url))
    one.page.goto(host)
    one.ready().ask("clock")
    assert len(asked) > 15
    assert {address for address in asked if not address.startswith((host, "blob:", "data:"))} == set()


# --- A server behind the page, and very many pictures

COUNT = 260_000


def picture(number: int) -> dict[str, object]:
    return {
        "id": str(number),
        "name": f"photos/{number % 7}/{number}.jpg",
        "caption": f"red heart {number}",
        "folder": str(number % 7),
        "date": "2026-03-01T12:00:00",
        "size": 1000 + number,
        "width": 640,
        "height": 480,
        "fields": {},
        "is_there": True,
    }


class Server(StaticHost):
    """Answers as `grr-coca serve` does, from nothing."""

    key: str | None = None
    loading = 0
    """So many times, the server says that it is not ready."""
    busy = 0
    """So many times, there is no map."""
    count = COUNT
    breaks_off = False
    """A caption ends before it is whole."""
    cannot_read = False
    """The dropped picture is refused."""
    may_explain: threading.Event | None = None
    may_search: threading.Event | None = None
    facets: ClassVar[list[dict[str, object]]] = [{"field": "size", "kind": "number", "min": 1000, "max": 261_000}]
    breaks_images = False
    """Thumbnails are answered by an error."""
    unfamiliar = False
    """All pictures are unlike what the model knows."""

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY)
        super().end_headers()

    def answer(self, content: object, status: int = 200, kind: str = "application/json") -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == 204:
            self.send_header("Set-Cookie", "key=good")
        self.end_headers()
        with suppress(ConnectionError):  # the page has asked for something else
            self.wfile.write(body)

    def refuse(self, status: int, message: str) -> None:
        self.answer({"error": {"message": message, "type": "refused"}}, status)

    def do_GET(self) -> None:
        path, _, given = self.path.partition("?")
        asked = dict(part.split("=") for part in given.split("&") if part)
        if (
            self.key is not None
            and path != "/"
            and "." not in path
            and "key=good" not in self.headers.get("Cookie", "")
        ):
            return self.refuse(401, "This server requires a key.")
        if path == "/info":
            if self.loading > 0:
                type(self).loading -= 1
                return self.refuse(503, "the model is being loaded")
            can = ["search", "caption", "tags", "explain"]
            facts = {"title": "Photos", "pictures": self.count, "model": "b32", "engine": "onnx", "can": can}
            return self.answer(facts)
        if path == "/pictures":
            first = int(asked["offset"])
            return self.answer(
                {"total": self.count, "pictures": [picture(first + i) for i in range(int(asked["limit"]))]}
            )
        if path == "/facets":
            return self.answer({"facets": self.facets})
        if path == "/duplicates":
            same = [{**picture(i), "name": f"sets/a.tar: {i}.webp"} for i in range(2)]
            return self.answer({"total": 1, "sizes": [2], "groups": [same]})
        if path == "/health":
            return self.answer({"status": "ok"})
        if path.startswith("/picture/"):
            return self.answer(picture(int(path.rpartition("/")[2])))
        if path.startswith("/image/"):
            if self.breaks_images:
                return self.refuse(504, "The server is busy.")
            file = FILES / "icon.svg"
            return self.answer(file.read_bytes(), kind="image/svg+xml")
        return super().do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/session":
            right = json.loads(body)["key"] == "right"
            return self.answer(b"", 204) if right else self.refuse(401, "The key is wrong.")
        if self.path == "/search":
            query = json.loads(body)
            if query["texts"] == ["refuse"]:
                return self.refuse(504, "The model took too long.")
            if self.may_search is not None:
                assert self.may_search.wait(60)
            first = query["offset"]
            more = {"score": 0.3, "relevance": 0.5, "copies": []}
            if self.unfamiliar:
                more["fields"] = {"unfamiliar": "yes"}
            hits = [{**picture(first + i), **more} for i in range(query["limit"])]
            return self.answer(
                {
                    "hits": hits,
                    "more": first < 500,
                    "searched": self.count,
                    "verdict": "likely",
                    "num_likely": len(hits),
                    "facets": [],
                    "can_tell": True,
                    "asked": query,
                }
            )
        if self.path == "/caption?tags=5":
            tags = [{"tag": tag, "probability": 0.5} for tag in ("love", "valentine")]
            return self.answer({"caption": "red heart", "tags": tags})
        if self.path == "/caption":
            if self.cannot_read:
                return self.refuse(415, "the picture: corrupt")
            stream = 'data: {"text": "red"}\n\ndata: {"text": "red heart"}\n\n'
            if not self.breaks_off:
                shown = {"text": "red heart", "confidence": None, "unfamiliar": self.unfamiliar}
                stream += f"event: done\ndata: {json.dumps(shown)}\n\n"
            return self.answer(stream.encode(), kind="text/event-stream")
        if self.path.startswith("/explain"):
            if self.may_explain is not None:
                assert self.may_explain.wait(30)
            if self.busy > 0:
                type(self).busy -= 1
                return self.refuse(429, "too many pictures wait")
            heat = [[float(x == y) for x in range(4)] for y in range(4)]
            words = [{"word": word, "heat": heat} for word in ("red", "heart")]
            return self.answer({"caption": "red heart", "square": [-0.1, 0, 0.9, 1], "words": words})
        return self.refuse(404, "There is no such thing here.")


@pytest.fixture
def at(tab):
    """Opens the page of a server with these values."""
    with ExitStack() as hosts:
        yield lambda **values: tab(hosts.enter_context(hosted(server(**values))))


def server(**values: object):
    return functools.partial(type("Server", (Server,), values), directory=str(FILES))


def test_word_shows_its_heat_map(photo, at):
    one = at().ready().ask("red heart")
    assert one.captions(2) == ["red heart 0", "red heart 1"]
    one.page.set_input_files("#file", photo)
    word = one.page.get_by_role("button", name="heart", exact=True)
    word.click()
    one.page.locator("#dropped canvas").wait_for()
    assert word.get_attribute("aria-pressed") == "true"
    word.click()
    one.page.locator("#dropped canvas").wait_for(state="detached")
    one.settled().page.locator("#pictures .tile").first.click()
    one.page.locator("#detail .word").first.click()
    one.page.locator("#detail canvas").wait_for()


def test_message_of_the_server_names_the_file(photo, at):
    one = at(cannot_read=True).ready()
    one.page.set_input_files("#file", photo)
    one.page.locator(f"#message:text-is('{photo.name}: corrupt')").wait_for()
    one.errors.clear()  # the browser reports the status


def test_duplicates_in_a_shard_have_their_own_names(at):
    one = at().ready()
    one.page.locator("#show-duplicates").click()
    one.page.locator("#duplicates section").first.wait_for()
    assert one.page.locator("#duplicates .line").all_inner_texts() == ["0.webp", "1.webp"]


def test_further_words_for_an_image_are_shown_and_search(photo, at):
    one = at().ready()
    one.page.set_input_files("#file", photo)
    word = one.page.get_by_role("button", name="valentine", exact=True)
    word.wait_for()
    assert one.page.locator("#dropped .tags li").all_inner_texts() == ["love", "valentine"]
    word.click()
    one.settled()
    assert one.page.locator("#query").input_value() == "valentine"
    assert one.page.locator("#dropped").is_hidden()


def test_refusal_of_the_server_is_shown(at):
    one = at().ready().ask("refuse")
    assert one.page.locator("#message").inner_text() == "The model took too long."
    one.ask("red heart")
    assert one.page.locator("#message").is_hidden()
    one.errors.clear()  # the browser notes the status


def test_caption_that_breaks_off_is_not_taken_for_the_whole(photo, at):
    one = at(breaks_off=True).ready()
    one.page.set_input_files("#file", photo)
    one.page.locator("#message", has_text="The server closed the connection. Is it still running?").wait_for()
    assert one.page.locator("#dropped").is_hidden()


def test_wrong_key_is_reported_and_requested_again(at):
    one = at(key="right")
    one.page.get_by_label("API key").fill("wrong")
    one.page.get_by_role("button", name="Continue").click()
    one.page.locator("#key-title", has_text="Wrong key").wait_for()
    one.page.get_by_label("API key").fill("right")
    one.page.get_by_role("button", name="Continue").click()
    assert one.ready().ask("red heart").captions(1) == ["red heart 0"]
    one.errors.clear()  # the browser notes the status


def test_unavailable_server_is_shown_and_retried(tab):
    with hosted(server()) as address:
        one = tab(address).ready().ask("red heart")
        port = int(address.rpartition(":")[2].strip("/"))
    one.page.locator("#query").fill("blue heart")
    one.page.locator("#message", has_text="Cannot reach the server. Trying again.").wait_for()
    assert "These are earlier results." in one.page.locator("#message").inner_text()
    assert one.settled().captions(1) == ["red heart 0"], "they stay"
    dimmed = "() => Number(getComputedStyle(document.querySelector('#pictures')).opacity) < 0.6"
    one.page.wait_for_function(dimmed)
    assert "no longer there" not in one.page.locator("main").inner_text()
    with hosted(server(), port):
        one.page.locator("#pictures .tile").first.wait_for()
        one.page.locator("#message").wait_for(state="hidden")
        one.page.wait_for_function(f"() => !({dimmed})()")
        assert one.captions(1) == ["red heart 0"]
    one.errors.clear()  # the browser notes that there was no answer


def test_failed_thumbnail_is_not_shown_as_deleted(at):
    one = at(breaks_images=True).ready()
    one.page.locator("#pictures li.unloaded").first.wait_for()
    assert one.page.locator("#pictures li.gone").count() == 0
    one.errors.clear()  # the browser notes the status


def test_slow_answer_shows_a_note(tab):
    may_search = threading.Event()
    with hosted(server(may_search=may_search)) as address:
        one = tab()
        one.page.clock.install()
        one.page.goto(address)
        one.page.wait_for_selector("body[data-state=ready]")
        one.page.locator("#query").fill("slow")
        one.page.wait_for_selector("body.busy")
        one.page.clock.run_for(11_000)
        assert one.page.locator("#message").inner_text() == "This is taking longer than usual…"
        may_search.set()
        one.page.locator("#message").wait_for(state="hidden")


def test_unfamiliar_image_is_not_named_by_its_guess(photo, at):
    one = at(unfamiliar=True).ready().ask("red heart")
    assert one.captions(1) == ["0"], "the file name leads"
    one.page.locator("#pictures .tile").first.click()
    assert one.page.locator("#detail h2").inner_text() == "0"
    shown = one.page.locator("#detail .said").inner_text()
    assert "Outside this model's domain. Best guess:" in shown
    assert "red heart 0" in shown
    one.page.keyboard.press("Escape")
    one.page.set_input_files("#file", photo)
    one.page.locator("#dropped.unfamiliar").wait_for()
    assert one.page.locator("#dropped .eyebrow").inner_text() == "Outside this model's domain. Best guess:"


def test_page_waits_until_the_model_is_loaded(at):
    one = at(loading=2)
    one.page.locator("#status", has_text="the model is being loaded").wait_for()
    assert one.ready().ask("red heart").captions(1) == ["red heart 0"]
    one.errors.clear()  # the browser notes the status


def test_rejected_heat_map_can_be_requested_again(at):
    one = at(busy=1).ready().ask("red heart")
    one.page.locator("#pictures .tile").first.click()
    word = one.page.locator("#detail .word").first
    word.click()
    one.page.locator("#message", has_text="too many pictures wait").wait_for(state="attached")
    word.click()
    word.click()
    one.page.locator("#detail canvas").wait_for()
    one.errors.clear()  # the browser notes the status


def test_map_does_not_lie_over_the_next_image(drawings, at):
    may_explain = threading.Event()
    first, second, *_ = sorted((drawings / "things").glob("*.webp"))
    one = at(may_explain=may_explain).ready()
    one.page.set_input_files("#file", first)
    one.page.get_by_role("button", name="heart", exact=True).click()
    with one.page.expect_response("**/caption"):
        one.page.set_input_files("#file", second)
    one.page.locator("#dropped .word").first.wait_for()
    with one.page.expect_response("**/explain") as explained:
        may_explain.set()
    explained.value.finished()
    one.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert one.page.locator("#dropped canvas").count() == 0


def test_very_many_images_scroll(at):
    one = at().ready()
    assert one.page.evaluate("document.documentElement.scrollHeight") > 5_000_000
    for share in (0.001, 0.3, 0.5, 0.9, 1):
        one.page.evaluate("(share) => scrollTo(0, share * document.documentElement.scrollHeight)", share)
        one.page.wait_for_timeout(200)
    one.page.get_by_role("button", name=f"red heart {COUNT - 1}", exact=True).wait_for()
    assert one.page.locator("#pictures li").count() < 200


def longest_task(trace: bytes) -> float:
    """Milliseconds of processor time of the longest task of a page. On a busy machine, tasks last longer."""
    events = json.loads(trace)["traceEvents"]
    threads = {
        (event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"
    }
    tasks = [
        event["tdur"] / 1000
        for event in events
        if "RunTask" in event["name"]
        and threads.get((event["pid"], event["tid"])) == "CrRendererMain"
        and "tdur" in event
    ]
    assert tasks
    return max(tasks)


def test_task_time_does_not_depend_on_the_number_of_images(browser, tab):
    def scrolled(count: int) -> float:
        with hosted(server(count=count)) as address:
            one = tab(address).ready()
            browser.start_tracing(page=one.page, categories=["toplevel", "devtools.timeline"])
            for _ in range(40):
                one.page.mouse.wheel(0, 3000)
                one.page.wait_for_timeout(30)
            for share in (0.2, 0.4, 0.6, 0.8):
                one.page.evaluate("(share) => scrollTo(0, share * document.documentElement.scrollHeight)", share)
                one.page.wait_for_timeout(200)
            return longest_task(browser.stop_tracing())

    few, many = scrolled(600), scrolled(COUNT)
    assert many < 5 * few, f"{many} ms, not {few} ms"


def test_no_page_task_is_as_long_as_a_sort(host, browser, photo, tab):
    """Of 400,000 numbers: two tenths of a second, which is about when people notice that they wait."""
    one = tab()
    browser.start_tracing(page=one.page, categories=["toplevel", "devtools.timeline"])
    one.page.goto(host)
    one.ready()
    for words in ("clock", "red heart", "face"):
        one.ask(words)
    one.page.set_input_files("#file", photo)
    one.captioned()
    one.settled()
    longest = longest_task(browser.stop_tracing())
    browser.start_tracing(page=one.page, categories=["toplevel", "devtools.timeline"])
    one.page.evaluate("Array.from({ length: 4e5 }, Math.random).sort((a, b) => a - b).length")
    sort = longest_task(browser.stop_tracing())
    assert longest < sort, f"{longest} ms; the sort takes {sort} ms"


# --- Modules by themselves


@pytest.fixture
def blank(tab, tmp_path):
    """An empty page beside our files and those of a site with one drawing, without a worker."""
    folder = tmp_path / "files"
    shutil.copytree(FILES, folder)
    (folder / "worker.js").write_text("")
    (folder / "drawings").mkdir()
    (folder / "drawings" / "0.json.gz").write_bytes(gzip.compress(b'[{"box": [0, 0, 9, 9], "body": "<path/>"}]'))
    facts = {"title": "a", "can": [], "model": {"name": "a"}, "thumbnails": {"kind": "svg", "folder": "drawings"}}
    (folder / "site.json").write_text(json.dumps(facts))
    with hosted(static(folder)) as address:
        yield tab(f"{address}blank.html").page


def test_drawings_change_their_colour_with_the_scheme(blank):
    draw = """async () => {
        window.graphs ??= new (await import("./graphs.js")).Graphs(() => {});
        if (!graphs.ready) await graphs.info();
        return (await fetch(await graphs.image({ id: "0", drawing: [0, 0] }))).text();
    }"""
    blank.emulate_media(color_scheme="light")
    assert "#1b1b1a" in blank.evaluate(draw)
    blank.emulate_media(color_scheme="dark")
    assert "#eceae6" in blank.evaluate(draw)


def test_file_that_has_changed_has_another_thumbnail(blank):
    addresses = blank.evaluate(
        """async () => {
            const http = new (await import("./http.js")).Http();
            const [id, date, size] = ["0123456789abcdef", "2026-03-01T12:00:00", 5];
            const entries = [{ id, date, size }, { id, date, size: 6 }, { id, date: "2026-03-02T12:00:00", size }];
            return Promise.all([...entries, entries[0]].map((entry) => http.image(entry)));
        }"""
    )
    assert len(set(addresses)) == 3
    assert addresses[0] == addresses[3]


def test_lists_of_a_large_index_are_requested_until_ready(blank):
    asked, shown = blank.evaluate(
        """async () => {
            const { Http } = await import("./http.js");
            const http = new Http();
            const asked = [];
            const late = () => Response.json({ error: { message: "too busy" } }, { status: 504 });
            globalThis.fetch = async (path) => {
                asked.push(path.split("?")[0]);
                return asked.length % 3 ? late() : Response.json({ facets: [], total: 0 });
            };
            await http.facets();
            await http.pictures({}, 0, 100);
            await http.duplicates(0, 50);
            globalThis.fetch = async () => late();
            const shown = await http.facets().catch((error) => error.message);
            return [asked, shown];
        }"""
    )
    assert asked == [*["facets"] * 3, *["pictures"] * 3, *["duplicates"] * 3]
    assert shown == "too busy"


def test_image_that_is_not_found_late_does_not_hide_another(blank):
    gone = blank.evaluate(
        """async () => {
            const { Grid } = await import("./grid.js");
            document.body.innerHTML = `<main><ul style="--tile: 100px; --gap: 5px; --under: 5px"></ul></main>`;
            let fail;
            const image = ({ id }) => (id ? Promise.resolve("data:,") : new Promise((_, reject) => (fail = reject)));
            const describe = () => ({ caption: "a", relevance: "", alike: "" });
            const list = document.querySelector("ul");
            const grid = new Grid(list, { image, describe });
            const show = (id) => grid.show({ count: 1, entries: [{ id }], more: async () => [] });
            show(0);
            while (!fail) await new Promise((resolve) => setTimeout(resolve));
            const late = fail;
            show(1);
            list.querySelector("img").src = "data:image/gif;base64,R0lGODlhAQABAAAAACw=";
            late(new Error("not found"));
            await new Promise((resolve) => setTimeout(resolve));
            return list.querySelectorAll(".gone").length;
        }"""
    )
    assert gone == 0


def test_only_images_that_are_new_and_still_wanted_are_requested(blank):
    requested = blank.evaluate(
        """async () => {
            const { Grid } = await import("./grid.js");
            document.body.innerHTML = `<main><ul style="--tile: 100px; --gap: 5px; --under: 5px"></ul></main>`;
            const requested = [];
            const image = async ({ id }) => requested.push(id) && "data:image/gif;base64,R0lGODlhAQABAAAAACw=";
            const known = ({ id }) => (id === "known" ? "data:image/gif;base64,R0lGODlhAQABAAAAACw=" : undefined);
            const describe = ({ id }) => ({ caption: id, set: "", alike: "", hint: id });
            const grid = new Grid(document.querySelector("ul"), { image, known, describe });
            const show = (...ids) => {
                const entries = ids.map((id) => ({ id }));
                grid.show({ count: ids.length, entries, more: async () => [] });
            };
            const tick = () => new Promise((resolve) => setTimeout(resolve));
            const drawn = async (count) => {
                while (document.querySelectorAll("img[src]").length < count) await tick();
            };
            show("replaced", "stays");
            show("first", "stays");
            await drawn(2);
            show("other", "stays", "known");
            await drawn(3);
            return [requested, [...document.querySelectorAll(".caption")].map(({ textContent }) => textContent)];
        }"""
    )
    assert requested == [["first", "stays", "other"], ["other", "stays", "known"]]


def test_file_that_cannot_be_kept_is_shown(blank):
    shown = blank.evaluate(
        """async () => {
            const code = await (await fetch("offline.js")).text();
            const listeners = {};
            const put = () => Promise.reject(new DOMException("full", "QuotaExceededError"));
            const full = { match: async () => undefined, put };
            new Function("addEventListener", "caches", "registration", "fetch", code)(
                (kind, listener) => (listeners[kind] = listener),
                { open: async () => full },
                { scope: "http://a/" },
                async () => new Response("a picture"),
            );
            let answer;
            const request = { method: "GET", url: "http://a/1.webp" };
            listeners.fetch({ request, respondWith: (given) => (answer = given) });
            return (await answer).text();
        }"""
    )
    assert shown == "a picture"


def test_new_version_of_a_site_keeps_no_file_of_the_old_one(blank, tmp_path):
    def write(content, age):
        for name in ("kept.txt", "shown.txt"):
            path = tmp_path / "files" / name
            path.write_text(content)
            os.utime(path, (time.time() - age, time.time() - age))

    write("old", 30 * 86400)  # browsers do not ask again soon for what has not changed for so long
    read = """() => Promise.all(["kept.txt", "shown.txt"].map(async (name) => (await fetch(name)).text()))"""
    assert blank.evaluate(read) == ["old", "old"]
    write("new", 0)
    blank.evaluate(
        """async () => {
            const { serviceWorker } = navigator;
            await serviceWorker.register("offline.js");
            const { active } = await serviceWorker.ready;
            const come = (kind) =>
                new Promise((resolve) => serviceWorker.addEventListener(kind, resolve, { once: true }));
            if (!serviceWorker.controller) await come("controllerchange");
            const kept = come("message");
            active.postMessage({ keep: [new URL("kept.txt", location).href] });
            await kept;
        }"""
    )
    assert blank.evaluate(read) == ["new", "new"]


def test_relevance_matches_python(blank):
    curve = RelevanceCurve(per_deviation=1, per_agreement=2, per_log_images=-0.5, offset=-1)
    found = blank.evaluate(
        """async ({ curve, ranking }) => {
            const { Library, relevance } = await import("./library.js");
            const library = new Library({ count: 2, width: 2, sample: [0, 1], curve, ranking, groups: [] });
            library.size = library.numEmbedded = 2;
            const [query, other] = [Float32Array.of(1, 0), Float32Array.of(0, 1)];
            return relevance(library.background(query, [query], [other], 0), 1, query);
        }""",
        {"curve": to_dict(curve), "ranking": RANKING},
    )
    query, other = np.eye(2)[:1], np.eye(2)[1:]
    (expected,) = curve.relevances(hit_features(query[0], np.ones(1), np.zeros((2, 2)), query, query, other))
    assert found == pytest.approx(expected)
