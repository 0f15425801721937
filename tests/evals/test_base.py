"""Embedding a split: on eight devices what one device gives, padding rows left out."""

import jax
import numpy as np

from jaxclip.evals.base import embed_split, make_embed
from jaxclip.models import clip
from jaxclip.sharding import ShardingConfig, make_mesh, tree_sharding
from tests.models.test_clip import INPUTS, VARIANTS, random_params, shapes

BIG = 2**62 + 1  # what 32 bits, or a float64, would not hold


def batches(batch_size, num_records=11):
    """As data.pipeline.eval_batches gives them: the last one is filled up with invalid rows."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (num_records, 12, 12, 3)).astype(np.uint8)
    tokens = np.full((num_records, 7), INPUTS.eos_id, np.int32)
    tokens[:, :3] = rng.integers(2, 20, (num_records, 3))
    record = np.arange(num_records, dtype=np.int64)
    columns = {
        "image": image, "tokens": tokens, "record": record, "image_id": BIG + record,
        "caption_id": -BIG - record, "valid": np.ones(num_records, bool),
    }  # fmt: skip
    for start in range(0, num_records, batch_size):
        batch = {name: column[start : start + batch_size] for name, column in columns.items()}
        missing = batch_size - len(batch["record"])
        yield {
            name: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for name, x in batch.items()
        }


def test_eight_devices_and_padding_change_nothing():
    params, found = random_params(shapes("openai")), []
    for sizes, batch_size in (((1, 1, 1), 11), ((2, 2, 2), 8)):
        config = ShardingConfig(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])
        mesh = make_mesh(config, jax.devices()[: np.prod(sizes)])
        on_mesh = jax.device_put(params, tree_sharding(params, mesh))
        embed = make_embed(VARIANTS["openai"], INPUTS, mesh)
        found.append(embed_split(embed, on_mesh, batches(batch_size), mesh))
    one, eight = found
    np.testing.assert_array_equal(eight.record_N, np.arange(11))
    np.testing.assert_array_equal(eight.image_id_N, BIG + np.arange(11))
    np.testing.assert_array_equal(eight.caption_id_N, -BIG - np.arange(11))
    assert eight.image_NE.dtype == np.float32
    # sums in another order
    np.testing.assert_allclose(eight.image_NE, one.image_NE, atol=2e-6)
    np.testing.assert_allclose(eight.text_NE, one.text_NE, atol=2e-6)
    (everything,) = batches(11)
    image_BE, _ = jax.jit(lambda p, b: clip.apply(VARIANTS["openai"], INPUTS, p, b))(
        params, {"image": everything["image"], "tokens": everything["tokens"]}
    )
    np.testing.assert_allclose(one.image_NE, image_BE, atol=2e-6)
