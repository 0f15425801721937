"""Durations, schedules and updates against literals and float64 NumPy written from the papers.

Shape letters: L layers, D width, F width inside the MLP.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import optimizer
from jaxclip.optimizer import Duration, OptimizerConfig, make_optimizer, make_schedule

NAMES = ("adamw", "lion", "adafactor", "muon")
KERNEL = "image/blocks/mlp/kernel"


def make_params(kernel_LDF=(7, 4, 6), seed=0):
    """Two towers with stacked blocks, deeper than wide so that L is the largest, and a scalar."""
    L, D, F = kernel_LDF
    rng = np.random.default_rng(seed)

    def tower(name):
        block = {"kernel": (L, D, F), "bias": (L, F)}
        return {"blocks": {"mlp": block}, name: {"embedding": (5, D)}, "norm": {"scale": (D,)}}

    shapes = {"image": tower("patch"), "text": tower("token"), "logit_scale": ()}
    return jax.tree.map(
        lambda shape: jnp.asarray(0.1 * rng.standard_normal(shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def make_config(**fields):
    defaults = {"schedule": "constant", "warmup": Duration(amount=0), "grad_clip_norm": 0.0}
    config = OptimizerConfig(**(defaults | fields))
    config.validate()
    return config


def run_updates(config, params, gradients, schedule=lambda step: 0.01):
    """Applies one update per tree in gradients; returns parameters, optimizer state, updates."""
    tx = make_optimizer(config, schedule, jax.eval_shape(lambda: params))
    state, update = tx.init(params), jax.jit(tx.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state, updates


def flat(tree):
    """{path: array}."""
    paths = jax.tree.leaves(optimizer.param_paths(tree))
    return dict(zip(paths, jax.tree.leaves(tree), strict=True))


@pytest.mark.parametrize(
    ("amount", "unit", "steps"),
    [
        (7, "steps", 7),
        (10, "samples", 1),  # less than half a step, but not none
        (2, "epochs", 63),  # 62.5 rounds up
        (0.5, "epochs", 16),  # 15.625
        (3, "percent", 6),
        (0, "percent", 0),
    ],
)
def test_duration_in_steps(amount, unit, steps):
    duration = Duration(amount=amount, unit=unit)
    assert duration.resolve(batch_size=32, samples_per_epoch=1000, total_steps=200) == steps


@pytest.mark.parametrize(
    ("name", "warmup", "cooldown", "final", "values"),
    [
        # Half-way between the end of the warm-up and that of the run the cosine is half-way too;
        # a quarter of the way it has lost (1 - cos 45 degrees) / 2 = 0.14645.
        ("cosine", 20, 0, 0.1, {0: 0.0, 10: 0.5, 20: 1.0, 40: 0.868198, 60: 0.55, 100: 0.1}),
        ("linear", 20, 0, 0.2, {0: 0.0, 20: 1.0, 60: 0.6, 80: 0.4, 100: 0.2, 1000: 0.2}),
        ("linear", 0, 0, 0.0, {0: 1.0, 50: 0.5, 100: 0.0}),
        ("constant", 20, 0, 0.0, {0: 0.0, 5: 0.25, 20: 1.0, 99: 1.0, 100: 1.0}),
        ("constant", 20, 20, 0.1, {20: 1.0, 80: 1.0, 90: 0.55, 95: 0.325, 100: 0.1, 1000: 0.1}),
        ("rsqrt", 20, 0, 0.0, {20: 1.0, 30: 0.707107, 50: 0.5, 100: 0.333333}),
        ("rsqrt", 20, 50, 0.0, {20: 1.0, 50: 0.5, 75: 0.25, 100: 0.0}),
        # At 0.5 when the cooldown starts: it must not climb to 0.8.
        ("rsqrt", 20, 50, 0.8, {20: 1.0, 50: 0.5, 75: 0.5, 100: 0.5}),
    ],
)
def test_schedule_at_key_steps(name, warmup, cooldown, final, values):
    config = make_config(
        schedule=name,
        peak_lr=2.0,
        warmup=Duration(amount=warmup),
        cooldown=Duration(amount=cooldown, unit="percent"),  # the run has 100 steps
        final_lr_fraction=final,
        rsqrt_timescale=10,
    )
    schedule = make_schedule(config, batch_size=8, samples_per_epoch=100, total_steps=100)
    steps, expected = np.array(list(values)), 2.0 * np.array(list(values.values()))
    # The literals have six digits. A vector of steps, an int and a compiled step must agree.
    np.testing.assert_allclose(schedule(steps), expected, rtol=2e-6, atol=1e-7)
    for value in (schedule(int(steps[1])), jax.jit(schedule)(steps[1])):
        np.testing.assert_allclose(value, expected[1], rtol=2e-6)


def test_impossible_durations():
    half = Duration(amount=50, unit="percent")
    config = make_config(warmup=Duration(amount=60), cooldown=half)
    with pytest.raises(ValueError, match=r"warmup \(60 .*cooldown \(50 .* 100 steps. Shorten"):
        make_schedule(config, batch_size=8, samples_per_epoch=100, total_steps=100)
    with pytest.raises(ValueError, match="percent.*own length.*steps, samples or epochs"):
        half.resolve(batch_size=8, samples_per_epoch=100, total_steps=None)


def adamw_reference(gradients, b1=0.9, b2=0.95, eps=1e-8):
    """Kingma & Ba 2015 (arXiv:1412.6980), Alg. 1; the decay of arXiv:1711.05101 is in the test."""
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        yield (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)


def lion_reference(gradients, b1=0.9, b2=0.95):
    """Chen et al. 2023 (arXiv:2302.06675), Alg. 2."""
    m = 0.0
    for g in gradients:
        yield np.sign(b1 * m + (1 - b1) * g)
        m = b2 * m + (1 - b2) * g


def adafactor_reference(gradients, factored, b1=0.9, b2=0.5):
    """Shazeer & Stern 2018 (arXiv:1804.04235), Alg. 4 with sums, one layer at a time.

    b2 is the cap: 1 - t^-0.8 is 0, 0.426, 0.585 at the first three steps, so it acts on the third.
    """
    R = C = V = m = 0.0
    for t, g in enumerate(gradients, start=1):
        decay, g2 = min(b2, 1 - t**-0.8), g**2 + 1e-30
        if factored:
            R = decay * R + (1 - decay) * np.einsum("ldf->ld", g2)
            C = decay * C + (1 - decay) * np.einsum("ldf->lf", g2)
            V_hat = np.einsum("ld,lf,l->ldf", R, C, 1 / R.sum(-1))
        else:
            V_hat = V = decay * V + (1 - decay) * g2
        m = b1 * m + (1 - b1) * g / np.sqrt(V_hat)
        yield m


def newton_schulz(g_DF, steps=5):
    """Jordan et al. 2024 (kellerjordan.github.io/posts/muon), on one matrix."""
    x = g_DF / np.linalg.norm(g_DF)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


def muon_reference(gradients, beta=0.95):
    """Jordan et al. 2024 with the step size of Liu et al. 2025 (arXiv:2502.16982, eq. 4).

    optax weighs momentum and gradient in the Nesterov step by Dozat's bias corrections (2016),
    which Jordan's code does not have.
    """
    m = 0.0
    for t, g in enumerate(gradients, start=1):
        m = beta * m + (1 - beta) * g
        nesterov = beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
        layers = [newton_schulz(layer) for layer in nesterov]
        yield 0.2 * np.sqrt(max(g.shape[1:])) * np.stack(layers)


@pytest.mark.parametrize("name", NAMES)
def test_three_updates_equal_the_papers(name):
    """The whole chain: algorithm, decay of kernels and embeddings only, multiplier, schedule."""
    # Adafactor factors the second moment of kernels, per layer, from 128; not of biases, (2, 130).
    sizes = (2, 128, 130) if name == "adafactor" else (7, 4, 6)
    params, *gradients = [make_params(sizes, seed) for seed in range(4)]
    lrs = [0.0, 0.01, 0.02]
    config = make_config(
        name=name,
        b2=0.5 if name == "adafactor" else 0.95,
        weight_decay=0.3,
        lr_multipliers=(("text/.*/kernel", 0.5), ("text/.*", 3.0)),
    )
    actual, _, _ = run_updates(config, params, gradients, lambda step: 0.01 * step)

    for path, value in flat(params).items():
        is_kernel = path.endswith("blocks/mlp/kernel")  # muon's; factored
        reference = {
            "adamw": adamw_reference,
            "lion": lion_reference,
            "adafactor": functools.partial(adafactor_reference, factored=is_kernel),
            "muon": muon_reference if is_kernel else adamw_reference,
        }[name]
        x = np.asarray(value, np.float64)
        g = [np.asarray(flat(gradient)[path], np.float64) for gradient in gradients]
        decay = 0.3 if path.endswith(("/kernel", "/embedding")) else 0.0
        multiplier = 1.0 if not path.startswith("text/") else 0.5 if is_kernel else 3.0
        for lr, direction in zip(lrs, reference(g), strict=True):
            x = x - lr * multiplier * (direction + decay * x)
        # Parameters are about 0.1 with a float32 error of 1e-8; updates are about 0.01, computed
        # in float32 to 1e-6. Five Newton-Schulz steps multiply the error by up to 3.4^5.
        atol = 1e-6 if name == "muon" else 1e-7
        np.testing.assert_allclose(flat(actual)[path], x, rtol=0, atol=atol, err_msg=path)


def test_muon_orthogonalises_each_layer_on_its_own():
    params, gradient = make_params(), make_params(seed=1)
    config = make_config(name="muon", weight_decay=0.0)
    _, _, updates = run_updates(config, params, [gradient])
    update_LDF = np.asarray(flat(updates)[KERNEL]) / (-0.01 * 0.2 * 6**0.5)
    # The iteration leads singular values to about 0.7 to 1.2, not to 1, and keeps the vectors.
    for update_DF, gradient_DF in zip(update_LDF, flat(gradient)[KERNEL], strict=True):
        u, s, vt = np.linalg.svd(np.asarray(gradient_DF, np.float64), full_matrices=False)
        assert s.max() / s.min() > 2  # else there is nothing to see
        rotated = u.T @ update_DF @ vt.T
        np.testing.assert_allclose(rotated, np.diag(np.diag(rotated)), atol=1e-4)
        assert 0.6 < np.diag(rotated).min() and np.diag(rotated).max() < 1.3
    # A thousand times the gradient in layer 0 leaves layer 1 alone.
    mlp = gradient["image"]["blocks"]["mlp"]
    mlp["kernel"] = mlp["kernel"].at[0].multiply(1000.0)
    _, _, scaled = run_updates(config, params, [gradient])
    np.testing.assert_allclose(flat(scaled)[KERNEL][1], flat(updates)[KERNEL][1], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_first_moment_dtype(name):
    params = make_params()
    config = make_config(name=name, mu_dtype="bfloat16")
    _, state, updates = run_updates(config, params, [params])
    dtypes = {path: leaf.dtype for path, leaf in flat(state).items() if path.endswith(KERNEL)}
    assert jnp.bfloat16 in dtypes.values()
    assert all(dtypes[path] == jnp.float32 for path in dtypes if re.search("/(nu|v|v_row)/", path))
    assert all(update.dtype == jnp.float32 for update in jax.tree.leaves(updates))


def test_clip_looks_at_trained_parameters_only():
    params = jax.tree.map(jnp.zeros_like, make_params())
    gradient = make_params(seed=1)
    gradient["image"] = jax.tree.map(lambda g: 1e6 * g, gradient["image"])
    config = make_config(b1=0.0, b2=0.0, eps=1.0, grad_clip_norm=0.1, freeze=("image/.*",))
    _, _, updates = run_updates(config, params, [gradient])
    del gradient["image"], updates["image"]
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradient)))  # about 1.5
    for path, g in flat(gradient).items():
        clipped = 0.1 * g / norm
        expected = -0.01 * clipped / (abs(clipped) + 1)  # AdamW with b1 = b2 = 0 and eps = 1
        np.testing.assert_allclose(flat(updates)[path], expected, rtol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", NAMES)
def test_freeze_keeps_the_bits(name):
    params = make_params()
    config = make_config(name=name, freeze=("image/.*", "[^/]*"))  # no slash: only logit_scale
    after, _, _ = run_updates(config, params, [make_params(seed=s) for s in (1, 2)])
    mask = flat(optimizer.frozen_mask(config, params))
    for path, value in flat(params).items():
        assert mask[path] == (not path.startswith("text/")), path
        assert np.array_equal(flat(after)[path], value) == mask[path], path


@pytest.mark.parametrize("name", NAMES)
def test_state_belongs_to_trained_parameters(name):
    """sharding.py finds the rule of a moment by the end of its path; the rest must be small."""
    params = make_params()
    config = make_config(name=name, freeze=("text/.*",), grad_clip_norm=1.0)
    tx = make_optimizer(config, lambda step: 0.01, params)
    moments = dict.fromkeys(flat(params), 0)
    for path, leaf in flat(jax.eval_shape(tx.init, params)).items():
        owner = [p for p in flat(params) if path.endswith("/" + p)]
        assert len(owner) == 1 or (not owner and leaf.size <= 3), (path, leaf.shape)
        for p in owner:
            assert leaf.shape in ((1,), flat(params)[p].shape)  # (1,): adafactor's unused
            moments[p] += leaf.shape == flat(params)[p].shape
    assert moments[KERNEL] == {"adamw": 2, "lion": 1, "adafactor": 2, "muon": 1}[name]
    for path, number in moments.items():
        assert (number == 0) == path.startswith("text/"), path


@pytest.mark.parametrize("name", NAMES)
def test_lr_multiplier_scales_the_update_exactly(name):
    params, gradients = make_params(), [make_params(seed=1)]
    _, _, plain = run_updates(make_config(name=name), params, gradients)
    rules = (("text/blocks/.*", 0.25), ("text/.*", 4.0))  # powers of two do not round
    _, _, scaled = run_updates(make_config(name=name, lr_multipliers=rules), params, gradients)
    for path, update in flat(plain).items():
        factor = 0.25 if path.startswith("text/blocks/") else 4.0 if path[:5] == "text/" else 1.0
        assert np.array_equal(flat(scaled)[path], factor * update), path


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_of_stacked_parameters(name):
    """A stacked bias is (L, F), a matrix by its shape: it must not decay."""
    params = make_params()
    zeros = jax.tree.map(jnp.zeros_like, params)
    config = make_config(name=name, weight_decay=0.5)
    after, _, _ = run_updates(config, params, [zeros], lambda step: 0.25)
    for path, value in flat(params).items():
        factor = 0.875 if path.endswith(("/kernel", "/embedding")) else 1.0
        assert np.array_equal(flat(after)[path], factor * value), path


@pytest.mark.parametrize(
    ("fields", "field", "pattern"),
    [
        ({"freeze": ("image/.*", "img/.*")}, "freeze", "img/.*"),
        ({"freeze": ("image",)}, "freeze", "image"),  # a part of the path is not enough
        ({"lr_multipliers": (("text/blocks/.*/up", 2.0),)}, "lr_multipliers", "text/blocks/.*/up"),
        ({"weight_decay_pattern": "kernel"}, "weight_decay_pattern", "kernel"),
        ({"name": "muon", "muon_pattern": ".*/layers/.*"}, "muon_pattern", ".*/layers/.*"),
    ],
)
def test_pattern_without_a_parameter_is_an_error(fields, field, pattern):
    message = rf"optimizer.{field} \('{re.escape(pattern)}'\) must match .* similar paths: \w+/\w+"
    with pytest.raises(ValueError, match=message):
        make_optimizer(make_config(**fields), lambda step: 0.1, make_params())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adam"}, r"optimizer.name \('adam'\) must be one of adamw, lion"),
        ({"peak_lr": float("nan")}, r"optimizer.peak_lr \(nan\) must be > 0.*freeze"),
        ({"b2": 1.0}, r"optimizer.b2 \(1.0\) must be"),
        ({"final_lr_fraction": 0.1}, r"optimizer.final_lr_fraction \(0.1\) is never reached"),
        ({"warmup": Duration(amount=-1)}, r"optimizer.warmup.amount \(-1\) must be >= 0"),
        ({"cooldown": Duration(unit="examples")}, r"optimizer.cooldown.unit \('examples'\) must"),
        ({"freeze": ("image/(",)}, r"optimizer.freeze \('image/\('\) must be a regular expr"),
        ({"lr_multipliers": ((".*", 0.0),)}, r"optimizer.lr_multipliers .* use optimizer.freeze"),
    ],
)
def test_validate_names_field_and_rule(fields, message):
    with pytest.raises(ValueError, match=message):
        make_config(**fields)


def test_ema_by_hand():
    ema, params = {"x": jnp.array([1.0, 2.0])}, {"x": jnp.array([3.0, 2.0])}
    plain = optimizer.update_ema(ema, params, 0.75, 0, warmup=False)
    np.testing.assert_array_equal(plain["x"], [1.5, 2.0])
    # Warm-up: d = 1 / 10 at step 0, (1 + 8) / (10 + 8) = 0.5 at step 8, at last 0.75.
    for step, expected in ((0, 2.8), (8, 2.0), (1000, 1.5)):
        warm = jax.jit(optimizer.update_ema)(ema, params, 0.75, step)
        np.testing.assert_allclose(warm["x"], [expected, 2.0], rtol=1e-6)
