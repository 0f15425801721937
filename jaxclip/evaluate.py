r"""Scores one model or several, ours or anybody's, on a suite of evaluators.

    python -m jaxclip.evaluate --workdir=RUN --split=test
    python -m jaxclip.evaluate --model=RUN --model=RUN:random --set=vqa_rad --sets_dir=DIR \
        --suite=retrieval,zero_shot,probe,representation,robustness --out=RESULTS --page
    python -m jaxclip.evaluate --compare=RESULTS_A --compare=RESULTS_B  # or one, of several models

A model is the folder of a run, any checkpoint that jaxclip.load reads, or RUN:random, the model of
a run with random parameters, of 8 seeds: what chance looks like. A,B,C are seeds of one recipe:
their mean is reported, with an interval over images and seeds. Sets are the run's own datasets,
--data=DATASET or --set=NAME of evals/declared.py, in --sets_dir/NAME; one that is missing is named
with the place to get it, and the others are scored. Embeddings are kept by content: a second
evaluator, or a restart, does not embed again. Writes results.parquet, items.parquet, results.json
and, with --page, index.html.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
import pyarrow as pa
from absl import flags
from etils import epath
from jax.sharding import Mesh

import jaxclip
from jaxclip import command
from jaxclip.config import load_config
from jaxclip.data.sources import DataConfig
from jaxclip.evals import page, results
from jaxclip.evals.base import Embedder
from jaxclip.evals.declared import DECLARED
from jaxclip.evals.embed import EmbeddingCache
from jaxclip.evals.evaluators import EVALUATORS, SuiteOptions, evaluate_split
from jaxclip.evals.representation import sample, similarity
from jaxclip.evals.retrieval import PROTOCOLS
from jaxclip.evals.run import RunEmbedder
from jaxclip.evals.sets import EvalSplit, of_dataset, open_set
from jaxclip.evals.uncertainty import DRAWS
from jaxclip.evals.zero_shot import load_prompts
from jaxclip.sharding import ShardingConfig, initialize_distributed, make_mesh
from jaxclip.workdir import environment

_MODEL = flags.DEFINE_multi_string("model", [], "A run, RUN:random, or a checkpoint; repeatable.")
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Of the sets.")
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
_OUT = flags.DEFINE_string("out", "", "Where results go; default: RUN/evaluation/SPLIT.")
_CACHE = flags.DEFINE_string("cache", "", "Where embeddings are kept; default: OUT/embeddings.")
_PAGE = flags.DEFINE_bool("page", False, "Also a page with pictures: OUT/index.html.")
_COMPARE = flags.DEFINE_multi_string("compare", [], "Results whose models to compare.")
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", "", "Vocabulary of checkpoints that come without one."
)
RANDOM_SEEDS = 8


def main(argv: Sequence[str]) -> None:
    del argv
    initialize_distributed()
    if _COMPARE.value:
        return _compare(_COMPARE.value)
    if not _MODEL.value:
        raise ValueError("--model is not set. Name a run or a checkpoint: --model=RUN.")
    if unknown := set(_SUITE.value) - set(EVALUATORS):
        raise ValueError(f"--suite ({', '.join(unknown)}) must be of {', '.join(EVALUATORS)}.")
    out = epath.Path(_OUT.value or _default_out(_MODEL.value[0]))
    options = SuiteOptions(
        suite=tuple(_SUITE.value), protocol=_PROTOCOL.value, templates=_TEMPLATES.value
    )
    splits, skipped = _open_sets(_MODEL.value[0])
    report = Report(skipped=skipped)
    mesh = make_mesh(ShardingConfig())  # this machine's devices, not those of the run
    for model in _MODEL.value:
        _score(model, splits, options, epath.Path(_CACHE.value or out / "embeddings"), mesh, report)
    left_out = {s[_SPLIT.value].name: s[_SPLIT.value].left_out for s in splits}
    if jax.process_index() == 0:
        about = {"environment": environment(), "skipped": report.skipped, "left_out": left_out}
        about |= {"options": dataclasses.asdict(options), "draws": _DRAWS.value}
        results.write(report.rows, report.items, out, about)
        print(*results.summary(report.rows), sep="\n")
        lines = [
            f"Left out of {name}: {n:,} ({why})"
            for name, reasons in left_out.items()
            for why, n in reasons.items()
        ]
        lines += [f"Skipped: {why}" for why in report.skipped]
        print(*lines, f"Written to {out}", sep="\n")
        if _PAGE.value:
            print("Page:", page.write_page(out, report.rows, report.sections))
    if not report.rows:
        raise ValueError("No set could be scored: see what was skipped, above.")


@dataclasses.dataclass(slots=True, kw_only=True)
class Report:
    """What has been found so far; embeddings and models are not kept."""

    skipped: list[str]  # sets and evaluators, with the reason
    rows: list[results.Row] = dataclasses.field(default_factory=list)
    items: list[pa.Table] = dataclasses.field(default_factory=list)
    first: dict[str, tuple[str, str, np.ndarray]] = dataclasses.field(default_factory=dict)
    sections: list[str] = dataclasses.field(default_factory=list)  # of the page


def _score(
    model: str,
    splits: Sequence[dict[str, EvalSplit]],
    options: SuiteOptions,
    directory: epath.Path,
    mesh: Mesh,
    report: Report,
) -> None:
    """Adds a model's results to the report; of several seeds, their mean's."""
    if ":random" in model and "robustness" in options.suite:
        report.skipped.append(f"robustness of {model}: random weights have nothing to lose.")
        suite = tuple(name for name in options.suite if name != "robustness")
        options = dataclasses.replace(options, suite=suite)
    of_seeds = []
    for one in seeds_of(model):
        cache = EmbeddingCache(load_embedder(one, mesh, _TOKENIZER.value), directory)
        name = model_name(one, cache.embedder)
        of_seeds.append([])
        for of_splits in splits:
            scored = of_splits[_SPLIT.value]
            found, nothing = evaluate_split(cache, of_splits, _SPLIT.value, options)
            of_seeds[-1] += results.rows_of(
                found, model=name, set_name=scored.name, split=scored.split,
                identity=scored.identity, draws=_DRAWS.value,
            )  # fmt: skip
            report.items += results.items_of(
                found, model=name, set_name=scored.name, split=scored.split,
                modality_N=scored.modalities,
            )  # fmt: skip
            if "representation" in options.suite:
                of_seeds[-1] += _similarity(model, name, cache, scored, report.first)
            if len(of_seeds) > 1:
                continue
            report.skipped += [line for line in nothing if line not in report.skipped]
            if _PAGE.value:
                report.sections.append(page.section(name, cache, scored, options.templates))
    name = f"{model.rpartition('/')[2]} ({len(of_seeds)} seeds)"
    report.rows += results.over_seeds(of_seeds, name) if len(of_seeds) > 1 else of_seeds[0]


def _similarity(
    model: str,
    name: str,
    cache: EmbeddingCache,
    scored: EvalSplit,
    first: dict[str, tuple[str, str, np.ndarray]],
) -> list[results.Row]:
    """CKA with the first model that saw the set, of the images; that one itself has none."""
    chosen = sample(len(scored.images))
    image_NE = cache.images(scored.content_hash, scored.images)[chosen]
    first_model, first_name, first_NE = first.setdefault(scored.name, (model, name, image_NE))
    if first_model == model:
        return []
    groups = chosen if scored.groups is None else scored.groups[chosen]
    return results.rows_of(
        [similarity(first_name, first_NE, image_NE, groups)], model=name, set_name=scored.name,
        split=scored.split, identity=scored.identity, draws=_DRAWS.value,
    )  # fmt: skip


def seeds_of(model: str) -> list[str]:
    """`"A,B"` -> A, B; `"RUN:random"` -> RUN:random0 to RUN:random7."""
    if model.endswith(":random"):
        return [f"{model}{seed}" for seed in range(RANDOM_SEEDS)]
    return model.split(",")


def load_embedder(model: str, mesh: Mesh, tokenizer: str = "") -> Embedder:
    """A run, RUN:randomSEED, or what jaxclip.load reads, with this vocabulary if it has none.

    Raises:
      FileNotFoundError: there is no such thing.
    """
    path, is_random, seed = model.partition(":random")
    if is_run(path):
        embedder = _run_embedder(path, mesh)
        return embedder.randomised(int(seed)) if is_random else embedder
    if is_random:
        raise FileNotFoundError(f"--model ({model}) holds no run of jaxclip.train.")
    return jaxclip.load(path, tokenizer=tokenizer)


@functools.lru_cache(maxsize=1)  # random seeds of a run share its compiled functions
def _run_embedder(path: str, mesh: Mesh) -> RunEmbedder:
    return RunEmbedder(path, mesh)


def is_run(path: epath.PathLike) -> bool:
    return all((epath.Path(path) / file).exists() for file in ("config.json", "run.json"))


def model_name(model: str, embedder: Embedder) -> str:
    step = getattr(embedder, "step", 0)
    return epath.Path(model).name + (f" step {step}" if step else "")


def _default_out(model: str) -> epath.Path:
    return _first(model) / "evaluation" / _SPLIT.value


def _first(model: str) -> epath.Path:
    return epath.Path(seeds_of(model)[0].partition(":random")[0])


def _open_sets(model: str) -> tuple[list[dict[str, EvalSplit]], list[str]]:
    """Splits of each set that is there, and a line on each that is not."""
    found, skipped = [], []
    needed = ("train", "validation") if "probe" in _SUITE.value else ()
    needed = sorted({*needed, _SPLIT.value})
    for name in _SET.value:
        if name not in DECLARED:
            raise ValueError(f"--set ({name}) must be one of {', '.join(DECLARED)}.")
        if prompts := DECLARED[name].prompts:
            load_prompts(prompts, _TEMPLATES.value)  # before anything is embedded
        try:
            splits = open_set(name, DECLARED[name], _SETS_DIR.value or ".", needed)
            if _SPLIT.value not in splits:
                raise FileNotFoundError(f"{name} has no {_SPLIT.value} split: {', '.join(splits)}.")
            found.append(splits)
        except FileNotFoundError as error:
            skipped.append(str(error))
    if _DATA.value or not _SET.value:
        config, prompt_files = _data_config(model)
        by_split = {
            split: of_dataset(config, split, prompt_files, _TEMPLATES.value) for split in needed
        }
        for i in range(len(config.path)):
            found.append({split: sets[i] for split, sets in by_split.items()})
    return found, skipped


def _data_config(model: str) -> tuple[DataConfig, tuple[str, ...]]:
    path = _first(model)
    data, prompt_files = DataConfig(), ()
    if is_run(path):
        config = load_config(path)
        data, prompt_files = config.data, config.eval.zero_shot
    if _DATA.value:
        data.path, data.weights = tuple(_DATA.value), ()
    if not data.path:
        raise ValueError(f"--data is not set, and {model} is no run that has some. Set it.")
    return data, tuple(_ZERO_SHOT.value) or prompt_files


def _compare(files: Sequence[str]) -> None:
    """The first model of the results with each other one of them."""
    tables = []
    for file in files:
        rows = results.read(file)
        models = dict.fromkeys(row["model"] for row in rows)
        tables += [[row for row in rows if row["model"] == model] for model in models]
    if len(tables) < 2:
        raise ValueError(f"--compare ({', '.join(files)}) has one model. Name results of two.")
    rows = [row for other in tables[1:] for row in results.compared(tables[0], other)]
    if not rows:
        raise ValueError(f"The models of {', '.join(files)} have no set and metric in common.")
    print(*results.compared_lines(rows), sep="\n")


if __name__ == "__main__":
    flags.DEFINE_alias("workdir", "model")  # jaxclip.train has one of this name
    command.run(main)
