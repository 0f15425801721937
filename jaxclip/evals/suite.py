"""Evaluation while training: the evaluators over a split of the run's own datasets."""

import math
from collections.abc import Callable, Iterable

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip.config import TrainConfig
from jaxclip.data.pipeline import eval_batches
from jaxclip.data.sources import open_sources
from jaxclip.data.text import Tokenizer
from jaxclip.evals.base import Measured, embed_split, make_embed
from jaxclip.evals.retrieval import retrieval
from jaxclip.evals.zero_shot import check_labels, load_prompts, zero_shot
from jaxclip.models import clip

Scores = dict[str, float]


def model_inputs(config: TrainConfig, tokenizer: Tokenizer) -> clip.Inputs:
    """What the model takes in, from the image config and the tokenizer."""
    return clip.Inputs(
        image_size=config.data.image.size,
        mean=config.data.image.mean,
        std=config.data.image.std,
        vocab_size=tokenizer.vocab_size,
        context_length=tokenizer.context_length,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
    )


def make_evaluate(
    config: TrainConfig, inputs: clip.Inputs, tokenizer: Tokenizer, mesh: Mesh
) -> Callable[[clip.Params], Scores]:
    """The function from parameters to scores, named SPLIT/[DATASET/]EVALUATOR/METRIC.

    Raises, before anything is trained: ValueError, FileNotFoundError for a split without records, a
    prompt file or label column that does not exist.
    """
    sources = open_sources(config.data, config.eval.split)
    prompts = [(epath.Path(p).stem, load_prompts(p)) for p in config.eval.zero_shot]
    labels = [  # of each source, by prompt file
        [source.dataset.columns([p["label_column"]]).columns[0].to_numpy() for _, p in prompts]
        for source in sources
    ]
    for source, source_labels in zip(sources, labels, strict=True):
        for (_, p), label_N in zip(prompts, source_labels, strict=True):
            check_labels(label_N[source.positions], p)
    # the last batch is filled up anyway, so the size may be what the mesh can split
    shards = math.lcm(mesh.shape["data"] * mesh.shape["fsdp"], jax.process_count())
    batch_size = math.ceil((config.eval.batch_size or config.batch_size) / shards) * shards
    embed = make_embed(config.model, inputs, mesh)
    encode_text = jax.jit(
        lambda params, tokens: clip.encode_text(config.model, inputs, params, tokens),
        out_shardings=NamedSharding(mesh, PartitionSpec()),  # every host reads all of it
    )

    def evaluate(params: clip.Params) -> Scores:
        def encode_texts(texts):
            return np.asarray(encode_text(params, tokenizer.encode(texts)))

        scores = {}
        for source, source_labels in zip(sources, labels, strict=True):
            batches = eval_batches(
                source,
                config.data,
                tokenizer,
                batch_size=batch_size,
                host=jax.process_index(),
                num_hosts=jax.process_count(),
            )
            embeddings = embed_split(embed, params, batches, mesh)
            name = f"{config.eval.split}/"
            if len(sources) > 1:
                name += f"{epath.Path(source.path).name}/"
            found = retrieval(embeddings)
            logit_scale = float(np.exp(params["logit_scale"]))
            for (prompt_name, p), label in zip(prompts, source_labels, strict=True):
                found.append(
                    zero_shot(
                        embeddings, label, p, encode_texts,
                        name=f"zero_shot/{prompt_name}", logit_scale=logit_scale,
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


def score_lines(scores: Scores) -> list[str]:
    """`split/name: value (chance c)`, a line each; chance stands beside what it belongs to."""
    lines = []
    for name, value in scores.items():
        group, _, metric = name.rpartition("/")
        if metric.startswith("chance_"):
            continue
        chance = scores.get(f"{group}/chance_{metric}")
        shown = f"{value:.4f}" if isinstance(value, float) else f"{value:,}"
        lines.append(f"{name}: {shown}" + (f" (chance {chance:.4f})" if chance is not None else ""))
    return lines
