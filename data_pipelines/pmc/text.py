"""Mixed content of JATS -> plain text that a caption can be.

What stands beside the words is kept where it carries meaning: "10<sup>6</sup>" -> "10^6",
"CO<sub>2</sub>" -> "CO2", "Ca<sup>2+</sup>" -> "Ca2+", a raised citation "shown<sup><xref>3</xref>
</sup>" -> "shown [3]", MathML and TeX as one line. Blocks (paragraphs, list items, titles) are set
apart by a space. Figures, tables and images inside a paragraph are not its text.
"""

import html
import re
import string
import unicodedata

from lxml import etree

from data_pipelines.caption_markers import ROMANS

INLINE = {"italic", "bold", "sub", "ext-link", "named-content", "styled-content", "sc", "underline"}
BLOCKS = {"p", "title", "subtitle", "list-item", "def-list", "def-item", "disp-quote"}
BLOCKS |= {"disp-formula", "break", "caption", "sec", "tr", "td", "th", "term", "def", "boxed-text"}
SKIPPED = {"fig", "fig-group", "table-wrap", "graphic", "inline-graphic", "media", "alt-text"}
SKIPPED |= {"long-desc", "object-id", "supplementary-material", "fn", "annotation", "index-term"}
LIST_LABELS = {
    "alpha-lower": [f"({letter})" for letter in string.ascii_lowercase],
    "alpha-upper": [f"({letter})" for letter in string.ascii_uppercase],
    "roman-lower": [f"({roman})" for roman in ROMANS],
    "roman-upper": [f"({roman.upper()})" for roman in ROMANS],
}
RELATIONS = {*"=<>≤≥≈±×+−-→"}  # operators with a space on both sides
OPEN, MIDDLE, CLOSE = (
    "\ufdd0",
    "\ufdd1",
    "\ufdd2",
)  # round a marked xref; characters of no text

SPACED = (" ,", " ;", " :", " .", " )", " ]")
_SPACE_BEFORE = re.compile(r" +(?=[,;:.)\]](?:\s|$))")
_UNSEEN = "\u200b\u2060\u2061\u2062\u2063\u2064\ufeff\u00ad"
_EXPONENT = re.compile(r"[-−–+]?[\d.]+$")
_TEX = re.compile(r"\\begin\{document\}(.*?)\\end\{document\}", re.DOTALL)


def local_name(element) -> str:
    """ "{http://...}math" -> "math"; "" for what is not an element (an entity)."""
    tag = element.tag
    if type(tag) is not str:
        return ""
    return tag if tag[0] != "{" else tag.rpartition("}")[2]


def clean(text: str) -> str:
    """One line, canonical Unicode, no characters that nobody sees, no space before a comma."""
    if not text.isascii():
        for unseen in filter(text.__contains__, _UNSEEN):
            text = text.replace(unseen, "")
        text = unicodedata.normalize("NFC", text)
    text = " ".join(text.split())
    return _SPACE_BEFORE.sub("", text) if any(map(text.__contains__, SPACED)) else text


def text_of(element) -> str:
    """The text of an element; "" of None."""
    if element is None:
        return ""
    if not len(element):
        return clean(element.text or "")
    parts: list[str] = []
    _inside(element, parts, None)
    return clean("".join(parts))


def marked_text_of(element) -> tuple[str, list]:
    """text_of with figure xrefs as OPEN, index, MIDDLE, text, CLOSE; and the list of them."""
    parts: list[str] = []
    xrefs: list = []
    _inside(element, parts, xrefs)
    return clean("".join(parts)), xrefs


def _inside(element, parts: list[str], xrefs: list | None) -> None:
    if text := element.text:  # each look at an element costs: one is enough
        parts.append(text)
    for child in element:
        tag = child.tag
        if tag in INLINE or (
            tag == "xref" and (xrefs is None or child.get("ref-type") != "fig")
        ):  # nearly all, so they are spared the questions
            if len(child):
                _inside(child, parts, xrefs)
            elif text := child.text:
                parts.append(text)
        else:
            _child(child, parts, xrefs)
        if tail := child.tail:
            parts.append(tail)


def _child(child, parts: list[str], xrefs: list | None) -> None:
    name = local_name(child)
    if not name:
        if isinstance(child, etree._Entity):  # the DTD that declares it is not loaded
            parts.append(html.unescape(child.text))
    elif name in SKIPPED:
        parts.append(" ")
    elif name == "sup":
        _raised(child, parts, xrefs)
    elif name in ("inline-formula", "disp-formula", "math", "tex-math"):
        parts.append(f" {formula(child)} ")
    elif name == "alternatives":
        readable = [one for one in child if local_name(one) not in SKIPPED]
        for one in readable[:1]:
            _child(one, parts, xrefs)
    elif name == "xref" and xrefs is not None and child.get("ref-type") == "fig":
        xrefs.append(child)
        text = "".join(child.itertext())
        before, after = (" " if edge.isspace() else "" for edge in (text[:1], text[-1:]))
        text = text_of(child) if len(child) else text.strip()
        parts.append(f"{before}{OPEN}{len(xrefs) - 1}{MIDDLE}{text}{CLOSE}{after}")
    elif name == "list":
        _list(child, parts, xrefs)
    elif name in BLOCKS:
        parts.append(" ")
        _inside(child, parts, xrefs)
        parts.append(" ")
    else:
        _inside(child, parts, xrefs)


def _list(element, parts: list[str], xrefs: list | None) -> None:
    """Its items, with the labels that a reader sees where the XML leaves them to its style."""
    labels = iter(LIST_LABELS.get(element.get("list-type", ""), ()))
    for child in element:
        parts.append(" ")
        if local_name(child) == "list-item" and child.find("label") is None:
            parts.append(next(labels, ""))
        _child(child, parts, xrefs)
        parts.append(" ")


def _raised(sup, parts: list[str], xrefs: list | None) -> None:
    inner: list[str] = []
    _inside(sup, inner, xrefs)
    text = "".join(inner)
    before = parts[-1][-1:] if parts else ""
    if len(sup) and all(c.tag == "xref" and c.get("ref-type") == "bibr" for c in sup):
        parts.append(f" [{text.strip()}]")
    elif before.isdigit() and _EXPONENT.match(text.strip()):
        parts.append(f"^{text.strip()}")  # 10<sup>6</sup> is not 106
    else:
        parts.append(text)


# --- Formulas ----------------------------------------------------------------------------------


def formula(element) -> str:
    """One line of a formula: from its MathML, else its TeX, else its text."""
    for node in element.iter():
        if local_name(node) == "math":
            return clean(_mathml(node))
    for node in element.iter("tex-math"):
        return clean(_tex("".join(node.itertext())))
    return clean("".join(element.itertext()))


def _tex(text: str) -> str:
    """\\documentclass... \\begin{document}$$x^2$$\\end{document} -> x^2"""
    body = found[1] if (found := _TEX.search(text)) else text
    return body.strip().strip("$").strip()


def _mathml(node) -> str:
    name = local_name(node)
    if not name:
        return html.unescape(node.text or "") if isinstance(node, etree._Entity) else ""
    if name in ("annotation", "annotation-xml"):
        return ""
    inside = [_mathml(child) for child in node]
    if not inside:
        text = (node.text or "").strip()
        return f" {text} " if name == "mo" and text in RELATIONS else text
    if name in ("msup", "mfrac", "msqrt", "mroot"):
        inside = [one.strip() for one in inside]
    if name == "msup" and len(inside) == 2:
        return f"{inside[0]}^{inside[1]}"
    if name == "mfrac" and len(inside) == 2:
        return "/".join(one if one.isalnum() else f"({one})" for one in inside)
    if name in ("msqrt", "mroot"):
        return f"sqrt({' '.join(inside)})"
    return (node.text or "").strip() + "".join(inside)
