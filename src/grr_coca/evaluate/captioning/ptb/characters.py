"""The character classes of the Penn Treebank tokenizer, recorded from Stanford's, one character at a time.

It was built on the Unicode of its day: later letters are unknown to it, and so is all that lies outside the basic
plane, emoji included. What it does not know it deletes.
"""

import unicodedata
from functools import cache

MARKS_IN_WORDS = (
    "2C2-2C5 2D2-2DF 2E5-2EB 2ED 2EF-36F 375 378-379 384-385 3F6 483-487 55A-55F 591-5BD 5BF 5C1-5C2 5C4-5C5 5C7 "
    "615-61A 64B-65E 670 6D6-6E4 6E7-6ED 6FD-6FE 70F 711 730-74C 7A6-7B0 7EB-7F3 900-903 93C 93E-94E 951-955 962-963 "
    "981-983 9BC 9BE-9C4 9C7-9C8 9CB-9CD 9D7 9E2-9E3 A01-A03 A3C A3E-A4F A81-A83 ABC ABE-ACF B82 BBE-BC2 BC6-BC8 "
    "BCA-BCD C01-C03 C3E-C56 D3E-D44 D46-D48 E31 E34-E3A E47-E4E EB1 EB4-EBC EC8-ECD 1885-1886"
)
"""Letters of a word that Unicode does not call letters, as hexadecimal ranges."""

UNKNOWN_LETTERS = (
    "37F 528-52F 560 588 5EF 860-86A 870-887 889-88E 8A1 8AD-8C9 978 980 9FC AF9 C34 C5A C5D C80 CDD D04 D54-D56 "
    "D5F DE6-DEF E86 E89 E8C E8E-E93 E98 EA0 EA8-EA9 EAC 13F5 13F8-13FD 16F1-16F8 170D 171F 1878 191D-191E "
    "19B0-19C0 19C8-19C9 1B4C 1C80-1C88 1C90-1CBA 1CBD-1CBF 1CF2-1CF3 1CFA 2C2F 2C5F 312E-312F 31BB-31BF "
    "4DB6-4DBF 9FCD-9FFF A698-A69D A78F A794-A79F A7AB-A7CA A7D0-A7D1 A7D3 A7D5-A7D9 A7F2-A7F7 A8FD-A8FE "
    "A9E0-A9E4 A9E6-A9FE AA7E-AA7F AB30-AB5A AB5C-AB69 AB70-ABBF"
)
"""Letters and digits that came after it."""

SYMBOLS = (
    "A1 A5-A9 AC AE-B4 B6-B9 BF D7 F7 37E 387 589 5BE 5C0 5C3 5C6 5F3-5F4 600-603 606-60C 614 61B 61E-61F 66A 66D "
    "6D4 700-70D 7F6-7F8 964-965 E3F E4F 1FBD 2016-2017 201A 201E-2023 2030-2038 203B 203E-2042 2044 2070 "
    "2074-207E 2080-208E 20A4 2100-2101 2103-2106 2108-2109 2114 2116-2118 211E-2123 2125 2127 2129 212E "
    "213A-213B 2140-2144 214A-214D 214F 2155-215E 2190-2BFF 3001-3002 3012 30FB FF01-FF0F FF1A-FF20 FF3B-FF40 "
    "FF5B-FF65 FFE0-FFE1 FFE5-FFE6"
)
"""What stands alone as a token, beyond ASCII."""


def expand(ranges: str) -> list[tuple[int, int]]:
    """Hexadecimal ranges as pairs of code points, both ends counted."""
    pairs = [(part.split("-")[0], part.split("-")[-1]) for part in ranges.split()]
    return [(int(first, 16), int(last, 16)) for first, last in pairs]


def char_class(ranges: list[tuple[int, int]]) -> str:
    """The inside of a regular expression's character class."""
    return "".join(rf"\u{first:04x}-\u{last:04x}" for first, last in ranges)


@cache
def letters() -> str:
    """The inside of a class of all letters that it knows."""
    return char_class(_known("L"))


@cache
def digits() -> str:
    """The inside of a class of all decimal digits that it knows."""
    return char_class(_known("Nd"))


def _known(category: str) -> list[tuple[int, int]]:
    unknown = {code for first, last in expand(UNKNOWN_LETTERS) for code in range(first, last + 1)}
    ranges: list[tuple[int, int]] = []
    for code in range(0x10000):
        if unicodedata.category(chr(code)).startswith(category) and code not in unknown:
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1] = (ranges[-1][0], code)
            else:
                ranges.append((code, code))
    return ranges
