"""Words that the tokenizer treats specially. Case does not matter, unless a list says otherwise.

Abbreviations are listed without their point, but the point is part of the token.
"""

MONTHS_AND_DAYS = "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri"
STATES = "ala ariz calif colo conn ct fla ga ind ky md mich minn mo mont nev okla penn tenn va vt wis wyo"
CAPITALIZED_STATES = "Az Ark Del Ill La Mass Miss Ore Pa Tex Wash"
"""Abbreviations only if they are written with this case."""
COMPANIES = (
    "inc co cos corp pty pte ptes ltd plc rt bancorp bhd assn univ intl sys bldg blvd rd tel est ext sq etc al seq jr "
    "sr bros esq ph.d ed.d"
)

TITLES = (
    "mr mrs ms dr drs prof profs sen sens rep reps atty attys lt col gen messrs gov govs adm rev maj sgt cpl pvt capt "
    "st ste ave pres lieut hon brig cmdr comdr pfc spc supt supts det mt ft adj adv asst assoc ens insp mlle mme msgr "
    "sfc invt elec natl mfg mtg dept vs alex wm jos cie cf treas ph"
)
BEFORE_NUMBERS = "ca fig figs prop no nos art pp op"
"""Abbreviations only if a number follows."""
SENTENCE_STARTS = "A He In It She The There They This"
"""Before one of these words, a point after a single letter ends the sentence. Case matters here."""

TWO_WORDS = "can-not gon-na got-ta lem-me gim-me wan-na 't-is 't-was"
KEPT_APOSTROPHES = "c'mon e'er li'l s'mores"
SYMBOLS = "¥ § © ® ° ± ´ ¶ · ¿ × ÷ „ † ‡ • ′ ″ ‚ ‟ № ™"
"""Symbols that are tokens, besides those in ASCII and in the block of arrows, shapes and pictures."""


def any_of(words: str) -> str:
    """A pattern that matches any of the words, the longest first."""
    return "|".join(word.replace(".", "[.]") for word in sorted(words.split(), key=len, reverse=True))
