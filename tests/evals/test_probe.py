"""The probe finds scikit-learn's optimum, chooses on validation data, and counts its shots."""

import jax.numpy as jnp
import numpy as np

from jaxclip.evals import probe as probe_lib
from jaxclip.evals.classification import softmax
from jaxclip.evals.probe import (
    STRENGTHS,
    few_shot_indices,
    fit,
    linear_logits,
    neighbour_shares,
    probe,
)
from tests.evals.fixture import expected


def test_the_fit_is_scikit_learns_optimum():
    given, reference = expected("probe")
    strengths = sorted(float(name.rpartition("/")[2]) for name in reference)
    target = np.eye(3, dtype=np.float32)[given["true"]]
    # ten rows that do not count
    x, target = (
        np.pad(rows, ((0, 10), (0, 0)), constant_values=3) for rows in (given["x"], target)
    )
    counts = jnp.array(np.arange(100) < 90, jnp.float32)
    w_LEC = np.asarray(fit(jnp.array(x), jnp.array(target), counts, jnp.array(strengths), False))
    for l2, w in zip(strengths, w_LEC, strict=True):
        found = softmax(given["x"] @ w[:-1] + w[-1])
        # weak regularisation is flat around the optimum: gradients of 1e-5 leave 1e-2 in float32
        atol = 2e-4 if l2 > 1e-4 else 2e-2
        np.testing.assert_allclose(found, reference[f"probability/{l2!r}"], atol=atol)


def clusters(seed, n, classes=3, noise=0.3):
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, n)
    x = np.eye(classes, 5)[true] + noise * rng.standard_normal((n, 5))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), np.eye(classes)[true]


def test_the_strength_is_chosen_on_validation_data():
    train, test = clusters(0, 60), clusters(2, 200)
    rng = np.random.default_rng(1)
    # labels of the validation images at random: the surest model is the worst there
    x, target = clusters(1, 60)
    shuffled = (x, target[rng.permutation(60)])
    assert linear_logits(train, shuffled, test[0], False)[1] == max(STRENGTHS)
    logits, strength = linear_logits(train, clusters(1, 60, noise=0.05), test[0], False)
    assert strength < max(STRENGTHS)
    assert (logits.argmax(1) == test[1].argmax(1)).mean() > 0.9


def test_few_shot_draws():
    target = np.eye(3)[np.array([0] * 10 + [1] * 5 + [2] * 2)]
    chosen = few_shot_indices(target, 4, seed=0)
    assert target[chosen].sum(axis=0).tolist() == [4, 4, 2]  # a class has no more than it has
    findings = np.eye(3)[np.arange(90) % 3] * (np.arange(90) < 30)[:, None]
    healthy = ~findings[few_shot_indices(findings, 4, seed=0)].any(axis=1)
    assert healthy.sum() == 4  # images without a finding are a class of their own
    assert few_shot_indices(target, 4, seed=1).tolist() != chosen.tolist()


def test_neighbours_vote():
    angle = np.array([0.0, 0.1, 0.2, 3.0])
    train = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    target = np.eye(2)[[0, 0, 1, 1]]
    near, opposite = neighbour_shares(train, target, -train[[3, 0]])
    assert near.argmax() == 0 and opposite.argmax() == 1


def test_neighbours_vote_whatever_the_chunks(monkeypatch):
    """At most SCORES of them at a time, however many training images there are."""
    train, target = clusters(0, 200)
    test, _ = clusters(1, 30)
    cosine = test.astype(float) @ train.T.astype(float)
    near = np.argsort(-cosine)[:, :20]
    weight = np.exp(np.take_along_axis(cosine, near, 1) / 0.07)
    by_hand = (weight[..., None] * target[near]).sum(1) / weight.sum(1)[:, None]
    for scores in (200 * 8, 1 << 25):
        monkeypatch.setattr(probe_lib, "SCORES", scores)
        np.testing.assert_allclose(neighbour_shares(train, target, test), by_hand, atol=1e-5)


def test_a_whole_probe():
    train, validation, test = clusters(0, 60), clusters(1, 40), clusters(2, 80)
    found = {m.name: m for m in probe(train, validation, test, np.arange(80), "toy", False)}
    assert found["linear_probe/toy/all"].values()["accuracy"] > 0.9
    assert found["nearest_neighbours/toy"].values()["accuracy"] > 0.9
    one, sixteen = (found[f"linear_probe/toy/{n}"].values()["accuracy"] for n in (1, 16))
    assert 1 / 3 < one <= sixteen


def test_findings_are_probed_one_by_one():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((120, 4)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    target = np.stack([x[:, 0] > 0, x[:, 1] > 0], 1)  # both, one or none
    parts = [(x[i::3], target[i::3]) for i in range(3)]
    found = {m.name: m.values() for m in probe(*parts, np.arange(40), "toy", True)}
    assert found["linear_probe/toy/all"]["macro_f1"] > 0.9
    # shares above a half are said to be there: sigmoid(log share) never is above a half
    assert found["nearest_neighbours/toy"]["macro_f1"] > 0.7
