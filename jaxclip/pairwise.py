"""Statistics over all pairs of images and texts, with all logits in memory or a block at a time.

A Term is folded over the texts for each image, or over the images for each text. In the ring the
images stay on their device and the texts travel around with what was folded for them so far; in the
backward pass they travel once more, with their gradients, and each block is computed again. So
memory grows with the batch and not with its square, and so does what is sent.

Shape letters: B pairs of the batch, n of them on one device, E embedding, R images x C texts of a
block, W words an id.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

MASKED = -1e30  # a logit that does not count; finite, as inf - inf is not a number
CHUNK_BYTES = 16 << 20  # of logits that the ring has at a time, a device

Relations = dict[str, jax.Array]  # name -> ids int32 [B, W], equal where two rows are related
Statistics = dict[str, jax.Array]  # name -> float32 [B]: one number an image or a text


class Side(NamedTuple):
    """The images or the texts of a block."""

    embedding: jax.Array  # [R or C, E]
    own_logit: jax.Array  # float32 [R or C]: of each with its own text or image
    relations: Relations


class Block(NamedTuple):
    """All pairs of R images with C texts."""

    logits: jax.Array  # float32 [R, C]
    margins: jax.Array  # float32 [R, C]: logits, less the own logit of the image or text that the
    # statistic is of; small numbers where the loss is small, so that it keeps its digits
    own: jax.Array  # bool [R, C]: the pairs of the data
    positive: jax.Array  # bool [R, C]: matched; own pairs, too
    counted: jax.Array  # bool [R, C]: positive or negative, not left out
    similarity: jax.Array | None  # float32 [R, C]: cosine of the labels, where a loss asks for it


class Term(NamedTuple):
    """One statistic of each image or text: `fold` of `start` and the `value` of all its pairs."""

    fold: str  # sum | logsumexp
    value: Callable[[Block], jax.Array]  # float32 [R, C]
    start: float  # of no pairs; for a logsumexp MASKED, or 0: the margin of the own pair


Terms = dict[str, Term]
MakeBlock = Callable[..., Block]  # (image: Side, text: Side, logit_scale, logit_bias), margins raw
TakeStatistics = Callable[..., tuple[Statistics, Statistics]]  # of images, of texts; same arguments


def dense_statistics(
    make_block: MakeBlock, image_terms: Terms, text_terms: Terms
) -> TakeStatistics:
    """All logits at once; the compiler splits them as the batch is split."""

    # of all that is as large as the logits, only these are kept for the backward pass
    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)
    def statistics(image: Side, text: Side, scale, bias):
        block = make_block(image, text, scale, bias)

        def of(terms: Terms, side: Side, axis: int) -> Statistics:
            start = _empty(terms, len(side.embedding))
            return _merge(terms, start, _fold(terms, block, side, axis))

        return of(image_terms, image, 1), of(text_terms, text, 0)

    return statistics


def ring_statistics(
    make_block: MakeBlock,
    image_terms: Terms,
    text_terms: Terms,
    chunk_rows: int = 0,
    mesh: Mesh | None = None,
    axes: tuple[str, ...] = (),
) -> TakeStatistics:
    """As dense_statistics, in value and gradient, with never more than a block of logits.

    Args:
      chunk_rows: images of a block; 0: as many as have CHUNK_BYTES of logits.
      mesh, axes: the ring goes around all devices of these axes; None: there is one device.
    """
    num_devices = math.prod(mesh.shape[axis] for axis in axes) if mesh else 1
    next_device = [(i, (i + 1) % num_devices) for i in range(num_devices)]

    def go_around(meet, at_home, visitor):
        """`meet` on every device with every visitor; in the end each is home again."""

        def turn(carry, _):
            at_home, visitor = meet(*carry)
            if num_devices > 1:
                visitor = jax.lax.ppermute(visitor, axes, next_device)
            return (at_home, visitor), None

        return jax.lax.scan(turn, (at_home, visitor), None, length=num_devices)[0]

    def rows_of(text: Side) -> int:
        return chunk_rows or max(1, CHUNK_BYTES // (4 * len(text.embedding)))

    def forward(image: Side, text: Side, scale, bias):
        def meet(image_stats, visitor):
            text, text_stats = visitor

            def chunk(text_stats, image: Side):
                block = make_block(image, text, scale, bias)
                text_stats = _merge(text_terms, text_stats, _fold(text_terms, block, text, 0))
                return text_stats, _fold(image_terms, block, image, 1)

            text_stats, new = _by_rows(chunk, text_stats, image, rows_of(text))
            return _merge(image_terms, image_stats, new), (text, text_stats)

        n = len(image.embedding)
        visitor = text, _empty(text_terms, n)
        image_stats, (_, text_stats) = go_around(meet, _empty(image_terms, n), visitor)
        return image_stats, text_stats

    def backward(image: Side, text: Side, scale, bias, image_slopes, text_slopes):
        """Gradients of image[:2], text[:2], scale, bias; slopes are (statistics, cotangents)."""

        def meet(grads, visitor):
            image_grad, *scalar_grads = grads
            text, text_slopes, text_grad = visitor

            def chunk(grads, part):
                image, image_slopes = part

                def linear(text_floats, scale, bias, image_floats):
                    sides = Side(*image_floats, image.relations), Side(*text_floats, text.relations)
                    block = make_block(*sides, scale, bias)
                    to_images = _linear(image_terms, block, sides[0], 1, *image_slopes)
                    return to_images + _linear(text_terms, block, sides[1], 0, *text_slopes)

                arguments = text[:2], scale, bias, image[:2]
                *new, image_grad = jax.grad(linear, argnums=(0, 1, 2, 3))(*arguments)
                return _add(grads, new), image_grad

            home = image, image_slopes
            grads, new = _by_rows(chunk, [text_grad, *scalar_grads], home, rows_of(text))
            text_grad, *scalar_grads = grads
            return [_add(image_grad, new), *scalar_grads], (text, text_slopes, text_grad)

        zeros = functools.partial(jax.tree.map, jnp.zeros_like)
        visitor = text, text_slopes, zeros(text[:2])
        grads = zeros([image[:2], scale, bias])
        (image_grad, *scalar_grads), (_, _, text_grad) = go_around(meet, grads, visitor)
        if num_devices > 1:
            scalar_grads = jax.lax.psum(scalar_grads, axes)
        return image_grad, text_grad, *scalar_grads

    if mesh:
        split, whole = PartitionSpec(axes), PartitionSpec()
        inputs = (split, split, whole, whole)
        forward = jax.shard_map(
            forward, mesh=mesh, in_specs=inputs, out_specs=split, check_vma=False
        )
        backward = jax.shard_map(
            backward, mesh=mesh, in_specs=(*inputs, split, split),
            out_specs=(split, split, whole, whole), check_vma=False,
        )  # fmt: skip

    @jax.custom_vjp
    def statistics(image: Side, text: Side, scale, bias):
        return forward(image, text, scale, bias)

    def statistics_and_residuals(*arguments):
        stats = forward(*arguments)
        return stats, (arguments, stats)

    def gradients(residuals, cotangents):
        arguments, stats = residuals
        slopes = zip(stats, cotangents, strict=True)
        image_grad, text_grad, *scalar_grads = backward(*arguments, *slopes)
        return Side(*image_grad, None), Side(*text_grad, None), *scalar_grads  # ids have none

    statistics.defvjp(statistics_and_residuals, gradients)
    return statistics


def share_of_pairs(ids_BW: jax.Array) -> jax.Array:
    """The share of the B (B - 1) pairs of different rows whose ids (of W words) are equal.

    [1, 1, 1, 2] -> 6 / 12. By sorting: without a number for each pair.
    """
    B, num_words = ids_BW.shape
    words = jax.lax.sort(tuple(ids_BW.T), num_keys=num_words)
    is_new_B = jnp.any(jnp.stack([w != jnp.roll(w, 1) for w in words]), axis=0).at[0].set(True)
    place_B = jnp.arange(B)
    run_start_B = jax.lax.cummax(jnp.where(is_new_B, place_B, 0))
    # the k-th of equal ids meets k - 1 before it
    return 2 * jnp.sum((place_B - run_start_B).astype(jnp.float32)) / (B * (B - 1.0))


def share_of_union(ids: Sequence[jax.Array]) -> jax.Array:
    """The share of pairs that are equal in any of these ids [B, W]; none: 0.

    By inclusion and exclusion: equal in several ids is equal in all their words.
    """
    sizes = range(1, len(ids) + 1)
    subsets = [subset for n in sizes for subset in itertools.combinations(ids, n)]
    if not subsets:
        return jnp.float32(0)
    # repeated to equal length and stacked: one sort is compiled, not one a subset
    words = [itertools.islice(itertools.cycle(subset), len(ids)) for subset in subsets]
    shares = jax.vmap(share_of_pairs)(jnp.stack([jnp.concatenate([*w], axis=1) for w in words]))
    signs = jnp.array([1 if len(subset) % 2 else -1 for subset in subsets], jnp.float32)
    return jnp.sum(signs * shares)


def _by_rows(function, carry, xs, rows: int):
    """`function(carry, rows of xs) -> (carry, y)` chunk after chunk; the last may be smaller."""
    n = len(jax.tree.leaves(xs)[0])
    whole = n // rows * rows
    ys = []
    if whole:
        chunks = jax.tree.map(lambda x: x[:whole].reshape(-1, rows, *x.shape[1:]), xs)
        carry, y = jax.lax.scan(function, carry, chunks)
        ys.append(jax.tree.map(lambda y: y.reshape(whole, *y.shape[2:]), y))
    if whole < n:
        carry, y = function(carry, jax.tree.map(lambda x: x[whole:], xs))
        ys.append(y)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *ys)


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _empty(terms: Terms, n: int) -> Statistics:
    """Of no pairs."""
    return {name: jnp.full(n, term.start, jnp.float32) for name, term in terms.items()}


def _fold(terms: Terms, block: Block, side: Side, axis: int) -> Statistics:
    """Of the block's pairs, without `start`; `side` is those that the statistics are of."""
    fold = {"sum": jnp.sum, "logsumexp": jax.nn.logsumexp}
    block = _seen_from(side, block, axis)
    return {name: fold[term.fold](term.value(block), axis=axis) for name, term in terms.items()}


def _seen_from(side: Side, block: Block, axis: int) -> Block:
    margins = block.logits - jnp.expand_dims(side.own_logit, axis)
    return block._replace(margins=jnp.where(block.own, 0.0, margins))


def _merge(terms: Terms, a: Statistics, b: Statistics) -> Statistics:
    """Of the pairs of both."""
    merge = {"sum": jnp.add, "logsumexp": jnp.logaddexp}
    return {name: merge[term.fold](a[name], b[name]) for name, term in terms.items()}


def _linear(
    terms: Terms, block: Block, side: Side, axis: int, stats: Statistics, cotangents: Statistics
) -> jax.Array:
    """A scalar with the block's part of the gradient of sum(cotangents * statistics).

    The derivative of a logsumexp L over all blocks by one of its logits x is exp(x - L), and that
    is also the derivative of exp(x - L) with L held still: which needs this block only.
    """
    total = jnp.float32(0)
    block = _seen_from(side, block, axis)
    for name, term in terms.items():
        x = term.value(block)
        if term.fold == "logsumexp":
            x = jnp.exp(x - jnp.expand_dims(stats[name], axis))
        total += jnp.sum(jnp.expand_dims(cotangents[name], axis) * x)
    return total
