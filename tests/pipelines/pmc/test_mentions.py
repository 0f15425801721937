"""Who cites which figure, and which panel of it."""

import pytest

from data_pipelines.pmc.jats import parse_article
from data_pipelines.pmc.mentions import find_mentions, label_key
from tests.pipelines.linear import is_linear
from tests.pipelines.pmc.articles import article, fig

BY_LABEL = {str(n): f"F{n}" for n in range(1, 9)} | {f"S{n}": f"S{n}" for n in (1, 2, 3)}
BY_LABEL |= {"sup:3": "SUP3"}


@pytest.mark.parametrize(
    "text, found",
    [
        ("see Figs. 2–4 here", "F2 F3 F4"),
        ("Figure 3A, B shows", "F3:AB"),
        ("Figure 3A and B, and Fig. 5", "F3:AB F5"),
        ("Figs 1, 2, and 4-6", "F1 F2 F4 F5 F6"),
        ("Figure 2, 20 patients", "F2"),
        ("Figure 2B, a patient", "F2:B"),
        ("Fig. 3 (a, b), Fig. 3(a-c) and 4(d)", "F3:AB F3:ABC F4:D"),
        ("Fig. 1 and Figs. 2, 3; Fig. 4–Fig. 6", "F1 F2 F3 F4 F5 F6"),
        ("Fig 2B–2F", "F2:B F2:CDEF"),
        ("Figs. 2–4A", "F2 F3 F4:A"),
        ("Figure 7, panels A and B", "F7:AB"),
        ("Fig. S1-S3 and Supplementary Fig. 3", "S1 S2 S3 SUP3"),
        ("Figure 3 in Smith et al. and Fig. 12", ""),
        ("FIGURE 4. I configure 3 figures", "F4"),
        ("Fig. 2 – 5 mg were given", "F2"),
        ("Fig. 2 – 5, Fig. 2-5 and Figs. 2 – 5", "F2 F3 F4 F5 F2 F3 F4 F5 F2 F3 F4 F5"),
        ("In Fig. 2 A clear line is seen, in Fig. 2 A and B none", "F2 F2:AB"),
        ("Figure 3—figure supplement 1 and Figure 3A—source data 1", ""),
        ("Figure 2 and 3 show mice", "F2 F3"),
        ("Figure 2 and 3 mice", "F2"),
        ("Fig. 4AB, Fig. 4ac and Fig. 4BA", "F4:AB F4:AC F4"),
        (
            "Fig. 1(a)–(c), Fig. 2(a) and (b), Figs. 3(a), 3(b); Fig. 4(a) (left)",
            "F1:ABC F2:AB F3:A F3:B F4:A",
        ),
        ("Fig. 1 (A to C), Fig. 2A vs. 2B, Fig. 3 A + B", "F1:ABC F2:A F2:B F3:AB"),
        ("Fig. 1 a–c, Fig. 1 b, c (Fig. 1 d) and Fig. 1 a man", "F1:ABC F1:BC F1:D F1"),
    ],
)
def test_mentions_of_labels(text, found):
    mentions = find_mentions(text, [], BY_LABEL)
    assert (
        " ".join(m.figure_id + ":" * bool(m.panels) + "".join(m.panels) for m in mentions) == found
    )


@pytest.mark.parametrize(
    "sentence", ["See Fig. 1. ", '<xref ref-type="fig" rid="F1">Fig. 1</xref>. ', "Figs. 1, "]
)
def test_long_paragraphs_take_linear_time(sentence):
    """Each sentence was compared with each mention, and each mention with each link."""
    figure = fig(1, "<p>a</p>")
    assert is_linear(parse_article, lambda n: article(f"<p>{sentence * n}</p>{figure}"), 800)


def test_labels():
    labels = [
        "Figure 2.",
        "FIG. 3",
        "Supplementary Figure 1",
        "Fig S4",
        "Scheme 1",
        "Figure 1—figure supplement 2",
    ]
    assert [label_key(label) for label in labels] == ["2", "3", "sup:1", "S4", "", ""]


def test_citations_follow_links_before_words():
    link = '<xref ref-type="fig" rid="{0}">{1}</xref>'.format
    body = f"""<p>In Figs. {link("F1", "1")}–{link("F3", "3")} mice (b; {link("F2", "2B")}) run.
    They stop ({link("F9", "Figure 1")}). See e.g. Fig. 2.</p>
    <p>{link("F1 F2", "Here")}.<fig id="F9"><label>Figure 9</label><caption><p>As in Figure 1.</p>
    </caption></fig></p><table-wrap><table><tr><td><p>Fig. 3</p></td></tr></table></table-wrap>"""
    parsed = parse_article(article(body + "".join(fig(n, "<p>x</p>") for n in (1, 2, 3))))
    cited = {
        f.figure_id: [(c.paragraph, c.sentence, c.panels) for c in f.citations]
        for f in parsed.figures
    }
    run = "In Figs. 1–3 mice (b; 2B) run."
    assert cited == {
        "F9": [(0, "They stop (Figure 1).", ())],  # the article says that it is F9
        "F1": [(0, run, ()), (1, "Here.", ())],
        "F2": [(0, run, ()), (0, "See e.g. Fig. 2.", ()), (1, "Here.", ())],
        "F3": [(0, run, ())],
    }
    assert len(parsed.paragraphs) == 2


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("It is {} seen. Next.", "It is seen. Next."),
        ("Seen. {} Next.", "Seen."),
        ("Seen.{}", "Seen."),
        ("{} Seen. Next.", "Seen."),
        ("Seen ({}). Next.", "Seen ()."),
    ],
)
def test_a_link_without_text_is_of_its_sentence(text, sentence):
    body = "<p>" + text.format("<xref ref-type='fig' rid='F1'/>") + "</p>"
    (figure,) = parse_article(article(body + fig(1, "<p>a</p>"))).figures
    (citation,) = figure.citations
    assert citation.sentence.split() == sentence.split()[: len(citation.sentence.split())]


def test_characters_that_mark_links_may_stand_in_the_text():
    """Noncharacters U+FDD0 to U+FDD2, with a number, as if there were a tenth link."""
    text = '<p>\ufdd09\ufdd1x\ufdd2 \ufdd0 <xref ref-type="fig" rid="F1">Fig. 1</xref> shows.</p>'
    parsed = parse_article(article(text + fig(1, "<p>A</p>")))
    (citation,) = parsed.figures[0].citations
    assert citation.sentence.endswith("Fig. 1 shows.")
