"""What the article says of a figure: the sentences that cite it, a summary of its paragraphs."""

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence

from data_pipelines.options import option
from data_pipelines.pmc.jats import Article, Figure
from data_pipelines.pmc.threads import in_threads
from data_pipelines.remote import create_file, read_file
from jaxclip.data.text import split_sentences

EXTRACTIVE = "textrank"
PROMPT = """\
Below are paragraphs of a biomedical article that refer to one of its figures, and the figure's
caption. Summarise in at most {sentences} sentences what the paragraphs say about {figure}. Use only
what they say. Answer with the summary alone; answer NONE if they say nothing about it.

Caption: {caption}

Paragraphs:
{paragraphs}"""
_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclasses.dataclass(slots=True, kw_only=True)
class ContextOptions:
    """How much context a record has, and who summarises it."""

    references_tokens: int = option(256, "words and marks; citing sentences beyond are left out")
    summary: str = option("none", "none, textrank (sentences of the text), model (--summary_url)")
    summary_sentences: int = option(3, "length of a summary")
    summary_url: str = option("", "OpenAI-compatible endpoint, e.g. http://localhost:8000/v1")
    summary_model: str = option("", "the endpoint's name of the model")
    summary_cache: str = option("", "folder of answers; default: OUT.summaries")
    summary_requests: int = option(8, "requests in flight a worker")
    summary_tokens: int = option(256, "most tokens of an answer; a longer one is not used")

    def validate(self) -> None:
        if self.summary not in ("none", EXTRACTIVE, "model"):
            raise ValueError(f"summary ({self.summary!r}) must be none, {EXTRACTIVE} or model.")
        if self.summary == "model" and not (self.summary_url and self.summary_model):
            raise ValueError("summary is model. Give --summary_url=... and --summary_model=...")
        names = ("references_tokens", "summary_sentences", "summary_requests", "summary_tokens")
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1.")


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    text: str
    by: str  # "textrank", "model NAME"; why there is none: "", refused, truncated, nothing said


def num_tokens(text: str) -> int:
    """Words and punctuation marks, whatever the tokenizer will be."""
    return len(_TOKEN.findall(text))


def references(figure: Figure, labels: Sequence[str], most_tokens: int) -> tuple[str, int, bool]:
    """The sentences that cite a figure, or one of its panels, in the article's order.

    Args:
      labels: panel letters; sentences that name only other panels are left out. () is the figure.
      most_tokens: sentences are taken as long as they fit; the first is cut at a word if need be.
    Returns:
      (sentences joined, how many cite it, whether any was left out for length).
    """
    wanted = {label.upper() for label in labels}
    citing = [c for c in figure.citations if not wanted or not c.panels or wanted & {*c.panels}]
    distinct = list(dict.fromkeys(citation.sentence for citation in citing))
    taken, left = [], most_tokens
    for sentence in distinct:
        left -= num_tokens(sentence)
        if left < 0:
            break
        taken.append(sentence)
    if distinct and not taken:
        words = list(_TOKEN.finditer(distinct[0]))
        taken = [distinct[0][: words[most_tokens - 1].end()]]
    return " ".join(taken), len(distinct), left < 0


# --- Summaries ---------------------------------------------------------------------------------


def summarise(options: ContextOptions, cache: str, article: Article) -> dict[str, Summary]:
    """Figure id -> summary of the paragraphs that cite it, for every figure that is cited."""
    if options.summary == "none":
        return {}
    if options.summary == EXTRACTIVE:
        return {
            figure.figure_id: Summary(extract(paragraphs, options.summary_sentences), EXTRACTIVE)
            for figure, paragraphs in _cited(article)
        }
    return {
        figure.figure_id: _cached(options, cache, _prompt(options, figure, paragraphs))
        for figure, paragraphs in _cited(article)
    }


def ask_ahead(options: ContextOptions, cache: str, articles: Iterable[Article]) -> None:
    """Asks for all that summarise() is going to need, so many requests at once as the endpoint was
    said to take, whatever the number of figures of an article; the answers are in the cache."""
    prompts = (_prompt(options, *cited) for article in articles for cited in _cited(article))
    ask = functools.partial(_cached, options, cache)
    for _ in in_threads(ask, prompts, options.summary_requests):
        pass


def _cited(article: Article) -> Iterator[tuple[Figure, list[str]]]:
    """The figures that are cited, each with the paragraphs that do."""
    for figure in article.figures:
        numbers = dict.fromkeys(citation.paragraph for citation in figure.citations)
        if numbers:
            yield figure, [article.paragraphs[number] for number in numbers]


def extract(paragraphs: Sequence[str], num_sentences: int) -> str:
    """The most central sentences, in their order (TextRank, Mihalcea and Tarau 2004, of sumy)."""
    from sumy.models.dom import ObjectDocumentModel, Paragraph, Sentence
    from sumy.summarizers.text_rank import TextRankSummarizer
    from sumy.utils import get_stop_words

    class Words:
        def to_words(self, text: str) -> list[str]:
            return [word.lower() for word in re.findall(r"[^\W\d_]{2,}", text)]

    texts = [sentence for text in paragraphs for sentence in split_sentences(text)]
    texts = list(dict.fromkeys(texts))
    if len(texts) <= num_sentences:
        return " ".join(texts)
    document = ObjectDocumentModel([Paragraph([Sentence(text, Words()) for text in texts])])
    summarizer = TextRankSummarizer()
    summarizer.stop_words = get_stop_words("english")
    return " ".join(map(str, summarizer(document, num_sentences)))


def _prompt(options: ContextOptions, figure: Figure, paragraphs: Sequence[str]) -> str:
    return PROMPT.format(
        sentences=options.summary_sentences,
        figure=figure.label or "the figure",
        caption=figure.caption,
        paragraphs="\n\n".join(paragraphs),
    )


def _cached(options: ContextOptions, cache: str, prompt: str) -> Summary:
    """The endpoint's answer, asked once: a job that is run again gets the same bytes."""
    asked = [options.summary_model, options.summary_tokens, prompt]
    name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    file = os.path.join(cache, name[:2], f"{name}.json")
    if (kept := read_file(file)) is not None:
        return Summary(**json.loads(kept))
    summary = _ask(options, prompt)
    with create_file(file) as local, open(local, "w") as opened:
        json.dump(dataclasses.asdict(summary), opened)
    return summary


def _ask(options: ContextOptions, prompt: str) -> Summary:
    """Raises what the client raises when the endpoint fails for good: nothing is made up for it."""
    import openai

    try:
        answer = _client(options.summary_url).chat.completions.create(
            model=options.summary_model,
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            max_tokens=options.summary_tokens,
        )
    except (openai.BadRequestError, openai.UnprocessableEntityError):
        return Summary("", "refused")  # this text: too long, or filtered
    choice = answer.choices[0]
    text = " ".join((choice.message.content or "").split())
    if choice.finish_reason == "length":
        return Summary("", "truncated")
    if choice.finish_reason == "content_filter":
        return Summary("", "refused")
    if not text or text.strip(".").upper() == "NONE":
        return Summary("", "nothing said")
    return Summary(text, f"model {options.summary_model}")


@functools.lru_cache(maxsize=1)
def _client(url: str):
    """Waits 0.5 s to 8 s between tries, more where the server asks for it."""
    import openai

    key = os.environ.get("OPENAI_API_KEY") or "none"
    return openai.OpenAI(base_url=url, api_key=key, max_retries=6, timeout=120)
