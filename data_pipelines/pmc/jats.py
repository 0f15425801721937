"""A JATS article (NISO Z39.96) -> its figures with captions, images, licence and citations.

    parse_article(bytes) -> Article

The XML is hostile until parsed: no DTD is loaded, no entity resolved, nothing fetched, and the
limits of libxml2 on depth and size stay on. Damaged XML is read as far as it goes, and says so
(Article.is_damaged). Written for JATS 1.x as PMC, publishers and preprint servers ship it.
"""

import dataclasses
import re
from bisect import bisect_left
from collections import defaultdict

from lxml import etree

from data_pipelines.pmc.licence import is_of_others, licence_name, narrowest
from data_pipelines.pmc.mentions import Mention, find_mentions, label_key, unmark
from data_pipelines.pmc.text import local_name, marked_text_of, text_of
from jaxclip.data.text import sentence_spans

XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
OWN_TERMS = "figure has its own terms"  # it, or its sub-article, names no licence we know
NOT_BODY = ("p", "caption", "fn", "ref", "table-wrap", "author-notes", "permissions")

_LIMITS = {etree.ErrorTypes.ERR_ENTITY_LOOP, etree.ErrorTypes.ERR_INTERNAL_ERROR}
_LIMITS |= {getattr(etree.ErrorTypes, "ERR_RESOURCE_LIMIT", -1)}
# paragraphs that may cite a figure: not those of captions or notes, nor inside another paragraph
_CITING = etree.XPath(
    "descendant::p[contains(., 'Fig') or contains(., 'fig') or contains(., 'FIG')"
    f" or .//xref[@ref-type='fig']][not({' or '.join(f'ancestor::{name}' for name in NOT_BODY)})]"
)


class XmlError(ValueError):
    """Bytes that are not a usable article; `reason` is a few words, the same for all of a kind."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclasses.dataclass(slots=True, kw_only=True)
class Citation:
    """A sentence of the article that cites a figure."""

    paragraph: int  # index of Article.paragraphs
    sentence: str
    panels: tuple[str, ...]  # upper case; () where it cites the whole figure


@dataclasses.dataclass(slots=True, kw_only=True)
class Figure:
    figure_id: str  # the article's own, or "figure 3" by order where it gives none
    label: str  # "Figure 2."
    caption: str  # title and text, one line
    graphics: list[list[str]]  # an entry an image: the names it may have (<alternatives>)
    licence: str  # the article's, unless the figure, its credits or its sub-article say otherwise
    citations: list[Citation]


@dataclasses.dataclass(slots=True, kw_only=True)
class Article:
    """One article."""

    article_id: str  # "PMC123", else DOI, else "PMID 1"; "" where it says none
    pmcid: str
    pmid: str
    doi: str
    title: str
    journal: str
    date: str  # 2024-03-01, 2024-03 or 2024
    article_type: str
    licence: str  # "CC BY 4.0"; "" where none is named that we know
    keywords: list[str]
    mesh: list[str]
    figures: list[Figure]
    paragraphs: list[str]  # those that cite a figure
    is_damaged: bool  # the XML has errors and was read around them


def parse_article(data: bytes) -> Article:
    """Raises XmlError: not XML, not an article, or over the parser's limits (a bomb)."""
    root, is_damaged = _parse(data)
    article = root if local_name(root) == "article" else next(root.iter("{*}article"), None)
    if article is None:
        raise XmlError("not a JATS article", f"the root is {local_name(root)!r}")
    _drop_namespace(article)
    meta = article.find("front/article-meta")
    if meta is None:
        meta = etree.Element("article-meta")
    pmcid, pmid, doi = _ids(meta)
    licence = _licence(meta.find("permissions"))
    figures = _figures(article, licence)
    paragraphs = _cite(article, figures)
    return Article(
        article_id=pmcid or doi or (f"PMID {pmid}" if pmid else ""),
        pmcid=pmcid,
        pmid=pmid,
        doi=doi,
        title=text_of(meta.find("title-group/article-title")),
        journal=text_of(article.find("front/journal-meta//journal-title")),
        date=_date(meta),
        article_type=article.get("article-type", ""),
        licence=licence,
        keywords=_keywords(meta, mesh=False),
        mesh=_keywords(meta, mesh=True),
        figures=figures,
        paragraphs=paragraphs,
        is_damaged=is_damaged,
    )


def _parse(data: bytes):
    parser = etree.XMLParser(
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        huge_tree=False,
        recover=True,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise XmlError("unreadable XML", str(error)[:200]) from None
    errors = [e for e in parser.error_log if e.level >= etree.ErrorLevels.ERROR]
    if limit := next((e for e in errors if e.type in _LIMITS), None):
        raise XmlError("XML over the parser's limits", limit.message[:200])
    if root is None:
        raise XmlError("unreadable XML", errors[0].message[:200] if errors else "empty")
    undeclared = (etree.ErrorTypes.ERR_UNDECLARED_ENTITY, etree.ErrorTypes.WAR_UNDECLARED_ENTITY)
    return root, any(e.type not in undeclared for e in errors)


def _drop_namespace(article) -> None:
    """OAI-PMH puts JATS in a namespace; PMC's files have none."""
    namespace = article.tag.rpartition("}")[0]
    if namespace:
        for element in article.iter(f"{namespace}}}*"):
            element.tag = local_name(element)


# --- Of the article ----------------------------------------------------------------------------


def _ids(meta) -> tuple[str, str, str]:
    ids = {e.get("pub-id-type", ""): (e.text or "").strip() for e in meta.findall("article-id")}
    pmc = ids.get("pmcid") or ids.get("pmc") or ids.get("pmcaid") or ""
    pmc = f"PMC{pmc.upper().removeprefix('PMC')}" if pmc else ""
    return pmc, ids.get("pmid", ""), ids.get("doi", "")


def _licence(permissions, unknown: str = "") -> str:
    if permissions is None:
        return ""
    addresses = [
        value
        for element in permissions.iter("license", "ext-link", "uri", "{*}license_ref")
        for value in (*element.attrib.values(), element.text or "")
    ]
    words = text_of(permissions.find("license"))
    found = narrowest((" ".join(addresses), words))
    return found or licence_name(text_of(permissions)) or unknown


def _date(meta) -> str:
    """Of the electronic publication, else the earliest that is given."""
    dates = []
    for date in meta.findall("pub-date"):
        kinds = (date.get("pub-type"), date.get("publication-format"))
        is_print = not {"epub", "electronic"}.intersection(kinds)
        parts = [(date.findtext(part) or "").strip() for part in ("year", "month", "day")]
        if not re.fullmatch(r"\d{4}", parts[0]):
            continue
        parts[1:] = [part.zfill(2) if part.isdecimal() else "" for part in parts[1:]]
        dates.append((is_print, "-".join(parts).rstrip("-")))
    return min(dates)[1].split("--")[0] if dates else ""


def _keywords(meta, mesh: bool) -> list[str]:
    found = []
    for group in meta.findall("kwd-group"):
        if ("mesh" in (group.get("kwd-group-type") or "").lower()) == mesh:
            found += [text_of(keyword) for keyword in group.iter("kwd")]
    return list(dict.fromkeys(filter(None, found)))


# --- Figures -----------------------------------------------------------------------------------


def _figures(article, licence: str) -> list[Figure]:
    figures, seen = [], defaultdict(int)
    for element in article.iter("fig", "fig-group"):
        graphics = _graphics(element)
        if element.tag == "fig-group" and not graphics:
            continue  # its figures are figures
        figure = _figure(element, graphics, licence, len(figures) + 1)
        seen[figure.figure_id] += 1
        if seen[figure.figure_id] > 1:  # an id twice
            figure.figure_id += f" ({seen[figure.figure_id]})"
        figures.append(figure)
    return figures


def _figure(element, graphics: list[list[str]], licence: str, number: int) -> Figure:
    parent = element.getparent()
    group = parent if parent is not None and parent.tag == "fig-group" else None
    caption = _caption(element)
    label = text_of(element.find("label"))
    if group is not None:
        caption = " ".join(filter(None, (_caption(group), caption)))
        label = label or text_of(group.find("label"))
    return Figure(
        figure_id=element.get("id") or f"figure {number}",
        label=label,
        caption=caption,
        graphics=graphics,
        licence=_figure_licence(element, caption, licence),
        citations=[],
    )


def _figure_licence(element, caption: str, licence: str) -> str:
    """The figure's own, by its permissions or its credits; of the nearest <sub-article> or
    <response> that says so; else the article's."""
    if (own := element.find("permissions")) is not None:
        return _licence(own, OWN_TERMS)
    for credit in (caption, *map(text_of, element.findall("attrib"))):
        if is_of_others(credit):
            return licence_name(credit) or OWN_TERMS
    for part in element.iterancestors("sub-article", "response"):
        for place in ("front-stub/permissions", "front/article-meta/permissions"):
            if (permissions := part.find(place)) is not None:
                return _licence(permissions, OWN_TERMS)
    return licence


def _caption(element) -> str:
    """Title and text; a title without a full stop gets one, so that the sentences stay two."""
    captions = element.findall("caption")
    parts = []
    for caption in captions:
        title = text_of(caption.find("title"))
        body = text_of(caption)
        if title and body != title and body.startswith(title) and title[-1] not in ".?!:;,":
            body = f"{title}.{body[len(title) :]}"
        parts.append(body)
    return " ".join(filter(None, parts))


def _graphics(element) -> list[list[str]]:
    graphics: dict[object, list[str]] = {}
    for graphic in element.iter("graphic"):
        parents = graphic.iterancestors()
        parent = next(parents)
        near = parent if parent.tag in ("fig", "fig-group", "caption") else None
        if (near if near is not None else _nearest(graphic)) is not element:
            continue  # of a figure inside this one, a formula, a table
        href = graphic.get(XLINK_HREF) or next(
            (v for k, v in graphic.attrib.items() if k.endswith("href")), ""
        )
        key = parent if parent.tag == "alternatives" else graphic
        graphics.setdefault(key, []).append(href.strip())
    return [names for names in graphics.values() if any(names)]


def _nearest(graphic):
    """The figure, or whatever else, that an image belongs to."""
    for ancestor in graphic.iterancestors():
        if ancestor.tag in ("fig", "fig-group", "caption", "table-wrap", "disp-formula"):
            return ancestor
    return None


# --- Citations ---------------------------------------------------------------------------------


def _cite(article, figures: list[Figure]) -> list[str]:
    """Gives every figure its citations; returns the paragraphs that have any."""
    by_id = {figure.figure_id: figure for figure in figures}
    by_label: dict[str, str] = {}
    for figure in figures:
        if key := label_key(figure.label):
            by_label.setdefault(key, figure.figure_id)
    paragraphs: list[str] = []
    for element in _CITING(article) if figures else ():
        marked, xrefs = marked_text_of(element)
        text, spans = unmark(marked)
        rids = [[r for r in xref.get("rid", "").split() if r in by_id] for xref in xrefs]
        links = [(a, b, rids[number]) for a, b, number in spans if any(rids[number : number + 1])]
        mentions = find_mentions(text, links, by_label)
        if mentions:
            _add_citations(text, mentions, by_id, len(paragraphs))
            paragraphs.append(text)
    return paragraphs


def _add_citations(
    text: str, mentions: list[Mention], by_id: dict[str, Figure], paragraph: int
) -> None:
    spans = list(sentence_spans(text))
    starts = [mention.start for mention in mentions]  # ascending
    # what stands between two sentences, a link without text, is of the first
    cuts = [0, *(bisect_left(starts, start) for start, _ in spans[1:]), len(mentions)]
    for (start, end), first, stop in zip(spans, cuts, cuts[1:], strict=False):
        panels: dict[str, list[str] | None] = {}
        for mention in mentions[first:stop]:
            known = panels.setdefault(mention.figure_id, [])
            if known is None or not mention.panels:
                panels[mention.figure_id] = None  # the whole figure
            else:
                known += mention.panels
        for figure_id, letters in panels.items():
            by_id[figure_id].citations.append(
                Citation(
                    paragraph=paragraph,
                    sentence=text[start:end],
                    panels=tuple(sorted(set(letters or ()))),
                )
            )
