"""What is linearly in the embeddings: linear probe, few-shot and nearest neighbours.

Logistic regression, all strengths of regularisation fitted at once by a jitted L-BFGS (faster than
scikit-learn's one by one: experiments/benchmarks/probe.py), the strength chosen on validation data.
To fine-tune instead of probing: configs/fine_tune.py.

Shape letters: N images, C classes, E embedding, L strengths, K neighbours.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import expit

from jaxclip.evals.base import Measured
from jaxclip.evals.classification import multi_label, single_label
from jaxclip.evals.retrieval import SCORES

STRENGTHS = tuple(10.0**p for p in range(-1, -8, -1))  # of l2 beside the MEAN loss: 1 / (C N)
SHOTS = (1, 2, 4, 8, 16)
FEW_SHOT_DRAWS = 5
NEIGHBOURS, TEMPERATURE = 20, 0.07  # of Wu et al. 2018 (arXiv:1805.01978), as DINO evaluates
MAX_STEPS = 300


@functools.partial(jax.jit, static_argnames="several")
def fit(
    x_NE: jax.Array, target_NC: jax.Array, counts_N: jax.Array, l2_L: jax.Array, several: bool
) -> jax.Array:
    """Weights and biases [L, E + 1, C] that minimise mean loss + l2 / 2 |weights|^2.

    Args:
      counts_N: 1, or 0 for a row that only fills up the array: one shape is one compilation.
      target_NC: one-hot, or with `several` any of C findings.
      several: a sigmoid each instead of one softmax.
    """
    first = jnp.zeros((x_NE.shape[1] + 1, target_NC.shape[1]), jnp.float32)

    def fit_one(l2):
        def loss(w):
            losses = _losses(x_NE @ w[:-1] + w[-1], target_NC, several)
            return losses @ counts_N / counts_N.sum() + l2 / 2 * jnp.sum(w[:-1] ** 2)

        optimizer = optax.lbfgs(memory_size=10)
        value_and_grad = optax.value_and_grad_from_state(loss)

        def step(carry):
            w, state, _, count = carry
            value, gradient = value_and_grad(w, state=state)
            grad: Any = gradient
            updates, state = optimizer.update(grad, state, w, value=value, grad=grad, value_fn=loss)
            moved: Any = optax.apply_updates(w, updates)
            return moved, state, jnp.max(jnp.abs(grad)), count + 1

        def goes_on(carry):
            return (carry[2] > 1e-5) & (carry[3] < MAX_STEPS)

        start = (first, optimizer.init(first), jnp.float32(jnp.inf), 0)
        return jax.lax.while_loop(goes_on, step, start)[0]

    return jax.vmap(fit_one)(l2_L)


def _losses(logit_NC, target_NC, several):
    if several:
        return optax.sigmoid_binary_cross_entropy(logit_NC, target_NC).sum(axis=-1)
    return optax.softmax_cross_entropy(logit_NC, target_NC)


def linear_logits(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    test_NE: np.ndarray,
    several: bool,
    rows: int = 0,
) -> tuple[np.ndarray, float]:
    """(logits [N, C] of the test images, the strength with the least validation loss).

    Args:
      train, validation: (embeddings [N, E], targets [N, C]).
      rows: fill the training images up to so many, so that few and fewer compile once.
    """
    number = len(train[0])
    missing = max(rows - number, 0)
    filled = [jnp.asarray(np.pad(np.float32(x), ((0, missing), (0, 0)))) for x in train]
    counts_N = jnp.asarray(np.arange(number + missing) < number, jnp.float32)
    w_LEC = np.asarray(fit(*filled, counts_N, jnp.array(STRENGTHS), several))
    v_NE, v_NC = validation
    losses = [
        float(_losses(v_NE @ w[:-1] + w[-1], np.float32(v_NC), several).mean()) for w in w_LEC
    ]
    best = int(np.argmin(losses))  # of equals the stronger
    return test_NE @ w_LEC[best, :-1] + w_LEC[best, -1], STRENGTHS[best]


def few_shot_indices(target_NC: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Indices of `shots` images of each class, or of all there are; also of those of no class."""
    rng = np.random.default_rng((seed, shots))
    classes = [*np.asarray(target_NC, bool).T, ~np.asarray(target_NC, bool).any(axis=1)]
    chosen = [rng.permutation(np.flatnonzero(of_class))[:shots] for of_class in classes]
    return np.unique(np.concatenate(chosen))


def neighbour_shares(train_NE, target_NC, test_NE) -> np.ndarray:
    """Share [N, C] of the nearest training images with a class, weighted by exp(cosine / 0.07)."""
    neighbours = min(NEIGHBOURS, len(train_NE))
    chunk = max(8, min(1024, SCORES // len(train_NE)))
    train, target = jnp.asarray(train_NE), jnp.asarray(target_NC, jnp.float32)

    @jax.jit
    def votes(x_NE):
        cosine_NK, index_NK = jax.lax.top_k(
            jnp.matmul(x_NE, train.T, precision="highest"), neighbours
        )
        weight_NK = jax.nn.softmax(cosine_NK / TEMPERATURE, axis=1)
        return jnp.einsum("nk,nkc->nc", weight_NK, target[index_NK])

    found = [np.asarray(votes(test_NE[i : i + chunk])) for i in range(0, len(test_NE), chunk)]
    return np.concatenate(found)


def probe(
    train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray], group_N: np.ndarray, name: str, several: bool,
    positive: int = 1,
) -> list[Measured]:  # fmt: skip
    """linear with all training images and 1, 2, 4, 8, 16 a class, and nearest neighbours.

    Few-shot probes choose their strength on as many validation images a class, at most 4 (Zhou et
    al. 2022, arXiv:2109.01134), and report the mean of 5 draws.

    Args:
      train, validation, test: (embeddings [N, E], targets [N, C]).
      group_N: of the test images.
      positive: see classification.single_label.
    """
    score = _scored(test[1], group_N, several, positive)
    logits, strength = linear_logits(train, validation, test[0], several)
    linear = score(f"linear_probe/{name}/all", logits)
    linear.counts |= {"l2": strength, "training_images": len(train[0])}
    share_NC = np.clip(neighbour_shares(*train, test[0]), 1e-12, 1 - 1e-7)
    votes_NC = np.log(share_NC)
    if several:  # each finding has its own share: so the sigmoid gives it back
        votes_NC -= np.log1p(-share_NC)
    found = [linear, score(f"nearest_neighbours/{name}", votes_NC)]
    for shots in SHOTS:
        draws = []
        for seed in range(FEW_SHOT_DRAWS):
            few, few_validation = (
                few_shot_indices(part[1], n, seed)
                for part, n in ((train, shots), (validation, min(shots, 4)))
            )
            logits, _ = linear_logits(
                (train[0][few], train[1][few]),
                (validation[0][few_validation], validation[1][few_validation]),
                test[0],
                several,
                rows=max(SHOTS) * (test[1].shape[1] + several),
            )
            draws.append(score(f"linear_probe/{name}/{shots}", logits))
        found.append(_mean_of(draws))
    return found


def _scored(target_NC, group_N, several, positive):
    def score(name, logit_NC):
        if several:
            return multi_label(name, expit(logit_NC), target_NC.astype(bool), group_N)
        return single_label(name, logit_NC, target_NC.argmax(axis=1), group_N, positive)

    return score


def _mean_of(draws: list[Measured]) -> Measured:
    """The mean over draws of training images, which the interval takes in."""
    one = draws[0]
    return dataclasses.replace(
        one, repeats=[draw.metrics for draw in draws[1:]], items={},
        counts=one.counts | {"draws": len(draws)},
    )  # fmt: skip
