"""Untrusted SVG files on the page: no scripts, no references, and a policy that allows neither."""

import pytest
from PIL import Image
from serving import serving

from grr_coca_search.index import Index
from grr_coca_serve.svg_cleaning import clean_svg

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 24 24"'
EVIL = [
    "<script>alert(1)</script>",
    '<path onload="alert(1)" d="M0 0"/>',
    '<a href="javascript:alert(1)"><path/></a>',
    '<image href="https://evil.example/x.png"/>',
    '<image xlink:href="https://evil.example/x.png"/>',
    '<use href="https://evil.example/x.svg#a"/>',
    '<foreignObject><body xmlns="http://www.w3.org/1999/xhtml">evil</body></foreignObject>',
    "<style>@import 'https://evil.example/x.css'; path { fill: url(https://evil.example/x) }</style>",
    '<path style="background: url( https://evil.example/x )"/>',
    '<set attributeName="href" to="https://evil.example"/>',
    '<x:script xmlns:x="http://www.w3.org/2000/svg">alert(1)</x:script>',
    '<script xmlns="http://www.w3.org/1999/xhtml">alert(1)</script>',
]


@pytest.mark.parametrize("evil", EVIL)
def test_scripts_and_references_are_taken_out(evil):
    cleaned = clean_svg(f'{HEAD}><g>{evil}<path d="M1 2h3"/></g></svg>'.encode())
    assert b"M1 2h3" in cleaned
    assert not [word for word in (b"evil", b"alert", b"javascript", b"script") if word in cleaned], cleaned


def test_references_within_the_file_and_embedded_images_stay():
    svg = (
        f'{HEAD} width="24"><defs><linearGradient id="a"/></defs><path fill="url(#a)" d="M1 2"/><use xlink:href="#a"/>'
        '<image href="data:image/png;base64,iVBORw0K"/></svg>'
    )
    cleaned = clean_svg(svg.encode(), "a1b2c3")
    for kept in (b"url(#a)", b'"#a"', b"data:image/png;base64,iVBORw0K", b'width="24"', b'color="#a1b2c3"'):
        assert kept in cleaned


@pytest.mark.parametrize(
    "data",
    [
        b"<html/>",
        b"not xml",
        b'<!DOCTYPE svg [<!ENTITY a "aaaa">]><svg xmlns="http://www.w3.org/2000/svg">&a;</svg>',
        HEAD.encode() + b">" + b"<g>" * 100_000 + b"</g>" * 100_000 + b"</svg>",
        HEAD.encode() + b">" + b" " * 2**21 + b"</svg>",
    ],
    ids=["html", "text", "entities", "deep", "large"],
)
def test_uncleanable_svg_is_not_sent(data):
    assert clean_svg(data) is None


def test_served_svg_files_run_no_scripts(tmp_path):
    icons = tmp_path / "icons"
    icons.mkdir()
    box = '<script>alert(1)</script><path onload="alert(1)" d="M4 4h16v16H4z"/></svg>'
    (icons / "box.svg").write_text(f'{HEAD} fill="none" stroke="currentColor">{box}')
    (icons / "large.svg").write_text(f"{HEAD}>" + '<path d="M1 1h9"/>' * 600 + box)
    Image.new("RGB", (64, 64), "red").save(icons / "red.png")
    with Index.open(tmp_path / "index", create=True) as index:
        index.add(icons)
    with serving(tmp_path / "index") as client:
        plain = client.get("/pictures").json()["pictures"], client.post("/search", {"texts": ["box"]}).json()["hits"]
        assert not any("svg" in picture for answer in plain for picture in answer)
        listed = client.get("/pictures?svg=true").json()["pictures"]
        for answer in (listed, client.post("/search", {"texts": ["box"], "svg": True}).json()["hits"]):
            (svg,) = [picture["svg"] for picture in answer if "svg" in picture]
            assert "M4 4h16v16H4z" in svg
            assert not any(word in svg for word in ("script", "onload"))
        picture = next(picture for picture in plain[0] if picture["name"].endswith("box.svg"))
        assert picture["is_vector"]
        assert client.get(f"/picture/{picture['id']}").json() == picture
        answer = client.get(f"/vector/{picture['id']}?ink=eceae6")
    assert answer.headers["content-type"] == "image/svg+xml"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none';")
    assert "script" not in policy
    assert b"script" not in answer.body
    assert b'color="#eceae6"' in answer.body
