"""Made-up corpora in exactly the layouts that the real ones are released in, known traps included.

    python -m data_pipelines.synthetic_releases --layout=open_pmc --out=DIR [--size=10000]

For tests and benchmarks, and for trying a conversion before the terabytes are there. With traps
(the default), a release ends with the items that have broken readers: a 9-pixel image, an empty
caption, broken JSON, a tar cut short, a missing image; TRAPS says which drop each must become.
"""

import csv
import dataclasses
import io
import json
import pathlib
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from data_pipelines.options import option, run

SAMPLES_PER_TAR = 1000
PMC_OA_FOLDER = "caption_T060_filtered_top4_sep_v0_subfigures"
TAR_TRAPS = {"too small": 1, "empty caption": 1, "unreadable json": 1, "tar breaks off": 1}
TAR_TRAPS |= {"no image": 1, "unreadable JPEG": 1, "not a plain file in the tar": 1}
TABLE_TRAPS = {"too small": 1, "empty caption": 1, "missing file": 1}
TRAPS = {  # the drops by reason that a release with traps must give
    "open_pmc": TAR_TRAPS,
    "open_pmc_18m": TAR_TRAPS,
    "biomedica": TAR_TRAPS,
    "pmc_oa": TABLE_TRAPS | {"unreadable row": 1},
    "roco": TABLE_TRAPS,
    "rocov2": {"too small": 1, "empty caption": 1, "no image": 1},
    "medicat": TABLE_TRAPS | {"unreadable row": 1},
    "quilt": TABLE_TRAPS,
}


def draw(number: int, height: int = 300, width: int = 400) -> bytes:
    """A JPEG of smooth noise, another for every number."""
    rng = np.random.default_rng(number)
    small = rng.integers(0, 255, (6, 8, 3), np.uint8)
    pixels = np.kron(small, np.ones((-(-height // 6), -(-width // 8), 1), np.uint8))
    pixels = pixels[:height, :width]
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 90, colorsubsampling="420")


def caption(number: int) -> str:
    return f"(a) Axial CT of patient {number}. (b) The same after treatment."


def name(number: int) -> str:
    """Three panels a figure, two figures an article: PMC1000_Fig1_1.jpg, ..."""
    figure, panel = divmod(number, 3)
    article, figure = divmod(figure, 2)
    return f"PMC{1000 + article}_Fig{figure + 1}_{panel + 1}.jpg"


# --- Tars -----------------------------------------------------------------------------------------

Members = dict[str, bytes]  # by suffix


def _json(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode()


def _open_pmc(number: int, image: bytes) -> tuple[str, Members]:
    fields = {
        "PMC_ID": name(number).split("_")[0],
        "image": name(number),
        "full_caption": caption(number),
        "sub_caption": "NO" if number % 5 == 4 else f"Axial CT of patient {number}.",
        "intext_refs": [f"Figure 1 shows patient {number}.", "See also Fig. 1."],
        "intext_refs_summary": f"Patient {number} was treated.",
        "modality": ("radiology", "microscopy", "visible light photography")[number % 3],
    }
    key = f"train-{number // SAMPLES_PER_TAR:04d}-{number % SAMPLES_PER_TAR:06d}"
    return key, {"jpg": image, "jsonl": _json(fields) + b"\n"}


def _open_pmc_18m(number: int, image: bytes) -> tuple[str, Members]:
    fields = {"caption": caption(number), "sub_caption": f"Axial CT of patient {number}."}
    fields |= {"summary": f"Patient {number} was treated.", "label_L1": "Radiology"}
    return name(number).removesuffix(".jpg"), {"jpg": image, "json": _json(fields)}


def _biomedica(number: int, image: bytes) -> tuple[str, Members]:
    article = f"PMC{1000 + number // 6}"
    href = f"1471-2105-{number // 6}.S1-{number % 6}"  # publishers' ids have dots
    siblings = [f"1471-2105-{number // 6}.S1-{i}" for i in range(6)]
    suffix = ".jpg" if number % 2 else ""  # hrefs come with and without it
    fields = {
        "image_file_name": f"{href}.jpg",
        "image_cluster_id": href,  # not the cluster
        "image_hash": f"{number:064x}",
        "image_label_id": str(number % 2000),  # the cluster
        "image_panel_type": "multiple",
        "image_panel_subtype": "single panel" if number % 2 else "multi panel",
        "image_primary_label": ["Clinical Imaging"],
        "image_secondary_label": ["ct"],
        "image_size": [400, 300],
        "image_set": siblings,
        "image_context": {s + suffix: [f"Paragraph about {s}.", "And more."] for s in siblings},
        "article_accession_id": article,
        "article_title": "A title",
        "article_journal": "BMC Bioinformatics",
        "article_date": "2010-01-18",
        "article_mesh_terms": ["Humans"],
        "article_keywords": None,
        "article_license": "CC BY",
        "article_text": "<article/>" * 100,
    }
    members = {"jpg": image, "txt": caption(number).encode(), "json": _json(fields)}
    return f"12-{article}-{number % 6}-{href}", members


TAR_LAYOUTS: dict[str, tuple[str, Callable[[int, bytes], tuple[str, Members]]]] = {
    "open_pmc": ("train-{:04d}.tar", _open_pmc),
    "open_pmc_18m": ("data_{:05d}.tar", _open_pmc_18m),
    "biomedica": ("commercial/0_999{:06d}.tar", _biomedica),
}


def write_tars(layout: str, folder: pathlib.Path, images: Sequence[bytes], traps: bool) -> str:
    pattern, sample = TAR_LAYOUTS[layout]
    samples = list(map(sample, range(len(images)), images))
    (folder / pattern).parent.mkdir(parents=True, exist_ok=True)
    tars = [samples[i : i + SAMPLES_PER_TAR] for i in range(0, len(samples), SAMPLES_PER_TAR)]
    for number, part in enumerate(tars):
        (folder / pattern.format(number)).write_bytes(_tar(part))
    if traps:
        trapped = [sample(len(images) + i, draw(i)) for i in range(7)]
        (folder / pattern.format(len(tars))).write_bytes(_tar(_spoiled(trapped[:5]), link=True))
        blocks = (1 + -(-len(data) // 512) for data in trapped[5][1].values())
        whole = 512 * sum(blocks)  # the first sample; of the second, half a kilobyte of its image
        cut = _tar(trapped[5:7])[: whole + 1024]
        (folder / pattern.format(len(tars) + 1)).write_bytes(cut)
    return str(folder / pattern.split("{")[0]) + "*.tar"


def _tar(samples: Sequence[tuple[str, Members]], link: bool = False) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for key, members in samples:
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        if link:
            info = tarfile.TarInfo("link.jpg")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    return buffer.getvalue()


def _spoiled(samples: list[tuple[str, Members]]) -> list[tuple[str, Members]]:
    """A tiny image, no caption, broken JSON, no image, an image cut short: five samples."""
    json_name = "jsonl" if "jsonl" in samples[0][1] else "json"
    fields = json.loads(samples[1][1][json_name])
    no_caption = {"full_caption": "", "sub_caption": "", "caption": ""}
    changes: list[Members] = [
        {"jpg": draw(0, 9, 9)},
        {json_name: _json(fields | no_caption)},
        {json_name: b'{"caption": "cut'},
        {},
        {"jpg": samples[4][1]["jpg"][: len(samples[4][1]["jpg"]) // 3]},
    ]
    if "txt" in samples[1][1]:
        changes[1]["txt"] = b"No caption found"
    spoiled = [(key, m | change) for (key, m), change in zip(samples, changes, strict=True)]
    del spoiled[3][1]["jpg"]
    return spoiled


# --- Tables ---------------------------------------------------------------------------------------


def write_pmc_oa(folder: pathlib.Path, images: Sequence[bytes], traps: bool) -> str:
    kinds = ("CLIP", "OCR", "nonCompound-caption", "nonCompound-figure")
    rows = [
        {
            "image": name(number),
            "caption": caption(number),
            "alignment_type": kinds[number % 4],
            "alignment_score": round(0.5 + 0.1 * (number % 5), 2),
        }
        for number in range(len(images))
    ]
    files = {f"{PMC_OA_FOLDER}/{name(number)}": image for number, image in enumerate(images)}
    extra = [row | {"image": f"PMC9_Fig9_{i}.jpg"} for i, row in enumerate(rows[: 3 * traps])]
    if traps:
        extra[1]["caption"] = ""
        files |= {f"{PMC_OA_FOLDER}/PMC9_Fig9_{i}.jpg": draw(i, 9, 9) for i in range(2)}
    _write_zip(folder / "images.zip", files)
    lines = [json.dumps(row) for row in rows + extra] + ['{"image": "cut'] * traps
    (folder / "pmc_oa.jsonl").write_text("\n".join(lines) + "\n")
    beta = [{"image": row["image"], "caption": "Whole. " + row["caption"]} for row in rows]
    (folder / "pmc_oa_beta.jsonl").write_text("".join(json.dumps(row) + "\n" for row in beta))
    return str(folder / "pmc_oa.jsonl")


def write_roco(folder: pathlib.Path, images: Sequence[bytes], traps: bool) -> str:
    splits = ("train", "train", "validation", "test")
    rows = {split: [] for split in dict.fromkeys(splits)}
    for number, image in enumerate(images):
        split = splits[number % 4]
        file = folder / "data" / split / "radiology" / "images" / name(number)
        _write(file, image)
        rows[split].append([f"ROCO_{number:05d}", name(number), f" {caption(number)}\n"])
    if traps:
        images_of = folder / "data" / "train" / "radiology" / "images"
        _write(images_of / "PMC9_Fig1_1.jpg", draw(0, 9, 9))
        _write(images_of / "PMC9_Fig1_2.jpg", draw(0))
        rows["train"] += [["ROCO_9", "PMC9_Fig1_1.jpg", "x"], ["ROCO_8", "PMC9_Fig1_2.jpg", " \n"]]
        rows["train"] += [["ROCO_7", "PMC9_removed.jpg", "The publisher took it back."]]
    for split, part in rows.items():
        file = folder / "data" / split / "radiology" / f"{split}data.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_csv(file, ["id", "name", "caption"], part)
    return str(folder / "data/*/radiology/*data.csv")


def write_rocov2(folder: pathlib.Path, images: Sequence[bytes], traps: bool) -> str:
    rows = [
        {
            "image": {"bytes": image, "path": f"ROCOv2_2023_train_{number:06d}.jpg"},
            "image_id": f"ROCOv2_2023_train_{number:06d}",
            "caption": caption(number),
            "cui": ["C0040405", "C0817096"],
        }
        for number, image in enumerate(images)
    ]
    if traps:
        bad = [dict(rows[0]), dict(rows[1]), dict(rows[2])]
        bad[0]["image"] = {"bytes": draw(0, 9, 9), "path": "x.jpg"}
        bad[1]["caption"], bad[2]["image"] = None, None
        rows += bad
    half, schema = len(rows) // 2, pa.Table.from_pylist(rows[:1]).schema
    for split, part in {"train": rows[half:], "validation": rows[:half]}.items():
        file = folder / "data" / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(part, schema=schema), file, row_group_size=1000)
    return str(folder / "data")


def write_medicat(folder: pathlib.Path, images: Sequence[bytes], traps: bool) -> str:
    rows = []
    for number, image in enumerate(images):
        row = {"pdf_hash": f"{number // 2:040x}", "fig_uri": f"{number % 2 + 1}-Figure1-1.png"}
        row |= {"s2_caption": caption(number), "s2orc_caption": None if number % 2 else "Whole."}
        row |= {"s2orc_references": ["Fig. 1 shows it."] if number % 3 else None}
        row |= {"radiology": True, "predicted_type": "Medical images"}
        rows.append(row | {"oa_info": {"oa_status": "gold", "license": "cc-by"}})
        _write(folder / "figures" / f"{row['pdf_hash']}_{row['fig_uri']}", image)
    if traps:
        bad = [row | {"pdf_hash": f"{9 - i}" * 40} for i, row in enumerate(rows[:3])]
        _write(folder / "figures" / f"{bad[0]['pdf_hash']}_{bad[0]['fig_uri']}", draw(0, 9, 9))
        bad[1] |= {"s2_caption": "", "s2orc_caption": None}
        rows += bad
    lines = [json.dumps(row) for row in rows] + ["{'not json'}"] * traps
    table = folder / "s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl"
    table.write_text("\n".join(lines) + "\n")
    return str(table)


def write_quilt(folder: pathlib.Path, images: Sequence[bytes], traps: bool) -> str:
    columns = ["", "caption", "image_path", "subset", "split", "pathology", "magnification"]
    rows, files = [], {}
    for number, image in enumerate(images):
        path = f"video{number // 4}_image_{number:08x}.jpg"
        files[f"quilt_1m/{path}"] = image
        split = "val" if number % 10 == 9 else "train"
        rows.append([number, caption(number), path, "quilt", split, "Renal", "1.0"])
    if traps:
        files["quilt_1m/video9_image_0.jpg"] = draw(0, 9, 9)
        for text, image in (("x", 0), ("", 0), ("gone", 1)):
            rows.append([0, text, f"video9_image_{image}.jpg", "quilt", "train", "", ""])
    for part in (0, 1):  # of ten
        _write_zip(folder / f"images_part_{part}.zip", dict([*files.items()][part::2]))
    _write_csv(folder / "quilt_1M_lookup.csv", columns, rows)
    return str(folder / "quilt_1M_lookup.csv")


def _write(file: pathlib.Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def _write_zip(file: pathlib.Path, files: dict[str, bytes]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as opened:
        for member, data in files.items():
            opened.writestr(member, data)


def _write_csv(file: pathlib.Path, columns: list[str], rows: list[list[Any]]) -> None:
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([columns, *rows])


TABLES = {"pmc_oa": write_pmc_oa, "roco": write_roco, "rocov2": write_rocov2}
TABLES |= {"medicat": write_medicat, "quilt": write_quilt}
IMAGES = {"pmc_oa": "images.zip", "medicat": "figures", "quilt": "images_part_*.zip"}  # of --images


def write_release(
    layout: str, folder: str | pathlib.Path, images: Sequence[bytes], *, traps: bool
) -> dict[str, Any]:
    """Writes a release of `images`; returns the options of data_pipelines.corpora that read it."""
    folder = pathlib.Path(folder)
    if layout in TAR_LAYOUTS:
        pattern = write_tars(layout, folder, images, traps)
    else:
        pattern = TABLES[layout](folder, images, traps)
    options = {"layout": layout, "input": (pattern,)}
    if layout in IMAGES:
        options["images"] = str(folder / IMAGES[layout])
    return options


@dataclasses.dataclass(slots=True, kw_only=True)
class ReleaseOptions:
    """The command line."""

    layout: str = option("", ", ".join(TRAPS))
    out: str = option("", "folder to write to")
    size: int = option(24, "pairs, besides the traps")
    traps: bool = option(True, "add the items that have broken readers")


def main(options: ReleaseOptions) -> None:
    """Raises ValueError: an option."""
    if options.layout not in TRAPS or not options.out:
        raise ValueError(f"Give --out=FOLDER and --layout= one of {', '.join(TRAPS)}.")
    if options.size < 4:
        raise ValueError(f"size ({options.size}) must be at least 4.")
    images = list(map(draw, range(options.size)))
    read = write_release(options.layout, options.out, images, traps=options.traps)
    flags = [f"--{k}='{','.join(v) if isinstance(v, tuple) else v}'" for k, v in read.items()]
    print(f"python -m data_pipelines.corpora {' '.join(flags)} --out=DATASET")


if __name__ == "__main__":
    run(main, ReleaseOptions)
