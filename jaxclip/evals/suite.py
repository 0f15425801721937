"""Evaluation while training: a split of the run's own datasets, and public sets."""

import math
import re
from collections.abc import Callable, Iterable

import jax
from jax.sharding import Mesh

from jaxclip.config import EvalConfig, TrainConfig
from jaxclip.data.pipeline import eval_batches
from jaxclip.data.sources import open_sources
from jaxclip.data.text import Tokenizer
from jaxclip.evals.base import Measured, embed_split, make_embed
from jaxclip.evals.declared import DECLARED
from jaxclip.evals.embed import EmbeddingCache
from jaxclip.evals.evaluators import SuiteOptions, evaluate_split
from jaxclip.evals.retrieval import retrieval
from jaxclip.evals.run import MeshEmbedder
from jaxclip.evals.sets import dataset_labels, open_set, set_names
from jaxclip.evals.zero_shot import check_labels, check_names, load_prompts, prompts_name, zero_shot
from jaxclip.models import clip

Scores = dict[str, float]
Evaluate = Callable[[clip.Params], Scores]


def make_evaluate(
    config: TrainConfig, inputs: clip.Inputs, tokenizer: Tokenizer, mesh: Mesh
) -> Evaluate | None:
    """The function from parameters to scores, named SPLIT/[DATASET/]EVALUATOR/METRIC.

    Of public sets also SPLIT/DATASET/left_out/REASON, images that are not scored.
    DATASET is the name of a public set, or of one of the run's own, if it has several. None if
    nothing is to be scored.

    Raises, before anything is trained: ValueError, FileNotFoundError for a split without records, a
    prompt file or label column that does not exist, a public set that is not there or not right.
    """
    embedder = MeshEmbedder(config.model, inputs, {}, tokenizer.encode, config.data.image, mesh)
    parts: list[Callable[[], Scores]] = []
    if config.eval.split:
        parts.append(_of_own_split(config, inputs, tokenizer, embedder))
    if config.eval.sets:
        parts.append(_of_sets(config.eval, embedder))

    def evaluate(params: clip.Params) -> Scores:
        embedder.params = params
        return {name: value for part in parts for name, value in part().items()}

    return evaluate if parts else None


def _of_sets(config: EvalConfig, embedder: MeshEmbedder) -> Callable[[], Scores]:
    if unknown := [name for name in config.sets if name not in DECLARED]:
        raise ValueError(f"eval.sets {unknown} must be of {', '.join(DECLARED)}.")
    split, sets_dir = config.sets_split, config.sets_dir or "."
    sets = [open_set(name, DECLARED[name], sets_dir, (split,), split) for name in config.sets]

    def evaluate() -> Scores:
        cache = EmbeddingCache(embedder, None)  # these parameters are not seen again
        scores = {}
        for name, opened in zip(config.sets, sets, strict=True):
            found, _ = evaluate_split(cache, opened, split, SuiteOptions())
            told = flat(found)
            for reason, number in opened[split].left_out.items():
                told["left_out/" + re.sub(r"\W+", "_", reason)] = number
            scores |= {f"{split}/{name}/{key}": value for key, value in told.items()}
        return scores

    return evaluate


def _of_own_split(
    config: TrainConfig, inputs: clip.Inputs, tokenizer: Tokenizer, embedder: MeshEmbedder
) -> Callable[[], Scores]:
    sources = open_sources(config.data, config.eval.split)
    check_names(config.eval.zero_shot)
    prompts = [(prompts_name(file), load_prompts(file)) for file in config.eval.zero_shot]
    labels = [  # of each source, by prompt file
        [dataset_labels(source.dataset, p) for _, p in prompts] for source in sources
    ]
    for source, source_labels in zip(sources, labels, strict=True):
        for (_, p), label_N in zip(prompts, source_labels, strict=True):
            check_labels(label_N[source.positions], p)
    # the last batch is filled up anyway, so the size may be what the mesh can split
    mesh = embedder.mesh
    shards = math.lcm(mesh.shape["data"] * mesh.shape["fsdp"], jax.process_count())
    batch_size = math.ceil((config.eval.batch_size or config.batch_size) / shards) * shards
    embed = make_embed(config.model, inputs, mesh)

    names = set_names(sources)

    def evaluate() -> Scores:
        scores = {}
        for source, source_name, source_labels in zip(sources, names, labels, strict=True):
            batches = eval_batches(
                source,
                config.data,
                tokenizer,
                batch_size=batch_size,
                host=jax.process_index(),
                num_hosts=jax.process_count(),
            )
            embeddings = embed_split(embed, embedder.params, batches, mesh)
            name = f"{config.eval.split}/"
            if len(sources) > 1:
                name += f"{source_name}/"
            found = retrieval(embeddings)
            for (prompt_name, p), label in zip(prompts, source_labels, strict=True):
                found.append(
                    zero_shot(
                        embeddings, label, p, embedder.encode_text,
                        name=f"zero_shot/{prompt_name}", logit_scale=embedder.logit_scale,
                    )
                )  # fmt: skip
            scores |= {f"{name}{key}": value for key, value in flat(found).items()}
        return scores

    return evaluate


def flat(found: Iterable[Measured]) -> Scores:
    """NAME/METRIC, NAME/chance_METRIC where chance is known, NAME/COUNT."""
    scores = {}
    for measured in found:
        values = measured.values() | {f"chance_{k}": v for k, v in measured.chance.items()}
        values |= measured.counts
        scores |= {f"{measured.name}/{key}": value for key, value in values.items()}
    return scores
