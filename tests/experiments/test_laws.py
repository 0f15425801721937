"""Forms satisfy their equations; the fit is no worse than SciPy's of the same objective."""

import dataclasses

import numpy as np
import pytest
from scipy import optimize

from experiments import fitting, laws
from experiments.laws import FORMS, Design, Law


def design(sizes=(1e3, 3e3, 1e4, 3e4), samples=(1e5,), sources=("a", "b")) -> Design:
    cells = [(s, n, m) for s in range(len(sources)) for n in sizes for m in samples]
    source_C, pairs_C, samples_C = (np.array(column) for column in zip(*cells, strict=True))
    return Design(
        sources=sources, source_C=source_C.astype(int), pairs_C=pairs_C, samples_C=samples_C,
        worst=0.99, knows_worst=True,
    )  # fmt: skip


def form(name: str) -> laws.Form:
    return next(f for f in FORMS if f.name == name)


def test_repetition_is_worth_what_the_equation_says():
    # U = 100 pairs seen 3 times with R* = 1: 100 + 100 (1 - e^-2)
    assert laws.effective_pairs(100.0, 300.0, 0.0) == pytest.approx(186.4665, rel=1e-6)
    assert laws.effective_pairs(100.0, 100.0, 0.0) == 100  # seen once
    assert laws.effective_pairs(100.0, 40.0, 0.0) == 40  # the others were not seen


def test_m4_solves_its_implicit_equation():
    place = design()
    task = fitting.problem(Law(form=form("saturating (M4)")), place)
    phi_Q = np.array([0.4, 0.1, np.log(0.6), np.log(0.4), -1.0, 0.5])
    error_C = np.exp(
        fitting.predict(task, phi_Q[None], place.source_C, place.pairs_C, place.samples_C)
    )
    for s, name in enumerate(place.sources):
        told = fitting.describe(task, phi_Q)[name]
        mine = place.source_C == s
        e, n = error_C[0][mine], place.pairs_C[mine] / task.unit[0]
        odds = (e - told["E"]) / (place.worst - e)
        np.testing.assert_allclose(odds, told["A"] * n ** -told["alpha"], rtol=1e-5)


def test_the_cells_that_were_trained_have_a_hull():
    """Sizes of 10, 100 and 1,000 that saw 1,000 samples, and 10 epochs of the first two."""
    pairs, samples = (np.array(x, float) for x in ([10, 100, 1e3, 10, 100], [1e3] * 3 + [1e2, 1e3]))
    place = Design(
        sources=("a",), source_C=np.zeros(5, int), pairs_C=pairs, samples_C=samples, worst=0.99,
        knows_worst=True,
    )  # fmt: skip
    assert place.samples_ends(0) == (100, 1000)
    assert place.pairs_within(0, 1000) == (10, 1000)
    assert place.pairs_within(0, 100) == (10, 10)
    # half-way in the log, the hull's edge from (10, 100) to (1000, 1000) is at 100
    assert place.pairs_within(0, 10**2.5) == (10, 100)


def test_shared_parameters_have_one_place():
    law = Law(form=form("power + floor"), shared=("alpha", "E"))
    assert law.index(3).tolist() == [[0, 3, 4], [1, 3, 4], [2, 3, 4]]
    assert Law(form=form("power")).index(2).tolist() == [[0, 2], [1, 3]]


def test_terms_of_samples_need_samples_that_vary():
    assert not any(law.form.uses_samples for law in laws.laws(design()))
    assert all(law.form.uses_samples for law in laws.laws(design(samples=(1e4, 1e5))))
    tied = dataclasses.replace(design(), samples_C=design().pairs_C * 10)  # fixed epochs
    assert not any(law.form.uses_samples for law in laws.laws(tied))
    unknown = dataclasses.replace(design(), knows_worst=False)
    assert not any(law.form.needs_worst for law in laws.laws(unknown))
    single = design(sources=("a",))
    assert {law.shared for law in laws.laws(single)} == {()}


@pytest.mark.parametrize("samples", [(1e5,), (1e4, 1e5)], ids=["pairs", "samples"])
def test_the_fit_is_as_good_as_scipys(samples):
    place, rng = design(samples=samples), np.random.default_rng(0)
    worth_C = np.where(place.source_C, 0.5, 1) * laws.effective_pairs(
        place.pairs_C, place.samples_C, np.log(15)
    )
    y_C = np.log(0.2 + 0.3 * (worth_C / 3e3) ** -0.4) + 0.01 * rng.standard_normal(len(worth_C))
    for law in laws.laws(place):
        task = fitting.problem(law, place)

        def residuals(phi_Q, task=task):
            at = (place.source_C, place.pairs_C, place.samples_C)
            off_C = fitting.predict(task, phi_Q[None], *at)[0] - y_C
            return np.concatenate([off_C / 0.01, (phi_Q - task.centre_Q) / task.width_Q])

        ours_Q = fitting.fit(task, y_C[None], np.full(len(y_C), 0.01**-2))[0]
        theirs = optimize.least_squares(residuals, task.centre_Q + 0.3, max_nfev=300)
        # where SciPy stops in another minimum, ours must be the better one
        assert np.sum(residuals(ours_Q) ** 2) <= 2 * theirs.cost * 1.001 + 1e-6, law.name


def test_a_law_without_noise_is_found_again():
    place = design()
    true_C = 0.2 + 0.3 * (place.pairs_C / 3e3) ** -0.5
    task = fitting.problem(Law(form=form("power + floor")), place)
    phi_BQ = fitting.fit(task, np.log(true_C)[None], np.full(8, 1e-4**-2))
    for told in fitting.describe(task, phi_BQ[0]).values():
        assert told["E"] == pytest.approx(0.2, rel=0.01)  # the priors pull by that much
        assert told["alpha"] == pytest.approx(0.5, rel=0.01)
    between = fitting.predict(task, phi_BQ, [0, 1], [5e3, 2e4], [1e5, 1e5])[0]
    expected = np.log(0.2 + 0.3 * (np.array([5e3, 2e4]) / 3e3) ** -0.5)
    np.testing.assert_allclose(between, expected, atol=1e-4)


def test_a_cell_of_no_precision_is_left_out():
    place = design()
    y_C = np.log(0.2 + 0.3 * (place.pairs_C / 3e3) ** -0.5)
    spoiled_C = y_C.copy()
    spoiled_C[2] += 1.0
    task = fitting.problem(Law(form=form("power + floor")), place)
    precision_C = np.where(np.arange(8) == 2, 0, 1e4)
    phi_BQ = fitting.fit(task, np.stack([y_C, spoiled_C]), precision_C)
    np.testing.assert_array_equal(phi_BQ[0], phi_BQ[1])


def test_the_predictive_variance_is_that_of_refits():
    """Of 600 refits to noisy data; they estimate a variance to about 6 %, linear to the noise."""
    place, rng = design(), np.random.default_rng(1)
    law = Law(form=form("power + floor"), shared=("alpha", "E"))
    y_C = np.log(0.2 + 0.3 * (place.pairs_C / 3e3) ** -0.5)
    task = fitting.problem(law, place)
    precision_C = np.full(8, 0.003**-2)
    phi_BQ = fitting.fit(task, y_C[None], precision_C)
    linear_C = fitting.predictive_variance(task, phi_BQ, precision_C[None])[0]
    many = y_C + 0.003 * rng.standard_normal((600, 8))
    refit_BQ = fitting.fit(task, many, precision_C, np.repeat(phi_BQ, 600, axis=0))
    at = (place.source_C, place.pairs_C, place.samples_C)
    found_C = fitting.predict(task, refit_BQ, *at).var(axis=0)
    np.testing.assert_allclose(found_C, linear_C, rtol=0.25)
