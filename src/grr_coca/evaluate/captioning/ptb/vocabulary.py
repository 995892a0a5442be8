"""Words that the tokenizer treats in ways of their own, each probed. Without regard to case, but where they say so.

The point of an abbreviation is part of it.
"""

MONTHS_AND_DAYS = "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri"
STATES = (
    "ala ariz calif colo conn ct dak fla ga ind kan kans ky md mich minn mo mont neb nev okla penn tenn va vt wis "
    "wisc wyo"
)
CAPITALIZED_STATES = "Az Ark Del Ill La Mass Miss Ore Pa Tex Wash"
COMPANIES = (
    "inc co cos corp pty pte ptys ptes ppty ppte ltd plc rt bancorp bhd assn univ intl sys bldg blvd rd tel est ext "
    "sq etc al seq jr sr bros esq ph.d ed.d"
)
BEFORE_WORDS = f"{MONTHS_AND_DAYS} {STATES} {COMPANIES}"
"""Kept even where letters follow without a space."""

TITLES = (
    "mr mrs ms dr drs prof profs sen sens rep reps atty attys lt col gen messrs gov govs adm rev maj sgt cpl pvt capt "
    "st ste ave pres lieut hon brig cmdr comdr pfc spc supt supts det mt ft adj adv asst assoc ens insp mlle mme msgr "
    "sfc invt elec natl mfg mtg dept vs v alex wm jos cie a.k.a cf treas ph"
)
BEFORE_NUMBERS = "ca fig figs prop no nos art bldg pp op"
SENTENCE_STARTS = (
    "About According Additionally After An A As At But Earlier He Her Here However If In It Last Many More Mr. Ms. "
    "Now Once One Other Our She Since So Some Such That The Their Then There These They This We When While What Yet "
    "You"
)
"""Before these, a letter with a point is a word at the end of a sentence. Written so."""

FILE_ENDINGS = (
    "3gp avi bat bmp c cgi class cpp dll doc docx exe flv gif gz h htm html jar java jpeg jpg mov mp3 mp4 mpg pdf php "
    "pl png ppt ps py sql tar txt wav wma wmv x xml zip"
)
TWO_WORDS = "can-not gon-na got-ta lem-me gim-me wan-na 't-is 't-was"
KEPT_APOSTROPHES = "c'mon e'er s'mores ev'ry li'l nat'l nor'easter"


def any_of(words: str) -> str:
    """A pattern of any of the words, the longest first."""
    return "|".join(word.replace(".", "[.]") for word in sorted(words.split(), key=len, reverse=True))
