r"""Scores one model or several, ours or anybody's, on a suite of evaluators.

    python -m jaxclip.evaluate --workdir=RUN --split=test
    python -m jaxclip.evaluate --model=RUN --model=RUN:random --set=vqa_rad --sets_dir=DIR \
        --suite=retrieval,zero_shot,probe,representation,robustness --out=RESULTS --page
    python -m jaxclip.evaluate --compare=RESULTS_A --compare=RESULTS_B

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
from typing import Any

import jax
from absl import flags
from etils import epath
from jax.sharding import Mesh

import jaxclip
from jaxclip import command
from jaxclip.config import load_config
from jaxclip.data.sources import DataConfig
from jaxclip.evals import results
from jaxclip.evals.base import Embedder
from jaxclip.evals.declared import DECLARED
from jaxclip.evals.embed import EmbeddingCache
from jaxclip.evals.evaluators import EVALUATORS, SuiteOptions, evaluate_split
from jaxclip.evals.representation import SAMPLES, cka
from jaxclip.evals.retrieval import PROTOCOLS
from jaxclip.evals.run import RunEmbedder
from jaxclip.evals.sets import EvalSplit, of_dataset, open_set
from jaxclip.evals.uncertainty import DRAWS
from jaxclip.sharding import ShardingConfig, initialize_distributed, make_mesh
from jaxclip.workdir import environment

_MODEL = flags.DEFINE_multi_string("model", [], "A run, RUN:random, or a checkpoint; repeatable.")
flags.DEFINE_alias("workdir", "model")
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Of the sets.")
_DATA = flags.DEFINE_multi_string("data", [], "Datasets; by default those of the first run.")
_SET = flags.DEFINE_multi_string("set", [], "Public sets, by their names in evals/declared.py.")
_SETS_DIR = flags.DEFINE_string("sets_dir", "", "The folder that the public sets are in.")
_SUITE = flags.DEFINE_list("suite", ["retrieval", "zero_shot"], f"Of {', '.join(EVALUATORS)}.")
_ZERO_SHOT = flags.DEFINE_multi_string(
    "zero_shot", [], "Prompt files for --data; default: the run's."
)
_TEMPLATES = flags.DEFINE_string("templates", "", "Of prompts/_templates.json, for all sets.")
_PROTOCOL = flags.DEFINE_enum("protocol", PROTOCOLS[0], PROTOCOLS, "Of retrieval.")
_DRAWS = flags.DEFINE_integer("draws", DRAWS, "Of the bootstrap.", lower_bound=0)
_OUT = flags.DEFINE_string("out", "", "Where results go; default: RUN/evaluation/SPLIT.")
_CACHE = flags.DEFINE_string("cache", "", "Where embeddings are kept; default: OUT/embeddings.")
_PAGE = flags.DEFINE_bool("page", False, "Also a page with pictures: OUT/index.html.")
RANDOM_SEEDS = 8
_COMPARE = flags.DEFINE_multi_string("compare", [], "Two results to compare, instead of scoring.")


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
    splits, missing = _open_sets(_MODEL.value[0])
    mesh = make_mesh(ShardingConfig())  # this machine's devices, not those of the run
    directory = epath.Path(_CACHE.value or out / "embeddings")
    rows, items, pages = [], [], []
    for model in _MODEL.value:
        of_seeds = []
        for one in seeds_of(model):
            cache = EmbeddingCache(load_embedder(one, mesh), directory)
            of_seeds.append([])
            for of_splits in splits:
                scored = of_splits[_SPLIT.value]
                found = evaluate_split(cache, of_splits, _SPLIT.value, options)
                name = model_name(one, cache.embedder)
                of_seeds[-1] += results.rows_of(
                    found, model=name, set_name=scored.name, split=scored.split,
                    identity=scored.identity, draws=_DRAWS.value,
                )  # fmt: skip
                items += results.items_of(
                    found, model=name, set_name=scored.name, split=scored.split
                )
                if len(of_seeds) == 1:
                    pages.append((name, cache, scored))
        name = f"{model.rpartition('/')[2]} ({len(of_seeds)} seeds)"
        rows += results.over_seeds(of_seeds, name) if len(of_seeds) > 1 else of_seeds[0]
    rows += _alignments(pages)
    left_out = {s[_SPLIT.value].name: s[_SPLIT.value].left_out for s in splits}
    if jax.process_index() == 0:
        about = {"environment": environment(), "missing": missing, "left_out": left_out}
        about |= {"options": dataclasses.asdict(options), "draws": _DRAWS.value}
        results.write(rows, items, out, about)
        print(*results.summary(rows), sep="\n")
        for name, reasons in left_out.items():
            print(*(f"Left out of {name}: {n:,} ({why})" for why, n in reasons.items()), sep="\n")
        print(*missing, f"Written to {out}", sep="\n")
        if _PAGE.value:
            from jaxclip.evals.page import write_page

            print("Page:", write_page(out, rows, pages, options.templates))
    if not rows:
        raise ValueError("No set could be scored: all of them are missing, see above.")


def _alignments(pages: Sequence[tuple[str, EmbeddingCache, EvalSplit]]) -> list[results.Row]:
    """CKA of the first model's images of each set with those of every other model."""
    rows, first = [], {}
    if "representation" not in _SUITE.value:
        return rows
    for name, cache, scored in pages:
        image_NE = cache.images(scored.content_hash, scored.images)[:SAMPLES]
        other, other_NE = first.setdefault(scored.name, (name, image_NE))
        if other != name:
            rows.append(
                dict.fromkeys(results.ROW.names)
                | {"model": name, "set": scored.name, "split": scored.split}
                | {"evaluator": "representation", "metric": f"image_cka_with_{other}"}
                | {"value": cka(other_NE, image_NE), "units": len(image_NE)}
                | {"groups": len(image_NE), "seed": 0, "identity": scored.identity}
            )
    return rows


def seeds_of(model: str) -> list[str]:
    """`"A,B"` -> A, B; `"RUN:random"` -> RUN:random0 to RUN:random7."""
    if model.endswith(":random"):
        return [f"{model}{seed}" for seed in range(RANDOM_SEEDS)]
    return model.split(",")


def load_embedder(model: str, mesh: Mesh) -> Embedder:
    """A run, RUN:randomSEED, or what jaxclip.load reads.

    Raises:
      FileNotFoundError: there is no such thing.
    """
    path, is_random, seed = model.partition(":random")
    if is_run(path):
        embedder = _run_embedder(path, mesh)
        return embedder.randomised(int(seed)) if is_random else embedder
    load: Any = getattr(jaxclip, "load", None)
    if load is None or is_random:
        raise FileNotFoundError(f"--model ({model}) holds no run of jaxclip.train.")
    return load(model)


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
    found, missing = [], []
    needed = ("train", "validation") if "probe" in _SUITE.value else ()
    needed = sorted({*needed, _SPLIT.value})
    for name in _SET.value:
        if name not in DECLARED:
            raise ValueError(f"--set ({name}) must be one of {', '.join(DECLARED)}.")
        try:
            splits = open_set(name, DECLARED[name], _SETS_DIR.value or ".", needed)
            if _SPLIT.value not in splits:
                raise FileNotFoundError(f"{name} has no {_SPLIT.value} split: {', '.join(splits)}.")
            found.append(splits)
        except FileNotFoundError as error:
            missing.append(f"Skipped: {error}")
    if _DATA.value or not _SET.value:
        config, prompt_files = _data_config(model)
        by_split = {
            split: of_dataset(config, split, prompt_files, _TEMPLATES.value) for split in needed
        }
        for i in range(len(config.path)):
            found.append({split: sets[i] for split, sets in by_split.items()})
    return found, missing


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
    if len(files) != 2:
        raise ValueError(f"--compare was given {len(files)} times. Name two results.")
    rows = results.compared(*(results.read(file) for file in files))
    if not rows:
        raise ValueError(f"{files[0]} and {files[1]} have no set and metric in common.")
    print(*results.compared_lines(rows), sep="\n")


if __name__ == "__main__":
    command.run(main)
