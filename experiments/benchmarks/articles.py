"""How fast do articles become records, and what would the whole Open Access subset take?

    python -m experiments.benchmarks.articles --input=FOLDER [--out=articles.json]

Runs data_pipelines.pmc on --input with a worker a core, --rounds times, and divides its articles by
the CPU seconds of all its processes: what one core does in a second when nothing else wants it. The
start of the workers, the vocabulary and the card are in it. From the median follow core-hours and
bytes for --articles; bytes and seconds grow with the figures of an article and their size, so take
articles as they come. Fetching them is not in it.
"""

import contextlib
import io
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time

from absl import flags

from data_pipelines.pmc.build import build_pmc
from data_pipelines.pmc.context import ContextOptions
from data_pipelines.pmc.options import PmcOptions
from experiments.benchmarks.clock import cpu_seconds
from jaxclip import command

_INPUT = flags.DEFINE_string("input", None, "what data_pipelines.pmc reads", required=True)
_OUT = flags.DEFINE_string("out", "", "JSON to write")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "runs of the whole; the median counts")
_ARTICLES = flags.DEFINE_integer("articles", 6_000_000, "articles to extrapolate to")
_SUMMARY = flags.DEFINE_string("summary", "none", "as of data_pipelines.pmc")


def measure(folder: str) -> dict[str, float]:
    options = PmcOptions(input=_INPUT.value, out=os.path.join(folder, "dataset"))
    wall, cpu = time.perf_counter(), cpu_seconds()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        dataset = build_pmc(options, ContextOptions(summary=_SUMMARY.value))
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    files = [file for file in pathlib.Path(dataset.path).rglob("*") if file.is_file()]
    articles = dataset.manifest["counts"]["steps"]["articles"]
    return {
        "articles": articles,
        "records": len(dataset),
        "articles_per_second": articles / wall,
        "articles_per_cpu_second": articles / cpu,
        "bytes_per_article": sum(file.stat().st_size for file in files) / articles,
    }


def main(_) -> None:
    rounds = []
    for _ in range(_ROUNDS.value):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(measure(folder))
        print(", ".join(f"{name} {value:,.2f}" for name, value in rounds[-1].items()), flush=True)
    found = {name: statistics.median(of[name] for of in rounds) for name in rounds[0]}
    found["cores"] = command.num_cores()
    found["core_hours"] = _ARTICLES.value / found["articles_per_cpu_second"] / 3600
    found["terabytes"] = _ARTICLES.value * found["bytes_per_article"] / 1e12
    print(
        f"{found['articles_per_cpu_second']:.2f} articles/s/core; {_ARTICLES.value:,} articles: "
        f"{found['core_hours']:,.0f} core-hours, {found['terabytes']:.2f} TB"
    )
    if _OUT.value:
        report = found | {"rounds": rounds, "python": platform.python_version()}
        pathlib.Path(_OUT.value).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    command.run(main)
