"""What an article or figure may be used for, as a short name and one of PMC's three groups."""

import re

GROUPS = ("commercial", "noncommercial", "other")  # PMC's own, of the Open Access subset

_URL = re.compile(
    r"creativecommons\.org/(?:licen[sc]es/(?P<kind>by(?:-nc)?(?:-(?:sa|nd))?)"
    r"|publicdomain/(?P<public>zero|mark))(?:/(?P<version>\d\.\d))?",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"\b(?:(?P<zero>CC[- ]?0|CC[- ]ZERO)|CC[- ]?(?P<kind>BY(?:[- ]NC)?(?:[- ](?:SA|ND))?))"
    r"(?:[- ](?P<version>\d\.\d))?\b",
    re.IGNORECASE,
)
_WORDS = re.compile(
    r"creative commons (?P<zero>(?:cc0|public domain|zero))|creative commons attribution"
    r"(?P<nc>[- ]?\W?non-?commercial)?(?P<last>[- ]?\W?(?:share-?alike|no-?deriv\w*))?"
    r"(?: (?:works )?licen[sc]e)?(?:\W{0,3}(?:version )?(?P<version>\d\.\d))?",
    re.IGNORECASE,
)


def licence_name(text: str) -> str:
    """The Creative Commons licence that a text, address or PMC code names, or "".

    "http://creativecommons.org/licenses/by-nc/4.0/" -> "CC BY-NC 4.0"; "CC0" -> "CC0".
    """
    if found := _URL.search(text) or _CODE.search(text):
        groups = found.groupdict()
        version = f" {found['version']}" if found["version"] else ""
        if groups.get("public") == "mark":
            return "Public Domain Mark" + version
        if found["kind"]:
            return f"CC {found['kind'].upper().replace(' ', '-')}{version}"
        return "CC0" + version
    if not (found := _WORDS.search(text)):
        return ""
    version = f" {found['version']}" if found["version"] else ""
    if found["zero"]:
        return "CC0" + version
    last = (found["last"] or "").lower().strip("- ")
    kind = "BY" + ("-NC" if found["nc"] else "")
    return f"CC {kind}{'-SA' if 'share' in last else '-ND' if last else ''}{version}"


def licence_group(name: str) -> str:
    """commercial, noncommercial or other: "CC BY-ND 4.0" -> "commercial", "" -> "other"."""
    name = licence_name(name) or name
    if name.startswith(("CC0", "Public Domain")):
        return "commercial"
    if not name.startswith("CC BY"):
        return "other"
    return "noncommercial" if "-NC" in name else "commercial"
