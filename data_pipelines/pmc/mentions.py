"""Where a text speaks of a figure: "Figs. 2–4 and 5A, B" -> figures 2, 3, 4 and panels A, B of 5.

What the article itself links (<xref ref-type="fig" rid="...">) decides; what is only written is
resolved by the figures' labels. "Supplementary Fig. 3" is another figure than "Fig. 3".
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data_pipelines.pmc.text import CLOSE, MIDDLE, OPEN

_FAMILY = r"(?:\b(?P<family>supplement\w*|suppl?\.?|extended data|additional|appendix)\s+)?"
# a word's beginning, told after its first letter: a search can then skip to it
_HEAD = re.compile(r"[Ff](?<!\w.)[Ii][Gg](?P<plural>s|ures|S|URES)?(?:ure|URE)?\b\.?\s*")
_FAMILY_BEFORE = re.compile(_FAMILY + "$", re.IGNORECASE)
_FAMILIES = ("supp", "extend", "addit", "append")  # spares most the search for one
_LETTERS = r"[A-Za-z](?![A-Za-z0-9’'])"
_PANEL_A = r"A(?![A-Za-z0-9’'])(?!\s+(?!and\b|or\b|to\b|through\b)[a-z])"  # not "A clear line"
_RANGE = re.compile(r"\s*(?:-|–|—|−|\bto\b|\bthrough\b)\s*")
_LIST = re.compile(r"\s*(?:[,;/&+]\s*(?:and\b|&)?|\band\b|\bor\b|\bversus\b|\bvs\b\.?)\s*")
_NUMBER = re.compile(r"(?P<number>[A-Z]?\d+(?:\.\d+)?)")
_PANELS_OPEN = re.compile(  # "(a, b)", ", panels a and b", a letter at once, " B", " a-c"
    rf"\s?\(\s*(?={_LETTERS}\s*(?:[,)–—−&/+-]|to\b|and\b))|,?\s?\(?panels?\s(?={_LETTERS})|(?={_LETTERS})"
    rf"|\s(?=[B-HJ-Z](?![A-Za-z0-9’'])|{_PANEL_A})"
    rf"|\s(?=[a-z](?:\s?[–—-]\s?|,\s?){_LETTERS}|[a-z]\s?[)\];])"
)
_RUN = re.compile(r"(?:[A-H]{2,8}|[a-h]{2,8})(?![A-Za-z0-9’'])")  # "4AB"
_LETTER = re.compile(_LETTERS)
_LABEL = re.compile(
    rf"^\W*{_FAMILY}fig(?:ure|\.)?s?\.?\s*(?P<number>[A-Z]?\d+(?:\.\d+)?)\W*$", re.IGNORECASE
)
_ELSEWHERE = re.compile(r"[A-Z]?[),]?\s*(?:of|in|from)\s+(?:\[|ref\b|reference|[A-Z]\w+ et al)")
_PART = re.compile(  # eLife's: another figure or file than the one it is a part of
    r"\s*[-–—]\s*(?:figure supplement|source (?:data|code)|video|animation)", re.IGNORECASE
)
# After "Fig. 2 and 3" or "Fig. 2 – 5": then it is no "3 patients", no "5 mg".
_NO_COUNT = re.compile(
    r"\s*(?:$|[),.;:\]]|(?:and|show|illustrat|depict|present|demonstrat|display|indicat|summari"
    r"|respectively|are|were|is|also|have|below|above)[a-z]*\b)"
)
_FOLLOWS = re.compile(r"\s*(?:figs?\.?|figures?)?\s*", re.IGNORECASE)


class Mention(NamedTuple):
    """A place [start, end) of a text that cites a figure."""

    figure_id: str
    panels: tuple[str, ...]  # upper case, in order; () is the whole figure
    start: int
    end: int


class _Item(NamedTuple):
    number: str
    panels: tuple[str, ...]
    start: int
    end: int
    is_range_end: bool


def label_key(label: str) -> str:
    """What a label is called in the text: "Figure 2." -> "2", "Supplementary Fig S1" -> "sup:S1".

    "" where the label has no number, or says more: "Figure 1—figure supplement 2".
    """
    found = _LABEL.match(label)
    return _key(found["family"], found["number"]) if found else ""


def _key(family: str | None, number: str) -> str:
    return (f"{family[:3].lower()}:" if family else "") + number.upper()


def unmark(text: str) -> tuple[str, list[tuple[int, int, int]]]:
    """A marked text without its marks, and (start, end, number of the xref) of each."""
    before, *marked = text.split(OPEN)
    parts, spans, length = [before], [], len(before)
    for part in marked:
        number, _, rest = part.rpartition(MIDDLE)
        linked, _, after = rest.partition(CLOSE)
        if number.isdecimal():  # else the author wrote such a character
            spans.append((length, length + len(linked), int(number)))
        parts += linked, after
        length += len(linked) + len(after)
    return "".join(parts), spans


def find_mentions(
    text: str, links: Sequence[tuple[int, int, Sequence[str]]], by_label: Mapping[str, str]
) -> list[Mention]:
    """All mentions of figures in a paragraph, in order; a figure may be mentioned often.

    Args:
      text: one paragraph.
      links: (start, end, figure ids) of what the article links in it, in order, not overlapping.
      by_label: label_key -> figure id.
    """
    mentions: list[Mention] = []
    used: set[int] = set()
    starts, ends = [link[0] for link in links], [link[1] for link in links]
    for head in _HEAD.finditer(text):
        items = _items(text, head)
        before_head = text[max(0, head.start() - 16) : head.start()]
        is_other = any(map(before_head.lower().__contains__, _FAMILIES))
        family = _FAMILY_BEFORE.search(before_head)["family"] if is_other else None
        before = ""
        for item in items:
            linked = range(bisect_right(ends, item.start), bisect_left(starts, item.end))
            used.update(linked)
            ids = [figure for i in linked for figure in links[i][2]]
            if not ids and not _ELSEWHERE.match(text, item.end) and not _PART.match(text, item.end):
                ids = [by_label.get(_key(family, item.number), "")]
            if item.is_range_end:
                ids = _between(family, before, item.number, by_label) + ids
            whole = len(ids) > 1  # "Figs 2-4A": A is of the last one only
            for figure in filter(None, ids):
                panels = () if whole and figure != ids[-1] else item.panels
                mentions.append(Mention(figure, panels, item.start, item.end))
            before = item.number
    for i, (start, end, figures) in enumerate(links):
        if i not in used:
            panels = _letters(text, start, end)
            mentions += [Mention(figure, panels, start, end) for figure in figures]
    return sorted(set(mentions), key=lambda mention: (mention.start, mention.figure_id))


def _items(text: str, head: re.Match) -> list[_Item]:
    """The numbers after "Figs", with their panels."""
    items: list[_Item] = []
    position, is_range, is_doubtful = head.end(), False, False
    many = bool(head["plural"])
    while found := _NUMBER.match(text, position):
        panels, end = _panels(text, found.end())
        if is_doubtful and not panels and not _NO_COUNT.match(text, end):
            break
        last = items[-1] if items else None
        if is_range and last and last.number == found["number"] and last.panels and panels:
            between = range(ord(last.panels[-1]) + 1, ord(panels[0]))  # "2B–2F"
            panels = (*map(chr, between), *panels)
        items.append(_Item(found["number"], panels, found.start(), end, is_range))
        many = many or bool(panels)
        separator = (not is_range and _RANGE.match(text, end)) or _LIST.match(text, end)
        if not separator or (not many and separator[0].lstrip()[0] in ",;/"):
            break
        is_range = separator.re is _RANGE
        is_doubtful = not many and " " in separator[0]
        position = separator.end()
        if is_range:  # in a list "Fig." begins anew
            position = _FOLLOWS.match(text, position).end()
    return items


def _panels(text: str, position: int) -> tuple[tuple[str, ...], int]:
    """The panel letters from `position`, and where they end: "A, B and D–F" -> A B D E F."""
    run = _RUN.match(text, position)
    if run and list(run[0]) == sorted(set(run[0])):
        return tuple(run[0].upper()), run.end()
    opening = _PANELS_OPEN.match(text, position)
    if not opening:
        return (), position
    letters: list[str] = []
    at, is_range = opening.end(), False
    while letter := _LETTER.match(text, at):
        last = letters[-1] if letters else ""
        if last and (last.isupper() != letter[0].isupper() or letter[0] <= last):
            break  # "Fig. 2B, a patient": not a panel
        if is_range:
            letters += [chr(code) for code in range(ord(last) + 1, ord(letter[0]))]
        letters.append(letter[0])
        position = letter.end()
        is_closed = "(" in opening[0] and text[position : position + 1] == ")"
        position += is_closed
        separator = _RANGE.match(text, position) or _LIST.match(text, position)
        if not separator or (is_closed and text[separator.end() : separator.end() + 1] != "("):
            break
        at, is_range = separator.end() + is_closed, separator.re is _RANGE  # "(a)–(c)"
    return tuple(letter.upper() for letter in letters), position


def _letters(text: str, start: int, end: int) -> tuple[str, ...]:
    """Panels of a link without "Figure": "3A" or just "B"."""
    number = _NUMBER.match(text, start)
    panels, stop = _panels(text, number.end() if number else start)
    return panels if stop <= end or number else ()


def _between(family: str | None, first: str, last: str, by_label: Mapping[str, str]) -> list[str]:
    """Figure ids strictly between two numbers: "2", "4" -> that of 3."""
    low, high = (re.fullmatch(r"([A-Z]?)(\d+)", number.upper()) for number in (first, last))
    if not low or not high or low[1] != high[1] or int(high[2]) - int(low[2]) > 50:
        return []
    numbers = (f"{low[1]}{n}" for n in range(int(low[2]) + 1, int(high[2])))
    return [by_label[key] for n in numbers if (key := _key(family, n)) in by_label]
