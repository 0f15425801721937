"""Scores a run's newest checkpoint: python -m jaxclip.evaluate --workdir=RUN --split=test"""

import json
from collections.abc import Sequence

import jax
from absl import flags
from etils import epath

from jaxclip import checkpoint, command
from jaxclip.config import load_config
from jaxclip.data.record import write_atomically
from jaxclip.evals.suite import make_evaluate, model_inputs, score_lines
from jaxclip.models import clip
from jaxclip.sharding import ShardingConfig, initialize_distributed, make_mesh, tree_sharding
from jaxclip.workdir import run_tokenizer

_WORKDIR = flags.DEFINE_string("workdir", None, "The run to score.")
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Of the dataset.")
_DATA = flags.DEFINE_multi_string("data", None, "Datasets; by default those of the run.")


def main(argv: Sequence[str]) -> None:
    del argv
    initialize_distributed()
    if not _WORKDIR.value:
        raise ValueError("--workdir is not set. Name the folder of a run: --workdir=RUN.")
    config = load_config(_WORKDIR.value)
    config.eval.split = _SPLIT.value
    if _DATA.value:
        config.data.path, config.data.weights = tuple(_DATA.value), ()
    mesh = make_mesh(ShardingConfig())  # this machine's devices, not those of the run
    tokenizer = run_tokenizer(_WORKDIR.value, config.data.tokenizer)
    inputs = model_inputs(config, tokenizer)
    evaluate = make_evaluate(config, inputs, tokenizer, mesh)
    shapes = jax.eval_shape(lambda: clip.init(config.model, inputs, jax.random.key(0)))
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        tree_sharding(shapes, mesh),
    )
    step, params = checkpoint.load_params(_WORKDIR.value, like, ema=config.eval.ema)
    scores = evaluate(params)
    if jax.process_index() == 0:
        print(f"{_WORKDIR.value}, step {step:,}:", *score_lines(scores), sep="\n  ")
        other = "".join(f"_{epath.Path(path).name}" for path in _DATA.value or ())
        file = epath.Path(_WORKDIR.value) / f"scores_{_SPLIT.value}{other}.json"
        write_atomically(file, json.dumps({"step": step, **scores}, indent=1))
        print(f"Written to {file}")


if __name__ == "__main__":
    command.run(main)
