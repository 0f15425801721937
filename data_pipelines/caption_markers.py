"""Where a caption names its panels: candidates in every style, then the one series they form."""

import dataclasses
import itertools
import re
import string
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

ROMANS = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii")
SERIES = {  # the labels there are, in order
    "upper": tuple(string.ascii_uppercase),
    "lower": tuple(string.ascii_lowercase),
    "roman": ROMANS,
    "digit": tuple(str(number) for number in range(1, 31)),
}
ONE = {"upper": "[A-Z]", "lower": "[a-z]", "roman": "x?[ivx]{1,4}", "digit": r"[1-9]\d?"}
# Between labels. Texts have single spaces here, and no two alternatives begin alike: with a choice
# of where a space belongs, a hostile caption would take time exponential in its length.
JOIN = r"(?: ?, ?(?:and |& ?)?| and | ?& ?| ?/ ?| ?[-–—−] ?| to | through )"
PANEL = r"(?:[Pp]anels?|[Ii]mages?|[Ff]ig(?:ure|s?\.)?|[Pp]arts?|[Ss]ubfigures?)"
OPENING = rf"(?:\b(?:In )?{PANEL} |\bIn )"  # "In (A), ...", "Panel (B) shows": of the marker
REFERS = re.compile(r"\b(?:in|from|of|to|see|as|than|with)$")
SHOWN_IN = re.compile(r"\b(?:shown|seen|depicted|displayed|presented|illustrated|given)\s+in$")
CLAUSE_START = re.compile(r"[.:;?!\]]['\"”)]?$")
FUNCTION_WORD = re.compile(
    r"\b(?:and|or|from|of|in|with|whereas|while|the|for|by|as|to|both|on|at|is|are|either)$|,$"
)
ENDS_CLAUSE = re.compile(r"\s*($|[.,;:)\]]|(and|or|but|while|whereas|vs|versus|as well as)\b)")
PLACES = {
    "upper": "top", "lower": "bottom", "center": "middle", "centre": "middle", "central": "middle",
}  # fmt: skip
PLACE = (
    r"(?:(?:upper|lower|top|bottom)[- ])?(?:left|right)"
    r"|upper|lower|top|bottom|middle|cent(?:re|er|ral)"
)
PLACE_NOUN = (
    r"(?:[- ]?(?:hand )?(?:panels?|images?|columns?|rows?|side|graphs?|pictures?|photos?))?"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Marker:
    """Labels at a place in a caption."""

    start: int
    end: int
    labels: tuple[str, ...]
    style: str = "place"
    leads: bool = True  # its text comes after it
    at_start: bool = True  # of a clause


# As Chinese and Cyrillic keyboards write them, one letter for one
_LATIN = str.maketrans("（）［］：；，АВСЕΑΒΕ", "()[]:;,ABCEABE")


def find_markers(text: str) -> list[Marker]:
    """The markers that split `text`, in order; none if it cannot be split.

    Every series of labels (A B C, a b c, i ii iii, 1 2 3) is tried in every style; the one with
    most labels in unbroken order wins. Letters "(a)" nested in "(A)" thereby stay text.
    """
    text = text.translate(_LATIN)
    best: tuple[tuple[int, int, int], list[Marker]] | None = None
    for series, labels in SERIES.items():
        candidates = list(_candidates(text, series))
        for order, styles in enumerate(STYLES):
            same_style = [m for m in candidates if m.style in styles]
            chosen = _all_once(same_style, labels) or _in_order(same_style, labels)
            count = len({label for marker in chosen for label in marker.labels})
            if count < 2 or (series == "digit" and count < 3 and "paren" not in styles):
                continue
            quality = (int(series in ("upper", "lower")), count, -order)
            if best is None or quality > best[0]:
                best = quality, _fill(chosen, candidates, labels)
    return _resolve(text, best[1]) if best else _places(text)


def in_series(labels: Iterable[str]) -> list[str]:
    """`["c", "a", "b"]` -> a b c: in the order of their series; as given, if of none."""
    labels = list(labels)
    names = next((n for n in SERIES.values() if set(labels) <= set(n)), None)
    return sorted(labels, key=names.index) if names else labels


# --- Candidates --------------------------------------------------------------------------------

# each is tried by itself; "tail", as in "(CD34, E-H)", only helps out; a "reference" never does
STYLES = (
    ("paren", "half"),
    ("paren", "tail"),
    ("half",),
    ("colon",),
    ("dot",),
    ("comma",),
    ("panel",),
    ("bare",),
    ("reference",),
)


def _patterns(series: str) -> dict[str, re.Pattern]:
    one = rf"{ONE[series]}['′]?(?!\w)"
    several = rf"\(?{one}\)?(?:{JOIN}\(?{one}\)?){{0,25}}"
    start = r"(?:(?<=[.:;?!\])])\s*|(?<=[.;,] )|(?<=^)|(?<=\band ))"
    dash = r"|\s?[-–—−] " if series == "upper" else ""  # "1 - control, 2 - treated": a legend
    inside = rf"(?:{PANEL}\s+)?(?P<labels>{several})(?:\s*[,;:]\s*(?:{PLACE}){PLACE_NOUN})?"
    patterns = {
        "paren": rf"{OPENING}?[(\[]\s*{inside}\s*[)\]]",
        "tail": rf"[(;,]\s*(?:{PANEL}\s+)?(?P<labels>{several})\s*\)",
        "half": rf"(?<![\w(\[/-])(?P<labels>{one}(?:{JOIN}{one}){{0,25}})\)",
        "colon": rf"{start}(?:{PANEL}\s+)?(?P<labels>{several})(?:\s?:(?=\s|[A-Z]){dash})",
        "dot": rf"{start}(?P<labels>{several})\.\s*(?=[A-Z0-9(\"“])",
        "comma": rf"{start}(?P<labels>{one}(?:{JOIN}{one}){{0,25}})\s?,\s+(?=\S)",
        "panel": rf"\b{PANEL}\s+\(?(?P<labels>{several})\)?(?=[\s,.:])",
        "bare": rf"{start}(?P<labels>{one}(?:{JOIN}{one}){{0,25}})\s+"
        r"(?=[A-Z][a-z]|[A-Z]{2}|[0-9])",
    }
    return {style: re.compile(pattern) for style, pattern in patterns.items()}


PATTERNS = {series: _patterns(series) for series in SERIES}


def _candidates(text: str, series: str) -> Iterator[Marker]:
    """Every place that may name panels of a series, in every style; sorted by place."""
    found: list[Marker] = []
    taken = np.zeros(len(text) + 1, bool)
    letters = np.array(list(text + " "))
    depth = np.cumsum((letters == "(").astype(int) - (letters == ")"))
    for style, pattern in PATTERNS[series].items():
        for match in pattern.finditer(text):
            labels = _expand(match["labels"], series)
            if not labels or taken[match.start() : match.end()].any():
                continue
            is_open = depth[match.start()] > 0
            if (style == "half" and is_open) or (style == "tail" and not is_open):
                continue
            start = match.start() + len(match[0]) - len(match[0].lstrip())
            taken[start : match.end()] = True
            marker = Marker(start, match.end(), labels, style)
            if _is_reference(text, marker):
                found.append(Marker(start, match.end(), labels, "reference", False, False))
            else:
                found.append(_directed(text, marker))
    yield from sorted(found, key=lambda marker: marker.start)


def _expand(written: str, series: str) -> tuple[str, ...]:
    """`"A-C and E"` -> A B C E; nothing if it runs backwards."""
    names = SERIES[series]
    tokens = re.findall(rf"{ONE[series]}(?!\w)|[-–—−]|\bto\b|\bthrough\b", written)
    labels: list[str] = []
    is_range = False
    for token in tokens:
        if token not in names:
            is_range = bool(labels)
        elif is_range and labels[-1] in names and names.index(token) > names.index(labels[-1]):
            labels += names[names.index(labels[-1]) + 1 : names.index(token) + 1]
            is_range = False
        elif labels and names.index(token) <= names.index(labels[-1]):
            return ()
        else:
            labels.append(token)
    return tuple(labels)


def _is_reference(text: str, marker: Marker) -> bool:
    """Whether labels in brackets send to a panel, "the box in (a).", "leaves from panel (b) were",
    and no words about it stand there, as in "The tissue is shown in (a)."."""
    before = text[max(0, marker.start - 40) : marker.start].rstrip()
    if marker.style != "paren" or not REFERS.search(before) or SHOWN_IN.search(before):
        return False
    return text[marker.start].islower() or bool(ENDS_CLAUSE.match(text, marker.end))


def _directed(text: str, marker: Marker) -> Marker:
    """Tells whether a marker's text follows it, "(A) mice", or leads to it, "mice (A)"."""
    before = text[max(0, marker.start - 20) : marker.start].rstrip()
    after = text[marker.end : marker.end + 20]
    at_start = not before or bool(CLAUSE_START.search(before))
    if marker.style not in ("paren", "tail", "half"):
        leads = True
    elif not text[marker.end : marker.end + 3].strip(" ."):
        leads = False
    elif at_start:
        leads = True
    elif ENDS_CLAUSE.match(after):
        leads = False
    else:
        leads = marker.style == "half" or bool(FUNCTION_WORD.search(before))
    return dataclasses.replace(marker, leads=leads, at_start=at_start)


def _resolve(text: str, markers: Sequence[Marker]) -> list[Marker]:
    """After "(A) mice" within one sentence, "(B) rats" cannot be the end of what (A) begins."""
    resolved: list[Marker] = []
    for marker in markers:
        if resolved and resolved[-1].leads and not marker.leads and text[marker.end :].strip(" ."):
            between = text[resolved[-1].end : marker.start]
            if not re.search(r"[.;:?!]\s+\S", between):
                marker = dataclasses.replace(marker, leads=True)
        resolved.append(marker)
    return resolved


# --- The series they form ----------------------------------------------------------------------


def _all_once(markers: Sequence[Marker], names: Sequence[str]) -> Sequence[Marker]:
    """The markers, if they are the whole beginning of the series, each label once, in any order:
    "eyes (c, d) and legs (a, b)"."""
    found = sorted(names.index(label) for marker in markers for label in marker.labels)
    return markers if found and found == list(range(len(found))) else []


def _in_order(markers: Sequence[Marker], names: Sequence[str]) -> list[Marker]:
    """The markers that go on with the series, and those that come back to a label at a clause's
    start. One label may be left out; a series begins with its first label."""
    chosen: list[Marker] = []
    last = -1
    for marker in markers:
        first, final = names.index(marker.labels[0]), names.index(marker.labels[-1])
        if final > last and first <= last + (2 if last >= 0 else 1):
            chosen.append(marker)
            last = final
        elif final <= last and marker.at_start and marker.leads:
            chosen.append(marker)
    return chosen


def _fill(
    chosen: Sequence[Marker], candidates: Sequence[Marker], names: Sequence[str]
) -> list[Marker]:
    """Adds labels that the caption writes in another style, where the series lacks them."""
    have = {label for marker in chosen for label in marker.labels}
    lacking = [
        marker
        for marker in candidates
        if have.isdisjoint(marker.labels)
        and marker.style != "reference"
        and not (marker.style == "bare" and not marker.at_start)
    ]
    both = sorted([*chosen, *lacking], key=lambda marker: marker.start)
    return _in_order(both, names) if lacking else list(chosen)


# --- Left and right ----------------------------------------------------------------------------


def _places(text: str) -> list[Marker]:
    """ "Left: CT. Right: MRI." or "CT (left) and MRI (right)"; two different places at least."""
    leading = rf"(?:(?<=[.;:,] )|^)(?:[Tt]he )?(?P<place>(?i:{PLACE})){PLACE_NOUN}\s?[:,](?=\s)"
    trailing = rf"\((?P<place>(?i:{PLACE})){PLACE_NOUN}\)"
    for pattern, leads in ((leading, True), (trailing, False)):
        markers = []
        for match in re.finditer(pattern, text):
            words = re.split(r"[- ]", match["place"].lower())
            label = " ".join(PLACES.get(word, word) for word in words)
            markers.append(Marker(match.start(), match.end(), (label,), leads=leads))
        labels = list(itertools.chain.from_iterable(marker.labels for marker in markers))
        if len(labels) >= 2 and len(set(labels)) == len(labels):
            return markers
    return []
