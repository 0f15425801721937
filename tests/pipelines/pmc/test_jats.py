"""JATS to figures: text as a reader would copy it, figures wherever they hide, licences."""

import csv
import json
import re

import pytest

from data_pipelines.pmc.jats import OWN_TERMS, XmlError, parse_article
from data_pipelines.pmc.licence import licence_group, licence_name
from tests.pipelines.pmc.articles import article, fig


def caption_of(caption: str) -> str:
    (figure,) = parse_article(article(fig(1, caption))).figures
    return figure.caption


def test_an_article():
    parsed = parse_article(article(fig(1, "<p>Mice.</p>"), number=77))
    assert (parsed.article_id, parsed.pmcid, parsed.doi) == ("PMC77", "PMC77", "10.1/77")
    assert (parsed.title, parsed.journal, parsed.date) == ("On mice", "Test Journal", "2020-02-03")
    assert (parsed.licence, parsed.keywords) == ("CC BY 4.0", ["mouse", "liver"])
    assert (parsed.mesh, parsed.article_type) == (["Animals"], "research-article")
    assert not parsed.is_damaged


@pytest.mark.parametrize(
    "caption, text",
    [
        ("<title>Mice</title><p>In ( <bold>a</bold> ) blue.</p>", "Mice. In ( a) blue."),
        ("<title>Mice.</title><p>A  \n B</p><p>C</p>", "Mice. A B C"),
        ("<p>CO<sub>2</sub>, 10<sup>6</sup> cells, 5 s<sup>-1</sup></p>", "CO2, 10^6 cells, 5 s-1"),
        ("<p>Ca<sup>2+</sup> at 37<sup>th</sup></p>", "Ca2+ at 37th"),
        ('<p>Known<sup><xref ref-type="bibr" rid="r">3</xref></sup>.</p>', "Known [3]."),
        ("<p>5 &#956;m, 3 &mu;m, &lt;4, &unknown;</p>", "5 μm, 3 μm, <4, &unknown;"),
        (
            "<p>One<list><list-item><label>1</label><p>two</p></list-item><list-item><p>three"
            "<list><list-item><p>four</p></list-item></list></p></list-item></list></p>",
            "One 1 two three four",
        ),
        (
            "<p>Mice.<list list-type='alpha-lower'><list-item><p>CT.</p></list-item><list-item>"
            "<p>MRI.<list list-type='roman-upper'><list-item><p>T1.</p></list-item></list></p>"
            "</list-item><list-item><label>x</label><p>PET.</p></list-item></list></p>",
            "Mice. (a) CT. (b) MRI. (I) T1. x PET.",
        ),
        (
            "<p>If <inline-formula><alternatives><tex-math>\\documentclass{x}\\begin{document}$$y$$"
            "\\end{document}</tex-math><mml:math><mml:msup><mml:mi>x</mml:mi><mml:mn>2</mml:mn>"
            "</mml:msup><mml:mo>=</mml:mo><mml:mfrac><mml:mn>1</mml:mn><mml:mn>2</mml:mn>"
            "</mml:mfrac></mml:math></alternatives></inline-formula>.</p>",
            "If x^2 = 1/2.",
        ),
        (
            "<p>So <inline-formula><tex-math>\\documentclass{x}\\begin{document}$$y+1$$"
            "\\end{document}</tex-math></inline-formula></p>",
            "So y+1",
        ),
        (
            "<p>A<break/>B <inline-graphic xlink:href='i'/>C soft\u00adly e\u0301</p>",
            "A B C softly é",
        ),
    ],
)
def test_captions_read_as_printed(caption, text):
    assert caption_of(caption) == text


def test_jats_in_a_namespace_is_the_same():
    """As OAI-PMH wraps it."""
    plain = article(f"<p>See Figure 1.</p>{fig(1, '<p>a</p>')}")
    wrapped = plain.replace(b"<article ", b'<article xmlns="https://jats.nlm.nih.gov/ns/1.0" ')
    start = wrapped.index(b"<article ")
    wrapped = b"<OAI-PMH><metadata>" + wrapped[start:] + b"</metadata></OAI-PMH>"
    assert parse_article(wrapped) == parse_article(plain)


def test_deep_formulas_take_linear_time():
    deep = "<mml:mrow>" * 60 + "<mml:mi>x</mml:mi>" + "</mml:mrow>" * 60  # 2^60 steps otherwise
    assert caption_of(f"<p><inline-formula><mml:math>{deep}</mml:math></inline-formula></p>") == "x"


def test_figures_wherever_they_are():
    group = '<fig-group id="G"><label>Figure 2.</label><caption><p>Both.</p></caption>'
    group += fig(21, "<p>Left.</p>") + '<fig id="F22"><graphic xlink:href="f22"/></fig></fig-group>'
    two = '<graphic xlink:href="x"/><graphic xlink:href="y"/>'
    alternatives = (
        '<alternatives><graphic xlink:href="a.tif"/><graphic xlink:href="a.jpg"/></alternatives>'
    )
    table = '<table-wrap><graphic xlink:href="table"/></table-wrap>'
    after = f"<floats-group>{fig(3, '<p>C.</p>', two)}</floats-group><back><app-group><app>"
    after += fig(4, "<p>D.</p>", alternatives) + "</app></app-group></back>"
    after += f"<sub-article><body>{fig(5, '<p>E.</p>')}<fig><caption><p>No id.</p></caption></fig>"
    after += f"{fig(5, '<p>Twice.</p>')}</body></sub-article>"
    parsed = parse_article(article(group + table, after=after)).figures
    assert [(f.figure_id, f.label, f.caption, f.graphics) for f in parsed] == [
        ("F21", "Figure 21.", "Both. Left.", [["f21"]]),
        ("F22", "Figure 2.", "Both.", [["f22"]]),
        ("F3", "Figure 3.", "C.", [["x"], ["y"]]),
        ("F4", "Figure 4.", "D.", [["a.tif", "a.jpg"]]),
        ("F5", "Figure 5.", "E.", [["f5"]]),
        ("figure 6", "", "No id.", []),
        ("F5 (2)", "Figure 5.", "Twice.", [["f5"]]),
    ]


@pytest.mark.parametrize(
    "image, graphics",
    [
        ('<graphic xlink:href="g"/>', [["g"]]),
        ('<p><graphic xlink:href="g"/></p>', [["g"]]),
        (
            '<alternatives><graphic xlink:href="g"/><graphic xlink:href="g.jpg"/></alternatives>',
            [["g", "g.jpg"]],
        ),
    ],
)
def test_a_group_with_an_image_of_its_own_is_a_figure(image, graphics):
    group = f'<fig-group id="G"><label>Figure 1</label><caption><p>C</p></caption>{image}'
    group += '<fig id="A"><caption><p>a</p></caption></fig></fig-group>'
    parsed = parse_article(article(group)).figures
    assert [(f.figure_id, f.caption, f.graphics) for f in parsed] == [
        ("G", "C", graphics),
        ("A", "C a", []),
    ]


@pytest.mark.parametrize(
    "text, name, group",
    [
        (
            "https://creativecommons.org/licenses/by-nc-nd/3.0/igo/",
            "CC BY-NC-ND 3.0",
            "noncommercial",
        ),
        ("http://creativecommons.org/publicdomain/zero/1.0/", "CC0 1.0", "commercial"),
        ("CC BY-SA", "CC BY-SA", "commercial"),
        ("CC0", "CC0", "commercial"),
        ("NO-CC CODE", "", "other"),
        (
            "under the Creative Commons Attribution-NonCommercial License 2.0",
            "CC BY-NC 2.0",
            "noncommercial",
        ),
        ("Creative Commons Attribution 4.0 International License", "CC BY 4.0", "commercial"),
        ("Creative Commons Attribution License, which permits", "CC BY", "commercial"),
        ("All rights reserved", "", "other"),
        ("Creative Commons Attribution Non Commercial License", "CC BY-NC", "noncommercial"),
        (
            "Creative Commons (Attribution – NonCommercial – Share Alike) 3.0",
            "CC BY-NC-SA 3.0",
            "noncommercial",
        ),
        (
            "Creative Commons Attribution 3.0 Unported-NonCommercial",
            "CC BY-NC 3.0",
            "noncommercial",
        ),
        ("https://creativecommons.org/licenses/by-nd-nc/1.0/", "CC BY-NC-ND 1.0", "noncommercial"),
        ("open under the CC BY\u2010NC license", "CC BY-NC", "noncommercial"),
        ("Creative Commons Attribution License for non-commercial use", "CC BY", "commercial"),
    ],
)
def test_licences(text, name, group):
    assert licence_name(text) == name
    assert licence_group(text) == group


def test_where_address_and_words_differ_the_narrower_holds():
    words = "Under the Creative Commons Attribution Non-Commercial No Derivatives License."
    said = article(fig(1, "<p>a</p>")).replace(b"Open.", words.encode())
    assert parse_article(said).licence == "CC BY-NC-ND"
    data = b"CC BY 4.0; the data are CC0 1.0"
    assert parse_article(article("").replace(b"Open.", data)).licence == "CC BY 4.0"


def test_a_figure_with_its_own_permissions_is_not_the_articles():
    own = "<permissions><copyright-statement>Elsevier</copyright-statement></permissions>"
    zero = '<license xlink:href="https://creativecommons.org/publicdomain/zero/1.0/"/>'
    zero = f"<permissions>{zero}</permissions>"
    figures = fig(1, "<p>a</p>", more=own) + fig(2, "<p>b</p>", more=zero) + fig(3, "<p>c</p>")
    licences = [figure.licence for figure in parse_article(article(figures)).figures]
    assert licences == [OWN_TERMS, "CC0 1.0", "CC BY 4.0"]
    assert licence_group(OWN_TERMS) == "other"


@pytest.mark.parametrize(
    "caption, licence",
    [
        ("CT. Reproduced with permission from [3].", OWN_TERMS),
        ("CT. Used with the kind permission of Elsevier.", OWN_TERMS),
        ("CT. Copyright 2017, Springer.", OWN_TERMS),
        ("Republished from [5] under a CC BY-NC license, with permission from X.", "CC BY-NC"),
        ("Photograph, shown with permission of the patient.", "CC BY 4.0"),
        ("Adapted from [3]; copyright law was obeyed.", "CC BY 4.0"),
    ],
)
def test_a_figure_of_others_is_not_under_the_articles_licence(caption, licence):
    credit = f"<attrib>{caption}</attrib>"
    parsed = parse_article(article(fig(1, f"<p>{caption}</p>") + fig(2, "<p>b</p>", more=credit)))
    assert [figure.licence for figure in parsed.figures] == [licence, licence]


def test_a_sub_article_may_have_a_licence_of_its_own():
    """The nearest one that says so: a reply to a letter to the editor has the letter's."""
    stub = '<front-stub><permissions><license xlink:href="{}"/></permissions></front-stub>'.format
    by_nc = stub("http://creativecommons.org/licenses/by-nc/4.0/")
    reply = f"<response><front-stub/><body>{fig(3, '<p>c</p>')}</body></response>"
    after = f"<sub-article>{by_nc}<body>{fig(2, '<p>b</p>')}</body>{reply}</sub-article>"
    after += f"<sub-article>{stub('')}<body>{fig(4, '<p>d</p>')}</body></sub-article>"
    after += f"<sub-article><body>{fig(5, '<p>e</p>')}</body></sub-article>"
    figures = parse_article(article(fig(1, "<p>a</p>"), after=after)).figures
    licences = [figure.licence for figure in figures]
    assert licences == ["CC BY 4.0", "CC BY-NC 4.0", "CC BY-NC 4.0", OWN_TERMS, "CC BY 4.0"]


# --- Hostile input -----------------------------------------------------------------------------


def test_an_external_entity_is_not_read(tmp_path):
    (tmp_path / "secret").write_text("SECRET")
    doctype = f'<!DOCTYPE article [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]>'
    figure = "<fig id='F1'><caption><p>A &x; B</p></caption></fig>"
    parsed = parse_article(f"{doctype}<article><body>{figure}</body></article>".encode())
    assert parsed.figures[0].caption == "A &x; B"


def test_a_bomb_of_entities_is_refused():
    lines = ['<!ENTITY a0 "lol">']
    lines += [f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12)]
    bomb = f"<!DOCTYPE article [{''.join(lines)}]><article><body><fig id='F'><caption><p>A &a11;"
    bomb += "</p></caption></fig></body></article>"
    with pytest.raises(XmlError, match="over the parser's limits"):
        parse_article(bomb.encode())


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "unreadable XML"),
        (b"\x00\x01\x02", "unreadable XML"),
        (b"<html><body/></html>", "not a JATS article"),
        (b"<article>" + b"<sec>" * 5000, "XML over the parser's limits"),
        (
            b"<article><body><p>" + b"x" * 11_000_000 + b"</p></body></article>",
            "XML over the parser's limits",
        ),
    ],
)
def test_what_is_no_article_says_why(data, reason):
    with pytest.raises(XmlError) as error:
        parse_article(data)
    assert error.value.reason == reason


def test_damaged_xml_is_read_as_far_as_it_goes_and_says_so():
    whole = article(fig(1, "<p>Fine.</p>") + fig(2, "<p>Lost.</p>"))
    parsed = parse_article(whole[: whole.index(b"Lost")])
    assert parsed.is_damaged
    assert [figure.caption for figure in parsed.figures] == ["Fine.", ""]


def test_a_wrong_encoding_is_damage_and_no_crash():
    data = article(fig(1, "<p>5 §m</p>")).decode().encode("latin-1")  # says UTF-8
    parsed = parse_article(data)
    assert parsed.is_damaged
    assert parsed.figures[0].caption.startswith("5 ")
    declared = data.replace(b"UTF-8", b"ISO-8859-1")
    assert parse_article(declared).figures[0].caption == "5 §m"
    assert not parse_article(declared).is_damaged


# --- Real articles -----------------------------------------------------------------------------


def bare(text: str) -> str:
    """Without what the two extractions set differently: spaces, "^", brackets, a title's stop."""
    return re.sub(r"[\s.^\[\]\u2061]", "", text)


def test_real_captions_equal_an_independent_extraction(shared_data):
    lines = (shared_data / "pmc_articles/figures.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    figures = {}
    for name in {row["pmcid"] for row in rows}:
        parsed = parse_article((shared_data / f"pmc_articles/{name}/{name}.nxml").read_bytes())
        figures |= {(name, figure.figure_id): figure for figure in parsed.figures}
    same = [bare(figures[row["pmcid"], row["fig"]].caption) == bare(row["caption"]) for row in rows]
    assert sum(same) >= 0.99 * len(rows) == 0.99 * 1118
    cited = sum(bool(figure.citations) for figure in figures.values())
    assert cited >= 0.95 * len(figures)  # nearly every published figure is cited in its text


def test_real_licences(shared_data):
    with (shared_data / "pmc_articles/index.csv").open() as file:
        rows = list(csv.DictReader(file))
    different = []
    for row in rows:
        name = row["accession"]
        parsed = parse_article((shared_data / f"pmc_articles/{name}/{name}.nxml").read_bytes())
        if re.sub(r" \d\.\d$", "", parsed.licence) != re.sub(r" \d\.\d$", "", row["licence"]):
            different.append(name)
    # their texts say CC BY-NC, their addresses or the index CC BY
    assert different == ["PMC4456839", "PMC5411863", "PMC5412227"]
