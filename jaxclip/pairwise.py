"""Statistics over all pairs of images and texts, with all logits in memory or a block at a time.

A Term is folded over the texts for each image, or over the images for each text. In the ring the
images stay on their device and the texts travel around with what was folded for them so far; in the
backward pass they travel once more, with their gradients, and each block is computed again. So
memory grows with the batch and not with its square, and so does what is sent.

Shape letters: B pairs of the batch, n of them on one device, E embedding, R images x C texts of a
block, W words an id.
"""

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
    relations: Any  # Relations; None where the other two are gradients


class Block(NamedTuple):
    """All pairs of R images with C texts."""

    logits: jax.Array  # float32 [R, C]
    own: jax.Array  # bool [R, C]: the pairs of the data
    positive: jax.Array  # bool [R, C]: matched; own pairs, too
    counted: jax.Array  # bool [R, C]: positive or negative, not left out
    similarity: jax.Array | None  # float32 [R, C]: cosine of the labels, where a loss asks for it
    margins: Any = None  # float32 [R, C]: logits, less the own logit of the image or text that the
    # statistic is of; a loss of margins keeps its digits where it is small


class Term(NamedTuple):
    """One statistic of each image or text: `fold` of `start` and the `value` of all its pairs."""

    fold: str  # sum | logsumexp
    value: Callable[[Block], jax.Array]  # float32 [R, C]
    start: float  # of no pairs; for a logsumexp MASKED, or 0: the margin of the own pair


Terms = dict[str, Term]
MakeBlock = Callable[..., Block]  # (logits_RC, image: Side, text: Side, bias), margins left open
TakeStatistics = Callable[..., tuple[Statistics, Statistics]]  # (image: Side, text: Side, bias) ->
# of images, of texts; logits are products of the embeddings, so images come with the scale in them


class Pairs(NamedTuple):
    """What is asked of all pairs."""

    make_block: MakeBlock
    image_terms: Terms
    text_terms: Terms


def dense_statistics(pairs: Pairs) -> TakeStatistics:
    """All logits at once; the compiler splits them as the batch is split.

    The backward pass keeps the logits and makes their gradient, and no more of that size.
    """

    def forward(image: Side, text: Side, bias):
        logits = _products(image.embedding, text.embedding)
        of_images, of_texts = _fold(pairs, logits, image, text, bias)
        stats = (
            _merge(pairs.image_terms, _empty(pairs.image_terms, len(logits)), of_images),
            _merge(pairs.text_terms, _empty(pairs.text_terms, len(logits)), of_texts),
        )
        return stats, logits

    def backward(logits, *arguments):
        return _gradients(pairs, logits, *arguments)

    return _differentiable(forward, backward)


def ring_statistics(
    pairs: Pairs,
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

    def forward(image: Side, text: Side, bias):
        def meet(image_stats, visitor):
            text, text_stats = visitor

            def chunk(text_stats, image: Side):
                logits = _products(image.embedding, text.embedding)
                of_images, of_texts = _fold(pairs, logits, image, text, bias)
                return _merge(pairs.text_terms, text_stats, of_texts), of_images

            text_stats, of_images = _by_rows(chunk, text_stats, image, rows_of(text))
            return _merge(pairs.image_terms, image_stats, of_images), (text, text_stats)

        image_stats, text_stats = (
            _empty(terms, len(image.embedding)) for terms in (pairs.image_terms, pairs.text_terms)
        )
        image_stats, (_, text_stats) = go_around(meet, image_stats, (text, text_stats))
        return (image_stats, text_stats), None

    def backward(_, image: Side, text: Side, bias, image_slopes, text_slopes):

        def meet(grads, visitor):
            image_grad, bias_grad = grads
            text, text_slopes, text_grad = visitor

            def chunk(grads, part):
                image, image_slopes = part
                logits = _products(image.embedding, text.embedding)
                block = logits, image, text, bias
                of_images, *new = _gradients(pairs, *block, image_slopes, text_slopes)
                return _add(grads, new), of_images

            home = image, image_slopes
            (text_grad, bias_grad), of_images = _by_rows(
                chunk, [text_grad, bias_grad], home, rows_of(text)
            )
            return [_add(image_grad, of_images), bias_grad], (text, text_slopes, text_grad)

        at_home = [_no_gradient(image), jnp.zeros_like(bias)]
        visitor = text, text_slopes, _no_gradient(text)
        (image_grad, bias_grad), (_, _, text_grad) = go_around(meet, at_home, visitor)
        if num_devices > 1:
            bias_grad = jax.lax.psum(bias_grad, axes)
        return image_grad, text_grad, bias_grad

    if mesh:
        split, whole = PartitionSpec(axes), PartitionSpec()
        inputs = (split, split, whole)
        forward = jax.shard_map(
            forward, mesh=mesh, in_specs=inputs, out_specs=split, check_vma=False
        )
        backward = jax.shard_map(
            backward, mesh=mesh, in_specs=(whole, *inputs, split, split),
            out_specs=(split, split, whole), check_vma=False,
        )  # fmt: skip

    return _differentiable(forward, backward)


def _differentiable(forward: Callable, backward: Callable) -> TakeStatistics:
    """The function (image, text, bias) -> statistics, with the gradients that `backward` gives.

    Args:
      forward: the same, but -> (statistics, what to keep for the backward pass).
      backward: (what was kept, image, text, bias, image_slopes, text_slopes) -> gradients of image,
        text, bias; slopes are (statistics over all pairs, their cotangents).
    """

    def statistics(*arguments):
        return forward(*arguments)[0]

    def forward_rule(*arguments):
        stats, kept = forward(*arguments)
        return stats, (kept, arguments, stats)

    def backward_rule(residuals, cotangents):
        kept, arguments, stats = residuals
        return backward(kept, *arguments, *zip(stats, cotangents, strict=True))

    differentiable = jax.custom_vjp(statistics)
    differentiable.defvjp(forward_rule, backward_rule)
    return differentiable


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


def _no_gradient(side: Side) -> Side:
    return Side(jnp.zeros_like(side.embedding), jnp.zeros_like(side.own_logit), None)


def _products(image_RE: jax.Array, text_CE: jax.Array) -> jax.Array:
    # float32 on every backend: near 100, bfloat16 steps by 0.5
    return jnp.matmul(image_RE, text_CE.T, precision="highest", preferred_element_type=jnp.float32)


def _empty(terms: Terms, n: int) -> Statistics:
    """Of no pairs."""
    return {name: jnp.full(n, term.start, jnp.float32) for name, term in terms.items()}


def _merge(terms: Terms, a: Statistics, b: Statistics) -> Statistics:
    """Of the pairs of both."""
    merge = {"sum": jnp.add, "logsumexp": jnp.logaddexp}
    return {name: merge[term.fold](a[name], b[name]) for name, term in terms.items()}


def _values(
    pairs: Pairs, logits, image: Side, text: Side, bias
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The values of all terms for each pair, of images and of texts; float32 [R, C] each."""
    block = pairs.make_block(logits, image, text, bias)

    def of(terms: Terms, own_logits):
        margins = jnp.where(block.own, 0.0, block.logits - own_logits)
        return {name: term.value(block._replace(margins=margins)) for name, term in terms.items()}

    return (
        of(pairs.image_terms, image.own_logit[:, None]),
        of(pairs.text_terms, text.own_logit[None, :]),
    )


def _fold(pairs: Pairs, logits, image: Side, text: Side, bias) -> tuple[Statistics, Statistics]:
    """Of these pairs alone, without `start`."""
    fold = {"sum": jnp.sum, "logsumexp": jax.nn.logsumexp}

    def of(terms: Terms, values, axis: int) -> Statistics:
        return {name: fold[term.fold](values[name], axis=axis) for name, term in terms.items()}

    of_images, of_texts = _values(pairs, logits, image, text, bias)
    return of(pairs.image_terms, of_images, 1), of(pairs.text_terms, of_texts, 0)


def _gradients(pairs: Pairs, logits, image: Side, text: Side, bias, image_slopes, text_slopes):
    """What these pairs have of the gradients of image, text and bias; slopes as _differentiable.

    The derivative of a logsumexp L over all pairs by one of its values x is exp(x - L), and that is
    also the derivative of exp(x - L) with L held still: so the gradient is that of a sum that needs
    these pairs only.
    """

    def linear(logits, image_own, text_own, bias):
        sides = image._replace(own_logit=image_own), text._replace(own_logit=text_own)
        total = jnp.float32(0)
        for terms, values, slopes, axis in zip(
            (pairs.image_terms, pairs.text_terms),
            _values(pairs, logits, *sides, bias),
            (image_slopes, text_slopes),
            (1, 0),
            strict=True,
        ):
            for name, x in values.items():
                stat, cotangent = (jnp.expand_dims(slope[name], axis) for slope in slopes)
                x = jnp.exp(x - stat) if terms[name].fold == "logsumexp" else x
                total += jnp.sum(cotangent * x)
        return total

    grad_RC, image_own, text_own, bias_grad = jax.grad(linear, argnums=(0, 1, 2, 3))(
        logits, image.own_logit, text.own_logit, bias
    )
    _, pull = jax.vjp(_products, image.embedding, text.embedding)
    image_RE, text_CE = pull(grad_RC)
    return Side(image_RE, image_own, None), Side(text_CE, text_own, None), bias_grad
