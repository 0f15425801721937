"""References of a figure or panel within a budget; summaries by TextRank or a model's endpoint."""

import functools
import http.server
import json
import threading

import pytest

from data_pipelines.pmc import context
from data_pipelines.pmc.context import (
    ContextOptions,
    Summary,
    extract,
    num_tokens,
    references,
    summarise,
)
from data_pipelines.pmc.jats import Citation, Figure, parse_article
from data_pipelines.pmc.threads import in_threads
from tests.pipelines.pmc.articles import article, build, fig, picture

SENTENCES = {"One two (Fig. 1).": (), "Three A.": ("A",), "Four five B, C.": ("B", "C")}


def figure() -> Figure:
    citations = [Citation(paragraph=0, sentence=s, panels=p) for s, p in SENTENCES.items()]
    citations.append(citations[0])  # said twice
    return Figure(
        figure_id="F1", label="", caption="", graphics=[], licence="", citations=citations
    )


@pytest.mark.parametrize(
    "labels, tokens, text, count, is_cut",
    [
        ((), 99, "One two (Fig. 1). Three A. Four five B, C.", 3, False),
        (("a",), 99, "One two (Fig. 1). Three A.", 2, False),
        (("b", "c"), 99, "One two (Fig. 1). Four five B, C.", 2, False),
        (("d",), 99, "One two (Fig. 1).", 1, False),
        ((), 11, "One two (Fig. 1). Three A.", 3, True),  # 8 + 3 tokens
        ((), 3, "One two (", 3, True),  # the first is longer than the budget
    ],
)
def test_references_are_of_the_panel_and_fit(labels, tokens, text, count, is_cut):
    assert references(figure(), labels, tokens) == (text, count, is_cut)
    assert num_tokens(text) <= tokens


def test_extraction_takes_the_central_sentences_in_order():
    paragraphs = ["The liver of mice is red. Weather was fine. Red liver was seen in mice by us."]
    paragraphs.append("Mice had a red liver. Trains run.")
    summary = extract(paragraphs, 2)
    kept = [s for s in ("The liver of mice is red.", "Mice had a red liver.") if s in summary]
    assert kept and "Weather" not in summary and "Trains" not in summary
    assert extract(["One. Two."], 3) == "One. Two."


class Model(http.server.BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that is busy first and answers by what it is asked."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = request["messages"][0]["content"]
        self.server.prompts.append(prompt)
        if "busy" in prompt and sum("busy" in p for p in self.server.prompts) < 4:
            return self.answer(429, {"error": {"message": "busy"}})
        if "toolong" in prompt:
            return self.answer(400, {"error": {"message": "too long"}})
        if self.server.is_down:
            return self.answer(401, {"error": {"message": "no"}})
        if self.server.together:
            self.server.together.wait()
        reason = "length" if "endless" in prompt else "stop"
        content = "NONE" if "unsaid" in prompt else f" It is\n{request['model']}. "
        choice = {
            "index": 0,
            "finish_reason": reason,
            "message": {"role": "assistant", "content": content},
        }
        whole = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
        }
        return self.answer(200, whole)

    def answer(self, status: int, content: dict):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Retry-After-Ms", "1")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Model)
    server.prompts, server.is_down, server.together = [], False, None
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_summarises_once_and_failures_are_named(endpoint, tmp_path):
    words = ["fine", "busy", "toolong", "endless", "unsaid"]
    cites = "".join(f"<p>Figure {n} is {word}.</p>" for n, word in enumerate(words, 1))
    figures = "".join(fig(n, f"<p>About {n}.</p>") for n in range(1, 7))  # 6 is never cited
    parsed = parse_article(article(cites + figures))
    url = f"http://127.0.0.1:{endpoint.server_port}/v1"
    options = ContextOptions(summary="model", summary_url=url, summary_model="m7")
    summaries = summarise(options, str(tmp_path), parsed)
    assert {key: (s.text, s.by) for key, s in summaries.items()} == {
        "F1": ("It is m7.", "model m7"),
        "F2": ("It is m7.", "model m7"),  # at the fourth time of asking
        "F3": ("", "refused"),
        "F4": ("", "truncated"),
        "F5": ("", "nothing said"),
    }
    assert len(endpoint.prompts) == 8
    assert any("Caption: About 1." in p and "Figure 1 is fine." in p for p in endpoint.prompts)
    assert summarise(options, str(tmp_path), parsed) == summaries
    assert len(endpoint.prompts) == 8  # all from the cache
    endpoint.is_down = True
    with pytest.raises(Exception, match="401"):  # a job fails rather than go without
        summarise(options, str(tmp_path / "other"), parsed)


def test_a_job_asks_for_several_articles_at_once(endpoint, tmp_path):
    """Three articles of one figure each; the endpoint answers when all three have asked."""
    for number in range(3):
        body = f"<p>Figure 1 is {number}.</p>{fig(1, '<p>a</p>')}"
        (tmp_path / f"in/{number}").mkdir(parents=True)
        (tmp_path / f"in/{number}/a.nxml").write_bytes(article(body, number))
        (tmp_path / f"in/{number}/f1.jpg").write_bytes(picture(number))
    endpoint.together = threading.Barrier(3, timeout=20)
    url = f"http://127.0.0.1:{endpoint.server_port}/v1"
    asked = {"summary": "model", "summary_url": url, "summary_model": "m7"}
    dataset = build(tmp_path / "in", tmp_path / "ds", articles_per_shard=3, context=asked)
    assert [dataset[i].summary for i in range(3)] == ["It is m7."] * 3
    assert len(endpoint.prompts) == 3


def test_two_threads_may_ask_the_same(tmp_path, monkeypatch):
    """Two figures can have the same caption and paragraphs; neither is in the other's way."""
    together = threading.Barrier(2, timeout=20)

    def ask(options, prompt):
        together.wait()
        return Summary("x", "m")

    monkeypatch.setattr(context, "_ask", ask)
    options = ContextOptions(summary="model", summary_url="u", summary_model="m")
    for number in range(50):
        prompts = [f"p{number}"] * 2
        cached = functools.partial(context._cached, options, str(tmp_path))
        assert list(in_threads(cached, prompts, 2)) == [Summary("x", "m")] * 2
    assert not list(tmp_path.rglob("*.tmp"))


def test_after_an_error_no_request_is_begun():
    begun, released = [], threading.Event()

    def ask(number):
        begun.append(number)
        if number == 0:
            raise ValueError("the endpoint failed")
        released.wait(1)

    with pytest.raises(ValueError, match="failed"):
        list(in_threads(ask, range(9), 1))
    released.set()
    assert begun in ([0], [0, 1])


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"summary": "gpt"}, "must be none, textrank or model"),
        ({"summary": "model"}, "--summary_url"),
        ({"references_tokens": 0}, "must be at least 1"),
    ],
)
def test_options_are_checked(changed, message):
    with pytest.raises(ValueError, match=message):
        ContextOptions(**changed).validate()
