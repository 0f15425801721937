"""The family of losses against float64 NumPy; dense and in rings, for all that pairs may share.

Shape letters: B pairs, E embedding, P numbers that a loss is a function of.
"""

import dataclasses
import functools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxclip.losses import LOSSES, RELATIONS, LossConfig, is_ring, label_similarity, make_loss
from jaxclip.pairwise import share_of_pairs, share_of_union
from jaxclip.sharding import ShardingConfig, batch_sharding, make_mesh

NAMES = tuple(LOSSES)
B, E = 24, 4
SETTINGS = [{}, *({"positives": relation} for relation in RELATIONS)]
SETTINGS += [{"ignore": (relation,)} for relation in RELATIONS]
SETTINGS += [{"positives": "same_caption", "ignore": ("same_figure", "same_article")}]


def config_of(name, **fields) -> LossConfig:
    if name == "decoupled":
        fields = {"hard_negatives": (0.15, 0.3)} | fields
    config = LossConfig(name=name, **fields)
    config.validate()
    return config


def settings_of(name):
    return [s for s in SETTINGS if "positives" not in s or name != "soft_labels"]


# --- A reference ---------------------------------------------------------------------------------


def oracle(config, image_BE, text_BE, scale, bias, relations):
    """The loss as its paper has it, in the precision of its arguments; [..., B, E] -> [...]."""
    x = scale * image_BE @ np.swapaxes(text_BE, -1, -2)
    own = np.eye(x.shape[-1], dtype=bool)
    related = {
        name: (ids[:, None] == ids).all(-1) for name, ids in relations.items() if name != "labels"
    }
    positive = own | related.get(config.positives, own)
    counted = positive | ~np.any([own & ~own, *(related[r] for r in config.ignore)], axis=0)
    smooth = config.label_smoothing
    if config.name == "sigmoid":
        target, x = (1 - smooth) * positive + smooth / 2, x + bias
        loss = target * np.log1p(np.exp(-x)) + (1 - target) * np.log1p(np.exp(x))
        return (counted * loss).sum((-1, -2)) / len(own)

    def log_sum_exp(x, mask):
        top = np.where(mask, x.real, -1e3).max(-1, keepdims=True)
        return top[..., 0] + np.log((mask * np.exp(np.where(mask, x - top, 0))).sum(-1))

    def direction(x, beta):
        """Of the queries in the rows of x."""
        weight = positive.astype(float)
        if config.name == "soft_labels":
            weight = counted * np.exp(cosines_of_labels(relations["labels"]))
        target = weight / weight.sum(-1, keepdims=True)
        target = (1 - smooth) * target + smooth * counted / counted.sum(-1, keepdims=True)
        log_sum = log_sum_exp(x, counted)
        if config.name == "decoupled":
            negative = counted & ~positive
            assert negative.any(-1).all()
            share = beta * x - log_sum_exp(beta * x, negative)[..., None]
            log_sum = log_sum_exp(x + np.log(negative.sum(-1))[:, None] + share, negative)
        return (log_sum - (target * x).sum(-1)).mean(-1)

    (beta_image, beta_text), w = config.hard_negatives, config.image_weight
    of_images, of_texts = direction(x, beta_image), direction(np.swapaxes(x, -1, -2), beta_text)
    return w * of_images + (1 - w) * of_texts


def cosines_of_labels(labels):
    """Of records without a label: 1 with itself, 0 with all others."""
    sets = [set(row.tolist()) - {-1} for row in labels]
    cosines = np.eye(len(sets))
    for i, j in np.ndindex(cosines.shape):
        if sets[i] and sets[j]:
            cosines[i, j] = len(sets[i] & sets[j]) / math.sqrt(len(sets[i]) * len(sets[j]))
    return cosines


def value_and_gradients_of_oracle(config, arguments):
    """In float64; the derivatives by steps of 1e-30 i, which cost no digits."""
    *floats, relations = arguments
    floats = [np.float64(x) for x in floats]
    value = oracle(config, *floats, relations)
    flat_P = np.concatenate([x.ravel() for x in floats])
    moved_PP = flat_P + 1e-30j * np.eye(len(flat_P))
    stops = np.cumsum([x.size for x in floats])
    parts = np.split(moved_PP, stops[:-1], axis=1)
    shapes = [x.shape or (1, 1) for x in floats]
    parts = [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
    slopes_P = oracle(config, *parts, relations).imag / 1e-30
    split = np.split(slopes_P, stops[:-1])
    return value, [g.reshape(x.shape) for g, x in zip(split, floats, strict=True)]


def unit_rows(rows, width, seed):
    x = np.random.default_rng(seed).standard_normal((2, rows, width))
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def relations_of(rows, seed=0):
    """Two words an id, of which either may differ; up to two labels of four."""
    rng = np.random.default_rng(seed)
    relations = {name: rng.integers(0, 2, (rows, 2)).astype(np.int32) for name in RELATIONS}
    labels = np.sort(rng.integers(-1, 4, (rows, 2)).astype(np.int32))[:, ::-1]
    labels[labels[:, 0] == labels[:, 1], 1] = -1
    return relations | {"labels": labels}


def arguments_of(scale=10.0, bias=-3.0, rows=B, seed=0):
    floats = *unit_rows(rows, E, seed), np.float32(scale), np.float32(bias)
    return *floats, relations_of(rows, seed)


# --- Dense ---------------------------------------------------------------------------------------

VARIANTS = [
    *(config_of(name, **s) for name in NAMES for s in settings_of(name)),
    *(config_of(name, label_smoothing=0.2) for name in NAMES),
    *(config_of(name, image_weight=0.75) for name in NAMES if name != "sigmoid"),
    config_of("decoupled", hard_negatives=(0.0, 0.0)),
]


@pytest.mark.parametrize("name", NAMES)
def test_dense_value_of_every_variant(name):
    for config in (config for config in VARIANTS if config.name == name):
        for scale, bias in ((1.0, 0.0), (10.0, -10.0), (100.0, 3.0)):
            image, text, *_, relations = arguments_of()
            expected = oracle(config, *np.float64([image, text]), scale, bias, relations)
            found = make_loss(config)(image, text, np.float32(scale), np.float32(bias), relations)
            np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=str(config))


# --- Everywhere ----------------------------------------------------------------------------------

# implementation, sizes of data x fsdp x tensor, rows of a chunk: of 24, 12, 6, or 3 on a device
PLACES = [
    ("dense", (1, 1, 1), 0),
    ("dense", (4, 2, 1), 0),
    ("ring", (1, 1, 1), 5),
    ("ring", (2, 1, 1), 5),
    ("ring", (1, 4, 1), 4),
    ("ring", (2, 2, 2), 2),
]


@functools.cache
def compiled(config_items, sizes, with_gradients=True):
    config = LossConfig(**dict(config_items))
    mesh = None
    if math.prod(sizes) > 1:
        sharding = ShardingConfig(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
        mesh = make_mesh(sharding, jax.devices()[: math.prod(sizes)])
    function = make_loss(config, mesh)
    if with_gradients:
        function = jax.value_and_grad(function, argnums=(0, 1, 2, 3))
    return jax.jit(function), mesh


def run(config, arguments, place, with_gradients=True):
    """Value, and gradients if asked for, as NumPy."""
    implementation, sizes, chunk_rows = place
    config = dataclasses.replace(config, implementation=implementation, chunk_rows=chunk_rows)
    function, mesh = compiled(tuple(dataclasses.asdict(config).items()), sizes, with_gradients)
    if mesh:
        rows, whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
        arguments = jax.device_put(arguments, (rows, rows, whole, whole, rows))
    return jax.device_get(function(*arguments))


def in_slots(setting, relations):
    """The relations under the names that `everything` looks at: settings are data, compiled once.

    What a setting does not name is nobody's: ids that differ in all rows.
    """
    nobody = np.repeat(np.arange(B, dtype=np.int32)[:, None], 2, axis=1)
    ignored = [relations[name] for name in setting.get("ignore", ())] + [nobody] * 2
    return {
        "same_caption": relations.get(setting.get("positives"), nobody),
        "same_figure": ignored[0],
        "same_article": ignored[1],
        "labels": relations["labels"],
    }


def everything(name):
    """A config with all terms of its loss."""
    fields = {"label_smoothing": 0.1, "ignore": ("same_figure", "same_article")}
    if name != "soft_labels":
        fields["positives"] = "same_caption"
    if name != "sigmoid":
        fields["image_weight"] = 0.75
    return config_of(name, **fields)


@functools.cache
def expected_of_setting(name, number, scale):
    arguments = arguments_of(scale)
    config = dataclasses.replace(everything(name), **{"positives": "identity", "ignore": ()})
    config = dataclasses.replace(config, **settings_of(name)[number])
    return value_and_gradients_of_oracle(config, arguments)


def assert_right(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    for grad, right in zip(found[1], expected[1], strict=True):
        assert grad.shape == right.shape
        np.testing.assert_allclose(grad, right, rtol=2e-5, atol=2e-5 * max(1, abs(right).max()))


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradients_of_every_setting(name, place):
    for number, setting in enumerate(settings_of(name)):
        for scale in (10.0, 100.0):
            *floats, relations = arguments_of(scale)
            found = run(everything(name), (*floats, in_slots(setting, relations)), place)
            assert_right(found, expected_of_setting(name, number, scale))


@pytest.mark.parametrize("place", [PLACES[0], PLACES[1], PLACES[2], PLACES[5]], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradients_of_the_plain_loss(name, place):
    for scale in (1.0, 100.0):
        arguments = arguments_of(scale)
        expected = value_and_gradients_of_oracle(config_of(name), arguments)
        assert_right(run(config_of(name), arguments, place), expected)


def test_ring_around_data_and_fsdp_where_all_devices_do_not_divide_the_batch():
    arguments = arguments_of(rows=12)
    expected = value_and_gradients_of_oracle(config_of("softmax"), arguments)
    assert_right(run(config_of("softmax"), arguments, ("ring", (2, 2, 2), 0)), expected)


def grid_rows(rows, seed):
    """Different unit rows of 8 with four halves: their products are exact in float32."""
    rng = np.random.default_rng(seed)
    x = np.zeros((3 * rows, 8), np.float32)
    for row in x:
        row[rng.permutation(8)[:4]] = rng.choice([-0.5, 0.5], 4)
    return rng.permutation(np.unique(x, axis=0))[:rows]


@pytest.mark.parametrize("place", [PLACES[0], PLACES[2], PLACES[5]], ids=str)
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_a_small_loss_keeps_its_digits(name, place):
    rows = grid_rows(B, 0)
    for scale in (20.0, 40.0, 60.0, 100.0):
        bias = -0.875 * scale  # own cosines are 1, others at most 0.75
        arguments = (rows, rows, np.float32(scale), np.float32(bias), {})
        # more digits than float64 has beside 1
        expected = oracle(config_of(name), *np.longdouble([rows, rows]), scale, bias, {})
        found = run(config_of(name), arguments, place, with_gradients=False)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert 0 < expected < 1e-4


# --- Ends of the range ---------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["dense", "ring"])
def test_all_rows_are_related(implementation):
    image, text, scale, bias, relations = arguments_of()
    same = {"same_figure": np.zeros((B, 2), np.int32)}
    config = config_of("decoupled", ignore=("same_figure",))
    place = (implementation, (1, 1, 1), 5)
    loss, grads = run(config, (image, text, scale, bias, relations | same), place)
    # nobody has a negative, and the own pair is no denominator
    assert loss == 0 and not np.any(grads[0])
    config = config_of("softmax", ignore=("same_figure",))
    loss, grads = run(config, (image, text, scale, bias, relations | same), place)
    assert loss == 0 and not np.any(grads[0])


def test_chance():
    same_BE = jnp.ones((8, 4)) / 2
    softmax, sigmoid = make_loss(LossConfig()), make_loss(LossConfig(name="sigmoid"))
    np.testing.assert_allclose(softmax(same_BE, same_BE, 14.0, 0.0), math.log(8), rtol=1e-6)
    # orthogonal: every logit is 0 and every pair a coin toss
    coins = sigmoid(jnp.eye(8, 16), jnp.eye(8, 16, k=8), 14.0, 0.0)
    np.testing.assert_allclose(coins, 8 * math.log(2), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_at_a_large_scale(name):
    right_BE = np.eye(B, dtype=np.float32)[:, :E] + np.eye(B, E, k=-E, dtype=np.float32)
    relations = relations_of(B)
    for place in (PLACES[0], PLACES[2]):
        for sign, scale in ((1, 100), (-1, 1000)):
            arguments = (sign * right_BE, right_BE, np.float32(scale), np.float32(-50), relations)
            found = run(config_of(name), arguments, place)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_embeddings_give_float32_logits(name):
    image_BE, text_BE = unit_rows(6, 5, 0).astype(jnp.bfloat16)
    relations = relations_of(6)
    config = config_of(name)
    loss = make_loss(config)(image_BE, text_BE, jnp.float32(100), jnp.float32(-10), relations)
    assert loss.dtype == jnp.float32
    embeddings = image_BE.astype(np.float64), text_BE.astype(np.float64)
    expected = oracle(config, *embeddings, 100.0, -10.0, relations)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_values_and_gradients_are_those_of_open_clip():
    path = pathlib.Path(__file__).parent / "fixtures" / "open_clip_losses.json"
    for case in json.loads(path.read_text())["cases"]:
        arguments = [np.array(case[k], np.float32) for k in ("image", "text", "scale", "bias")]
        for implementation in ("dense", "ring"):
            place = (implementation, (1, 1, 1), 5)
            loss, grads = run(LossConfig(name=case["name"]), (*arguments, {}), place)
            # float32 on both sides: a logit of 50 is known to 2e-6, half of its last place, and exp
            # makes a relative error of that; found are 1e-7 in the loss, 7e-7 in a gradient
            np.testing.assert_allclose(loss, case["loss"], rtol=2e-6)
            for grad, key in zip(grads, ("image", "text", "scale", "bias"), strict=True):
                right = np.array(case["gradients"][key])
                np.testing.assert_allclose(grad, right, atol=4e-6 * max(1, abs(right).max()))


# --- What pairs share ----------------------------------------------------------------------------


def test_similarity_of_labels():
    labels = jnp.array([[3, 7, -1], [7, 3, 5], [-1, -1, -1], [99_999, -1, -1]], jnp.int32)
    found = label_similarity(labels, labels[:3])
    third = 2 / math.sqrt(6)
    np.testing.assert_allclose(found, [[1, third, 0], [third, 1, 0], [0, 0, 0], [0, 0, 0]])


def test_a_pair_without_labels_is_its_own_match_alone():
    """As a pair with a label that no other has: not one of all that have none."""
    image, text, scale, bias, _ = arguments_of(rows=4)
    config = config_of("soft_labels")
    losses = [
        make_loss(config)(image, text, scale, bias, {"labels": np.array(labels, np.int32)})
        for labels in ([[0], [0], [-1], [-1]], [[0], [0], [1], [2]], [[0], [0], [1], [1]])
    ]
    assert losses[0] == losses[1] != losses[2]


def test_share_of_pairs():
    ids = jnp.array([[1, 5], [2, 5], [1, 5], [1, 6], [1, 5]])  # three are one, both words equal
    np.testing.assert_allclose(share_of_pairs(ids), 6 / 20)
    assert share_of_pairs(jnp.arange(8).reshape(4, 2)) == 0
    assert share_of_pairs(jnp.zeros((3, 2), jnp.int32)) == 1


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_share_of_union(number):
    ids = list(np.random.default_rng(number).integers(0, 3, (number, 12, 2)).astype(np.int32))
    either = np.zeros((12, 12), bool)
    for one in ids:
        either |= (one[:, None] == one).all(-1)
    expected = (either & ~np.eye(12, dtype=bool)).sum() / (12 * 11)
    np.testing.assert_allclose(share_of_union(ids), expected, rtol=1e-5)


# --- Memory --------------------------------------------------------------------------------------


def temporary_mib(config, mesh, batch_size=32768):
    """Of one device, for value and gradients of embeddings of 512."""
    rows = batch_sharding(mesh)
    x = jax.ShapeDtypeStruct((batch_size, 512), jnp.float32, sharding=rows)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    ids = jax.ShapeDtypeStruct((batch_size, 2), jnp.int32, sharding=rows)
    labels = jax.ShapeDtypeStruct((batch_size, 14), jnp.int32, sharding=rows)
    relations = dict.fromkeys(RELATIONS, ids) | {"labels": labels}
    step = jax.jit(jax.value_and_grad(make_loss(config, mesh), argnums=(0, 1, 2, 3)))
    plan = step.lower(x, x, scalar, scalar, relations).compile().memory_analysis()
    return plan.temp_size_in_bytes / 2**20


@pytest.mark.parametrize("name", NAMES)
def test_memory_of_a_large_batch(name):
    """At N = 32,768 on 8 devices, where logits are 512 MiB a device."""
    mesh = make_mesh(ShardingConfig(), jax.devices()[:8])
    config = everything(name)
    assert is_ring(config, 32768, mesh)
    # text, its gradient and ids on their way; 16 MiB of logits a few times over
    assert temporary_mib(config, mesh) < 200
    # logits of 512, their gradient, what softmax makes of them; all texts and their gradients
    limit = {"softmax": 1700, "sigmoid": 1200}.get(name, 5000)
    assert temporary_mib(config_of(name, implementation="dense"), mesh) < limit


def test_auto_takes_the_ring_where_dense_logits_are_large():
    config = LossConfig()
    assert not is_ring(config, 4096, None)  # 3 x 64 MiB
    assert is_ring(config, 8192, None)
    eight = make_mesh(ShardingConfig(fsdp=4), jax.devices()[:8])
    assert not is_ring(config, 8192, eight)
    assert is_ring(config, 32768, eight)
    assert not is_ring(dataclasses.replace(config, implementation="dense"), 1 << 20, eight)


# --- Config --------------------------------------------------------------------------------------


def test_the_scale_is_limited_as_the_papers_have_it():
    assert [LossConfig(name=name).logit_scale_limit() for name in NAMES] == [100, 0, 100, 100]
    assert LossConfig(name="sigmoid", max_logit_scale=50.0).logit_scale_limit() == 50
    assert LossConfig(max_logit_scale=0.0).logit_scale_limit() == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "clip"}, r"loss.name \('clip'\) must be one of \('softmax', 'sig"),
        ({"max_logit_scale": -2}, r"loss.max_logit_scale \(-2\) must be positive, 0 for no"),
        ({"positives": "same"}, r"loss.positives \('same'\) must be one of \('identity', "),
        ({"ignore": ("identity",)}, r"loss.ignore \('identity'\) must be one of \('same_caption"),
        ({"implementation": "fast"}, r"loss.implementation \('fast'\) must be one of"),
        ({"label_smoothing": 1.0}, r"loss.label_smoothing \(1.0\) must be in \[0, 1\)"),
        ({"name": "sigmoid", "image_weight": 0.75},
         r"loss.image_weight \(0.75\) has no effect on loss.name \('sigmoid'\). Leave it at 0.5"),
        ({"hard_negatives": (0.1, 0.1)}, r"loss.hard_negatives .* no effect on .* \('softmax'\)"),
        ({"name": "soft_labels", "positives": "same_label"}, r"loss.positives .* has no effect"),
        ({"chunk_rows": -1}, r"loss.chunk_rows \(-1\) must be 0 or more"),
    ],
)  # fmt: skip
def test_validate(fields, message):
    LossConfig(name="sigmoid", max_logit_scale=0).validate()
    with pytest.raises(ValueError, match=message):
        LossConfig(**fields).validate()
