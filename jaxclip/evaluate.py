r"""Scores one model or several, ours or anybody's, on a suite of evaluators.

    python -m jaxclip.evaluate --workdir=RUN --split=test
    python -m jaxclip.evaluate --model=RUN --model=RUN:random --set=vqa_rad --sets_dir=DIR \
        --suite=retrieval,zero_shot,probe,representation,robustness --out=RESULTS --page
    python -m jaxclip.evaluate --compare=RESULTS_A --compare=RESULTS_B  # or one, of several models

A model is the folder of a run, any checkpoint that jaxclip.load reads, or RUN:random, the model of
a run with random parameters, of 8 seeds: what chance looks like. A,B,C are seeds of one recipe:
their mean is reported, with an interval over images and seeds. Sets are the run's own datasets,
--data=DATASET or --set=NAME of evals/declared.py, in --sets_dir/NAME. One that is missing is named
with the place to get it, a set or model that cannot be read or scored with the reason; the others
are scored, and the exit code is 2 if any failed. Embeddings are kept by content: a second
evaluator, or a restart, does not embed again. Writes results.parquet, items.parquet, results.json
as sets are done and, with --page, index.html.
"""

import collections
import dataclasses
import os
from collections.abc import Container, Sequence
from typing import Any

import jax
import pyarrow as pa
from absl import flags, logging
from etils import epath
from jax.sharding import Mesh

from jaxclip import command
from jaxclip.config import load_config
from jaxclip.data.files import write_atomically
from jaxclip.data.record import ALL, SPLITS
from jaxclip.data.sources import DataConfig
from jaxclip.evals import page, results
from jaxclip.evals.across import Across
from jaxclip.evals.declared import DECLARED
from jaxclip.evals.embed import EmbeddingCache
from jaxclip.evals.evaluators import EVALUATORS, SuiteOptions, evaluate_split
from jaxclip.evals.models import (
    distinct_names,
    load_embedder,
    name_of_seeds,
    path_of,
    seeds_of,
)
from jaxclip.evals.representation import MAPS, require_map
from jaxclip.evals.retrieval import PROTOCOLS
from jaxclip.evals.sets import EvalSplit, of_dataset, open_set
from jaxclip.evals.uncertainty import DRAWS
from jaxclip.evals.zero_shot import check_names, load_prompts
from jaxclip.sharding import ShardingConfig, initialize_distributed, make_mesh
from jaxclip.start import is_run
from jaxclip.workdir import environment

_MODEL = flags.DEFINE_multi_string("model", [], "A run, RUN:random, or a checkpoint; repeatable.")
_SPLIT = flags.DEFINE_enum("split", "test", [*SPLITS, ALL], "Of the sets.")
_DATA = flags.DEFINE_multi_string("data", [], "Datasets; by default those of the first run.")
_SET = flags.DEFINE_multi_string("set", [], "Public sets, by their names in evals/declared.py.")
_SETS_DIR = flags.DEFINE_string("sets_dir", "", "The folder that the public sets are in.")
_SUITE = flags.DEFINE_list("suite", ["retrieval", "zero_shot"], f"Of {', '.join(EVALUATORS)}.")
_ZERO_SHOT = flags.DEFINE_multi_string(
    "zero_shot", [], "Prompt files for --data; default: the run's."
)
_TEMPLATES = flags.DEFINE_string(
    "templates", "", "A choice of prompts/_templates.json, for all sets: templates and class names."
)
_PROTOCOL = flags.DEFINE_enum("protocol", PROTOCOLS[0], PROTOCOLS, "Of retrieval.")
_DRAWS = flags.DEFINE_integer("draws", DRAWS, "Of the bootstrap.", lower_bound=0)
_OUT = flags.DEFINE_string(
    "out", "", "Where results go; default: RUN/evaluation/SPLIT, of others evaluation/NAME/SPLIT."
)
_CACHE = flags.DEFINE_string("cache", "", "Where embeddings are kept; default: OUT/embeddings.")
_PAGE = flags.DEFINE_bool("page", False, "Also a page with pictures: OUT/index.html.")
_MAP = flags.DEFINE_enum("map", "tsne", list(MAPS), "The map of embeddings on the page.")
_COMPARE = flags.DEFINE_multi_string("compare", [], "Results whose models to compare.")
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", "", "Vocabulary of checkpoints that come without one."
)


def main(argv: Sequence[str]) -> int | None:
    del argv
    initialize_distributed()
    if _COMPARE.value:
        return _compare(_COMPARE.value)
    if not _MODEL.value:
        raise ValueError("--model is not set. Name a run or a checkpoint: --model=RUN.")
    options = SuiteOptions(
        suite=tuple(_SUITE.value), protocol=_PROTOCOL.value, templates=_TEMPLATES.value
    )
    options.validate(_SPLIT.value)
    if _PAGE.value and _MAP.value != "tsne":  # asked for, so not replaced
        require_map(_MAP.value)
    names = distinct_names([one for model in _MODEL.value for one in seeds_of(model)])
    out = epath.Path(_OUT.value or _default_out(_MODEL.value[0]))
    _check_writable(out)
    report = Report(out=out, options=options, names=names)
    splits = _open_sets(_MODEL.value[0], report)
    mesh = make_mesh(ShardingConfig())  # this machine's devices, not those of the run
    for model in _MODEL.value:
        _score(model, splits, epath.Path(_CACHE.value or out / "embeddings"), mesh, report)
    if report.rows:
        report.write()  # with what failed last
    if jax.process_index() == 0:
        print(*results.summary(report.rows), *report.lines(), sep="\n")
        if _PAGE.value and report.rows:
            print("Page:", page.write_page(out, report.rows, report.sections, report.notes()))
    if not report.rows:
        raise ValueError("Nothing could be scored: see what was skipped or failed, above.")
    return command.EXIT_USER_ERROR if report.failed else None


@dataclasses.dataclass(slots=True, kw_only=True)
class Report:
    """What has been found so far; embeddings and models are not kept."""

    out: epath.Path
    options: SuiteOptions
    names: dict[str, str]  # of the models
    skipped: list[str] = dataclasses.field(default_factory=list)  # what is not there
    failed: list[str] = dataclasses.field(default_factory=list)  # what is there, but wrong
    left_out: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)  # by set
    known: dict[str, str] = dataclasses.field(default_factory=dict)  # of sets: before one quotes
    rows: list[results.Row] = dataclasses.field(default_factory=list)
    items: list[pa.Table] = dataclasses.field(default_factory=list)
    across: Across = dataclasses.field(default_factory=Across)
    sections: list[str] = dataclasses.field(default_factory=list)  # of the page

    def fail(self, what: str, error: Exception) -> None:
        """Names what went wrong; the rest goes on."""
        self.failed.append(f"{what}: {error}")
        if not command.is_ours(error):
            logging.exception("%s", what)

    def draw(self, model: str, cache: EmbeddingCache, scored: EvalSplit) -> None:
        """Adds a model's section on a set to the page; scores do not depend on it."""
        try:
            section = page.section(model, cache, scored, self.options.templates, _MAP.value)
            self.sections.append(section)
        except Exception as error:
            self.fail(f"page of {model} on {scored.name}/{scored.split}", error)

    def write(self) -> None:
        """What there is so far, in place of what was there."""
        if jax.process_index() == 0:
            about = {"environment": environment(), "skipped": self.skipped, "failed": self.failed}
            about |= {"options": dataclasses.asdict(self.options), "draws": _DRAWS.value}
            about |= {"notes": self.known, "missing": _missing_sets(self.left_out)}
            results.write(self.rows, self.items, self.out, about | {"left_out": self.left_out})

    def lines(self) -> list[str]:
        return self.notes() + ([f"Written to {self.out}"] if self.rows else [])

    def notes(self) -> list[str]:
        """What to know of the scores, and what is not in them and why."""
        found = [f"Note on {name}: {note}" for name, note in self.known.items()]
        found += [
            f"Left out of {name}: {n:,} ({why})"
            for name, reasons in self.left_out.items()
            for why, n in reasons.items()
        ]
        found += [f"Skipped: {why}" for why in self.skipped]
        return found + [f"Failed: {why}" for why in self.failed]


def _score(
    model: str,
    splits: Sequence[dict[str, EvalSplit]],
    directory: epath.Path,
    mesh: Mesh,
    report: Report,
) -> None:
    """Adds a model's results to the report, set by set; of several seeds, the mean of all."""
    options = report.options
    if ":random" in model and "robustness" in options.suite:
        report.skipped.append(f"robustness of {model}: random weights have nothing to lose.")
        suite = tuple(name for name in options.suite if name != "robustness")
        options = dataclasses.replace(options, suite=suite)
    seeds = seeds_of(model)
    of_sets: list[list[list[results.Row]]] = [[] for _ in splits]
    for seed, one in enumerate(seeds):
        try:
            embedder = load_embedder(one, mesh, _TOKENIZER.value)
        except Exception as error:  # nor does a model that cannot be read take the others
            report.fail(f"model {one}", error)
            return
        cache = EmbeddingCache(embedder, directory)
        step = getattr(cache.embedder, "step", 0)
        name = report.names[one] + (f" step {step}" if step else "")
        for of_splits, of_seeds in zip(splits, of_sets, strict=True):
            scored = of_splits[_SPLIT.value]
            told: dict[str, Any] = {"model": name, "set_name": scored.name, "split": scored.split}
            try:
                found, nothing = evaluate_split(cache, of_splits, _SPLIT.value, options)
                if "representation" in options.suite:
                    found += report.across.measured(model, name, cache, scored)
                of_seeds.append(
                    results.rows_of(found, **told, identity=scored.identity, draws=_DRAWS.value)
                )
            except Exception as error:  # whatever is wrong with one set, the others are scored
                report.fail(f"{name} on {scored.name}/{scored.split}", error)
                continue
            report.items += results.items_of(found, **told, modality_N=scored.modalities)
            report.skipped += [line for line in nothing if line not in report.skipped]
            if len(of_seeds) == len(seeds):
                mean_name = name_of_seeds(model, report.names)
                together = results.over_seeds(of_seeds, mean_name) if seed else of_seeds[0]
                report.rows += together
                report.write()
            if _PAGE.value and not seed:
                report.draw(name, cache, scored)


def _default_out(model: str) -> epath.Path:
    """Beside a run's own files; never below a checkpoint, which may be a file or a hub's name."""
    path = path_of(model)
    inside = path if is_run(path) else epath.Path()
    name = () if is_run(path) else (path.name,)
    return inside.joinpath("evaluation", *name, _SPLIT.value)


def _check_writable(out: epath.Path) -> None:
    """Raises ValueError: nothing can be written there; now, not after hours of embedding."""
    if jax.process_index() != 0:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / ".writable", "")
        (out / ".writable").unlink()
    except OSError as error:
        raise ValueError(
            f"--out ({out}) cannot be written ({error.strerror or error}). Name another folder."
        ) from None


def _missing_sets(found: Container[str]) -> list[str]:
    """Where the sets were looked for that were named and skipped."""
    folder = epath.Path(_SETS_DIR.value or ".")
    return [os.fspath(folder / name) for name in _SET.value if name not in found]


def _open_sets(model: str, report: Report) -> list[dict[str, EvalSplit]]:
    """Splits of each set that is there; the report is told of each that is not, or is not right."""
    found, split = [], _SPLIT.value
    needed = sorted({split, *(("train", "validation") if "probe" in _SUITE.value else ())})
    for name in _SET.value:
        if name not in DECLARED:
            raise ValueError(f"--set ({name}) must be one of {', '.join(DECLARED)}.")
    for name in _SET.value:
        try:
            if prompts := DECLARED[name].prompts:
                load_prompts(prompts, _TEMPLATES.value)  # before anything is embedded
            found.append(open_set(name, DECLARED[name], _SETS_DIR.value or ".", needed, split))
            if DECLARED[name].note:
                report.known[name] = DECLARED[name].note
        except FileNotFoundError as error:
            report.skipped.append(str(error))
        except Exception as error:
            report.fail(f"set {name}", error)
    if _DATA.value or not _SET.value:
        config, prompt_files = _data_config(model)
        by_split = {
            split: of_dataset(config, split, prompt_files, _TEMPLATES.value) for split in needed
        }
        for i in range(len(config.path)):
            found.append({split: sets[i] for split, sets in by_split.items()})
    report.left_out = {s[split].name: s[split].left_out for s in found}
    return found


def _data_config(model: str) -> tuple[DataConfig, tuple[str, ...]]:
    path = path_of(model)
    data, prompt_files = DataConfig(), ()
    if is_run(path):
        config = load_config(path)
        data, prompt_files = config.data, config.eval.zero_shot
    if _DATA.value:
        data.path, data.weights = tuple(_DATA.value), ()
    if not data.path:
        raise ValueError(f"--data is not set, and {model} is no run that has some. Set it.")
    prompt_files = tuple(_ZERO_SHOT.value) or prompt_files
    check_names(prompt_files)
    return data, prompt_files


def _compare(files: Sequence[str]) -> None:
    """The first model of the results with each other one of them."""
    tables = {}
    for file in files:
        for row in results.read(file):
            tables.setdefault((file, row["model"]), []).append(row)
    if len(tables) < 2:
        raise ValueError(f"--compare ({', '.join(files)}) has one model. Name results of two.")
    names = collections.Counter(name for _, name in tables)
    for (file, name), table in tables.items():
        for row in table if names[name] > 1 else ():
            row["model"] = f"{name} of {file}"
    first, *others = tables.values()
    rows = [row for other in others for row in results.compared(first, other)]
    if not rows:
        raise ValueError(f"The models of {', '.join(files)} have no set and metric in common.")
    print(*results.compared_lines(rows), sep="\n")
    if (verdicts := sum("difference" in row for row in rows)) > 1:
        print(
            f"Each of the {verdicts} verdicts is for itself: of 20 on models that are alike, one "
            "is wrong on average."
        )


if __name__ == "__main__":
    flags.DEFINE_alias("workdir", "model")  # jaxclip.train has one of this name
    command.run(main)
