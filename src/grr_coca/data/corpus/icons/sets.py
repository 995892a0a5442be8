"""Which icon sets are in the corpus: permissive licences, no emoji, logos, flags, and not what `health` is made of."""

from collections.abc import Mapping
from dataclasses import dataclass

LICENCES = frozenset({"MIT", "Apache-2.0", "ISC", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0", "CC-BY-3.0"})
"""SPDX names. No NC, SA or GPL; the few fonts under OFL, and MPL and Unlicense, are left out too."""

LEFT_OUT_CATEGORIES = frozenset({"Emoji", "Logos"})
LEFT_OUT_WORDS = ("emoji", "flag", "logos", "brands")
_SOFTWARE = "devicon devicon-plain skill-icons vscode-icons material-icon-theme file-icons catppuccin gcp k8s unjs"
LEFT_OUT_SETS = frozenset({"healthicons", *_SOFTWARE.split()})
"""`healthicons` is the corpus `health`; the others are signs of software and of its files, logos under another
category."""

LOGO_SETS = ("simple-icons", "logos", "cib", "fa7-brands", "bxl", "streamline-logos")
"""Sets of logos whose names tell which icons of other sets are logos."""


@dataclass(frozen=True, kw_only=True)
class IconSet:
    """One set: its prefix in Iconify, and what a notice of it must say."""

    prefix: str
    title: str
    author: str
    url: str
    licence: str

    @classmethod
    def of(cls, prefix: str, about: Mapping) -> "IconSet":
        """The set of an entry of Iconify's `collections.json`."""
        author = about["author"]
        return cls(
            prefix=prefix,
            title=about["name"],
            author=author["name"],
            url=author.get("url", ""),
            licence=about["license"]["spdx"],
        )


def why_left_out(prefix: str, about: Mapping) -> str | None:
    """The reason for which a set is not in the corpus; None if it is."""
    title = about["name"].lower()
    if about["license"].get("spdx") not in LICENCES:
        return "licence"
    if about.get("category") in LEFT_OUT_CATEGORIES or any(word in f"{title} {prefix}" for word in LEFT_OUT_WORDS):
        return "emoji, logos or flags"
    return "another corpus, or signs of software" if prefix in LEFT_OUT_SETS else None


def kept_sets(collections: Mapping[str, Mapping]) -> dict[str, IconSet]:
    """The sets of the corpus, by prefix, in alphabetical order."""
    return {
        prefix: IconSet.of(prefix, about)
        for prefix, about in sorted(collections.items())
        if why_left_out(prefix, about) is None
    }
