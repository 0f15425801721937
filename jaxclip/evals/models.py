"""The models that are named on the command line: loaded, counted by seeds, and told apart."""

import collections
import functools
from collections.abc import Sequence

import jax
from etils import epath
from jax.sharding import Mesh

from jaxclip import inference
from jaxclip.evals.base import Embedder
from jaxclip.evals.run import MeshEmbedder, RunEmbedder
from jaxclip.sharding import tree_sharding
from jaxclip.start import is_run, open_model

RANDOM_SEEDS = 8


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
    own = open_model(path).tokenizer.path if tokenizer else ""
    return ImportedEmbedder(inference.load(path, tokenizer="" if own else tokenizer), mesh)


class ImportedEmbedder(MeshEmbedder):
    """What jaxclip.load gives, on all devices of a mesh."""

    def __init__(self, model: inference.Model, mesh: Mesh):
        family, self.has_text = model.family, model.has_text
        params = jax.device_put(model.params, tree_sharding(model.params, mesh))
        # without a vocabulary or text tower the model's own error says so
        encode_texts = model.tokenizer.encode if model.tokenizer else model.encode_text
        super().__init__(family.model, family.inputs, params, encode_texts, family.image, mesh)


@functools.lru_cache(maxsize=1)  # random seeds of a run share its compiled functions
def _run_embedder(path: str, mesh: Mesh) -> RunEmbedder:
    return RunEmbedder(path, mesh)


def path_of(model: str) -> epath.Path:
    """Of the first seed."""
    return epath.Path(seeds_of(model)[0].partition(":random")[0])


def distinct_names(models: Sequence[str]) -> dict[str, str]:
    """`["a/final", "b/final", "c"]` -> a/final, b/final, c: last folders, and parents if need be.

    Raises:
      ValueError: one is there twice.
    """
    parts = {model: epath.Path(model).parts or ("here",) for model in models}
    if len(set(parts.values())) < len(models):
        raise ValueError(f"--model ({', '.join(models)}) has a model twice. Name each once.")
    names = {model: of_one[-1] for model, of_one in parts.items()}
    for depth in range(2, 1 + max(map(len, parts.values()))):
        often = collections.Counter(names.values())
        names |= {m: "/".join(parts[m][-depth:]) for m, name in names.items() if often[name] > 1}
    return names


def name_of_seeds(model: str, names: dict[str, str]) -> str:
    """`run:random (8 seeds)`, `a,b,c (3 seeds)`."""
    of_seeds = [names[one] for one in seeds_of(model)]
    joined = of_seeds[0].removesuffix("0") if ":random" in model else ",".join(of_seeds)
    return f"{joined} ({len(of_seeds)} seeds)"
