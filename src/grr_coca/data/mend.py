"""Repair of text that was decoded wrongly or escaped, as open_clip does it before it cuts a text into tokens."""

import html

from grr_coca.extras import require_extra


def mend_text(text: str) -> str:
    """The text with mojibake repaired (`cafÃ©` to `café`), ligatures and full-width letters made plain, and HTML
    entities replaced (`a &amp;amp; b` to `a & b`).

    Raises:
        UserError: ftfy is not installed.
    """
    if not text:
        return text
    require_extra("open-clip", "cleaning texts as open_clip does")
    import ftfy  # late: only models of open_clip need it

    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()
