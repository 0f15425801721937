"""Both towers in float64 NumPy, one image or text at a time, from the papers' formulas.

Radford et al. 2021 (CLIP), Zhai et al. 2023 (SigLIP), Dosovitskiy et al. 2021 (ViT). Reads the
parameter tree of jaxclip and its configs, and nothing else of it.

Shape letters: T positions, D width, N heads, H head size, S image size, P patch size.
"""

import math

import jax
import numpy as np

erf = np.vectorize(math.erf)
GELU = {
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
}


def linear(x, p):
    return x @ p["kernel"] + p.get("bias", 0.0)


def layer_norm(x, p, epsilon):
    variance = ((x - x.mean(-1, keepdims=True)) ** 2).mean(-1, keepdims=True)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(variance + epsilon) * p["scale"] + p["bias"]


def attention(x_TD, y_SD, p, num_heads, seen_TS):
    q, k, v = (linear(z, p[n]) for z, n in ((x_TD, "query"), (y_SD, "key"), (y_SD, "value")))
    H = q.shape[1] // num_heads
    heads = []
    for n in range(num_heads):
        head = slice(n * H, (n + 1) * H)
        score_TS = np.where(seen_TS, q[:, head] @ k[:, head].T / math.sqrt(H), -np.inf)
        weight_TS = np.exp(score_TS - score_TS.max(axis=1, keepdims=True))
        heads.append(weight_TS / weight_TS.sum(axis=1, keepdims=True) @ v[:, head])
    return linear(np.concatenate(heads, axis=1), p["out"])


def mlp(x, p, c):
    return linear(GELU[c.activation](linear(x, p["up"])), p["down"])


def transformer(x_TD, p, c, seen_TT):
    for layer in range(c.depth):
        b = jax.tree.map(lambda a, layer=layer: a[layer], p["blocks"])
        y = layer_norm(x_TD, b["norm1"], c.norm_epsilon)
        x_TD = x_TD + attention(y, y, b["attention"], c.num_heads, seen_TT)
        x_TD = x_TD + mlp(layer_norm(x_TD, b["norm2"], c.norm_epsilon), b["mlp"], c)
    return x_TD


def image_embedding(config, inputs, params, image_SS3):
    """uint8 pixels -> unit-norm embedding."""
    c, p, P = config.image, params["image"], config.image.patch_size
    x = (image_SS3 / 255.0 - np.array(inputs.mean)) / np.array(inputs.std)
    corners = range(0, inputs.image_size, P)
    patches = [x[r : r + P, s : s + P].reshape(-1) for r in corners for s in corners]
    x_TD = linear(np.stack(patches), p["patch_embedding"]) + p["position_embedding"]
    if c.pool == "class_token":
        x_TD = np.concatenate([p["class_token"][None], x_TD])
    if c.pre_norm:
        x_TD = layer_norm(x_TD, p["pre_norm"], c.transformer.norm_epsilon)
    x_TD = transformer(x_TD, p["transformer"], c.transformer, np.ones((len(x_TD),) * 2, bool))
    x_TD = layer_norm(x_TD, p["final_norm"], c.transformer.norm_epsilon)
    if c.pool == "map":
        head, seen = p["map_head"], np.ones((1, len(x_TD)), bool)
        x = attention(head["probe"][0], x_TD, head["attention"], c.transformer.num_heads, seen)[0]
        y = layer_norm(x, head["norm"], c.transformer.norm_epsilon)
        features = x + mlp(y, head["mlp"], c.transformer)
    else:
        features = x_TD[0] if c.pool == "class_token" else x_TD.mean(axis=0)
    if config.image_projection:
        features = linear(features, p["projection"])
    return features / np.linalg.norm(features)


def text_embedding(config, inputs, params, tokens_T):
    """Token ids -> unit-norm embedding."""
    c, p, T = config.text, params["text"], len(tokens_T)
    x_TD = p["token_embedding"]["embedding"][tokens_T] + p["position_embedding"]
    end = list(tokens_T).index(inputs.eos_id)
    is_token_T = np.array([t <= end or token != inputs.pad_id for t, token in enumerate(tokens_T)])
    seen_TT = np.tril(np.ones((T, T), bool)) if c.is_causal else np.ones((T, T), bool)
    if c.mask_padding:
        seen_TT = seen_TT & is_token_T
    x_TD = transformer(x_TD, p["transformer"], c.transformer, seen_TT)
    x_TD = layer_norm(x_TD, p["final_norm"], c.transformer.norm_epsilon)
    pooled = {"eot": x_TD[end], "last": x_TD[-1], "first": x_TD[0]}
    pooled["mean"] = x_TD[is_token_T].mean(axis=0)
    features = linear(pooled[c.pool], p["projection"])
    return features / np.linalg.norm(features)
