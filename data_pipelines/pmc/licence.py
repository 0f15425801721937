"""What an article or figure may be used for, as a short name and one of PMC's three groups."""

import functools
import re
from collections.abc import Iterable

GROUPS = ("commercial", "noncommercial", "other")  # PMC's own, of the Open Access subset; narrowing
MOST_CHARS = 5000  # of a text, that are looked at

_TERM = r"(?:non-?commercial|share-?alike|no-?deriv\w*)"
_VERSION = r"(?P<version>\d\.\d)"
_URL = re.compile(
    r"creativecommons\.org/(?:licen[sc]es/(?P<kind>by(?:-(?:nc|sa|nd))*)"
    rf"|publicdomain/(?P<public>zero|mark))(?:/{_VERSION})?",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"\b(?:(?P<zero>CC-?0|CC-ZERO)|CC-?(?P<kind>BY(?:-(?:NC|SA|ND)\b)*))"
    rf"(?:-v?{_VERSION})?\b",
    re.IGNORECASE,
)
# "Attribution 4.0 International License", "Attribution-(NonCommercial, NoDerivs) Works"
_WORDS = re.compile(
    r"creative-commons-(?P<zero>cc0|public-domain|zero)|creative-commons\W{1,3}"
    rf"(?P<kind>attribution(?:\W{{0,4}}(?:{_TERM}|works|licen[sc]e|unported|international|generic"
    rf"|version|v?{_VERSION}))*)",
    re.IGNORECASE,
)
_TERMS = {"-NC": r"\bnc\b|non-?com", "-SA": r"\bsa\b|share", "-ND": r"\bnd\b|deriv"}
# What a caption says of somebody else's figure; a patient permits other things
_CREDIT = re.compile(
    r"\bwith (?:\w+ ){0,3}?permission(?! (?:of|from|by) (?:the |his |her |their )?"
    r"(?:patient|parent|famil|participant|volunteer|subject))"
    r"|\bcopyright (?:\(c\)|©|\d{4})|©|\ball rights reserved",
    re.IGNORECASE,
)
_CREDIT_SIGNS = ("ermission", "opyright", "ights reserved", "PERMISSION", "COPYRIGHT", "©")
_JOINTS = re.compile(r"[\s\u2010-\u2015\u2212-]+")  # "Attribution – Non Commercial", "CC BY‐NC"


def licence_name(text: str) -> str:
    """The Creative Commons licence that a text, address or PMC code names, or "".

    "http://creativecommons.org/licenses/by-nc/4.0/" -> "CC BY-NC 4.0"; "CC0" -> "CC0".
    """
    return _licence_name(text[:MOST_CHARS])


@functools.lru_cache(maxsize=1024)  # publishers say the same in each article
def _licence_name(text: str) -> str:
    text = _JOINTS.sub("-", text)
    found = _URL.search(text) or _CODE.search(text) or _WORDS.search(text)
    if not found:
        return ""
    groups = found.groupdict()
    version = f" {groups['version']}" if groups["version"] else ""
    if groups.get("public") == "mark":
        return "Public Domain Mark" + version
    if not (kind := groups["kind"]):
        return "CC0" + version
    terms = (term for term, sign in _TERMS.items() if re.search(sign, kind, re.IGNORECASE))
    return "CC BY" + "".join(terms) + version


def licence_group(name: str) -> str:
    """commercial, noncommercial or other: "CC BY-ND 4.0" -> "commercial", "" -> "other"."""
    name = licence_name(name) or name
    if name.startswith(("CC0", "Public Domain")):
        return "commercial"
    if not name.startswith("CC BY"):
        return "other"
    return "noncommercial" if "-NC" in name else "commercial"


def narrowest(texts: Iterable[str]) -> str:
    """The licence that texts name; where an address and the words beside it differ, the one of the
    narrower group. "" where none names any."""
    names = [name for text in texts if (name := licence_name(text))]
    return max(names, key=lambda name: GROUPS.index(licence_group(name)), default="")


def is_of_others(caption: str) -> bool:
    """Whether a caption says that the figure is somebody else's: "Reprinted with permission." """
    is_likely = any(map(caption.__contains__, _CREDIT_SIGNS))  # spares nearly all the search
    return is_likely and bool(_CREDIT.search(caption))
