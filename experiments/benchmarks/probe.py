r"""The linear probe's jitted L-BFGS beside scikit-learn's logistic regression, in one run.

    python -m experiments.benchmarks.probe --images=5000 --dim=512 --classes=10

Both fit all strengths of jaxclip.evals.probe.STRENGTHS; compilation is told apart. scikit-learn
goes from the strongest to the weakest with warm starts.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from jaxclip.evals.probe import MAX_STEPS, STRENGTHS, fit

_IMAGES = flags.DEFINE_integer("images", 5000, "")
_DIM = flags.DEFINE_integer("dim", 512, "of the embeddings")
_CLASSES = flags.DEFINE_integer("classes", 10, "")


def main(argv):
    del argv
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    true = rng.integers(0, _CLASSES.value, _IMAGES.value)
    x = rng.standard_normal((_CLASSES.value, _DIM.value))[true]
    x = (x + 4 * rng.standard_normal(x.shape)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    target = jnp.eye(_CLASSES.value)[true]
    work = (jnp.asarray(x), target, jnp.ones(len(x)), jnp.array(STRENGTHS))
    for name in ("jaxclip with compilation", "jaxclip"):
        start, cpu = time.perf_counter(), time.process_time()
        w = np.asarray(jax.block_until_ready(fit(*work, False)))
        print(f"{name}: {time.perf_counter() - start:.1f} s, {time.process_time() - cpu:.1f} CPU s")
    start, cpu = time.perf_counter(), time.process_time()
    model = LogisticRegression(warm_start=True, max_iter=MAX_STEPS, tol=1e-5)
    differences = []
    for l2, ours in zip(STRENGTHS, w, strict=True):
        model.set_params(C=1 / (l2 * len(x))).fit(x, true)
        differences.append(np.mean((x @ ours[:-1] + ours[-1]).argmax(1) == model.predict(x)))
    print(
        f"scikit-learn: {time.perf_counter() - start:.1f} s, {time.process_time() - cpu:.1f} CPU s"
    )
    print("same class said, by strength:", *(f"{share:.4f}" for share in differences))


if __name__ == "__main__":
    app.run(main)
