"""Pages from Markdown: what people wrote is text, and pictures are in the page."""

import base64

import pytest

from grr_coca_study.html_page import escape_markdown, html_page, markdown_picture, markdown_table


@pytest.mark.parametrize("text", ["x_y* <b> & [c](d)|", "`e` ![f](g) \\ &amp;", "# h", "http://example.org <a@b.c>"])
def test_escaped_text_is_shown_verbatim(text):
    page = html_page("t", markdown_table((escape_markdown(text),), ()), {})
    shown = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"<th>{shown}</th>" in page


def test_images_are_in_the_page_and_named(tmp_path):
    shown = {"figures/a b.svg": "<svg>plot</svg>", "caf\udce9.webp": b"bytes"}
    lines = [markdown_picture("x_y*", path) for path in (*shown, "nowhere.webp")]
    page = html_page("t", "\n\n".join(lines), shown)
    assert '<span class="figure" role="img" aria-label="x_y*"><svg>plot</svg></span>' in page
    assert f'<img src="data:image/webp;base64,{base64.b64encode(b"bytes").decode()}" alt="x_y*"' in page
    assert "<p><em>x_y*</em></p>" in page, "a picture that is missing is shown by its name"
    assert page.count("src=") == 1


def test_html_in_markdown_is_text():
    page = html_page("a < b", "<script>alert(1)</script>\n\n[x](javascript:alert)", {})
    assert "<title>a &lt; b</title>" in page
    assert "<script" not in page
    assert "href" not in page


def test_numbers_are_right_aligned():
    assert markdown_table(("arm", "n"), [("one", "1"), ("a", "10")], of_numbers=True) == (
        "| arm |   n |\n| --- | --: |\n| one |   1 |\n| a   |  10 |\n"
    )
