import gzip
import json
import os
import pathlib
import subprocess
import sys

import pytest

from data_pipelines.tokenizer import describe, read_texts, save_tokenizer, train_tokenizer
from jaxclip.data.dataset import finish_dataset, write_shard
from jaxclip.data.record import Example, Record
from jaxclip.data.text import TokenizerConfig, load_tokenizer

TEXTS = [
    "Axial CT of the chest, contrast-enhanced.",
    "Axial MRI of the brain; T2-weighted, 1.5 T.",
    "Histology of the chest wall, H&E, ×40, scale bar 50 µm.",
    "Kaplan–Meier survival of the patients (n = 40).",
] * 3
VOCAB_SIZE = {"wordpiece": 120, "bpe": 560}
KINDS = sorted(VOCAB_SIZE)


@pytest.fixture(scope="module")
def trained():
    return {kind: train_tokenizer(TEXTS, vocab_size=VOCAB_SIZE[kind], kind=kind) for kind in KINDS}


def load(tokenizer, path):
    save_tokenizer(tokenizer, path)
    return load_tokenizer(TokenizerConfig(path=str(path)))


@pytest.mark.parametrize("kind", KINDS)
def test_same_texts_same_file(trained, kind):
    # In any order: what is learnt is counts. The library's trainers alone differ from run to run.
    for texts in (TEXTS, TEXTS[::-1]):
        again = train_tokenizer(iter(texts), vocab_size=VOCAB_SIZE[kind], kind=kind)
        assert again.to_str() == trained[kind].to_str()


@pytest.mark.parametrize("kind", KINDS)
def test_load_tokenizer_needs_only_the_path(trained, kind, tmp_path):
    tokenizer = load(trained[kind], tmp_path / "new" / "tokenizer.json")
    assert os.listdir(tmp_path / "new") == ["tokenizer.json"]  # no temporary file
    assert tokenizer.vocab_size == VOCAB_SIZE[kind]
    assert tokenizer.pad_id == 0
    text = "Axial CT of the brain"
    row = tokenizer.encode([text])[0].tolist()
    num_tokens = row.index(tokenizer.eos_id) + 1
    assert row[0] == tokenizer.bos_id and not any(row[num_tokens:])
    # With special tokens, as the Rust library adds them by the file's own template.
    assert row[:num_tokens] == trained[kind].encode(text).ids
    assert tokenizer.decode(row) == text.lower()
    assert tokenizer._vocabulary.word_by_word  # else encoding is ten times slower


def test_frequent_words_become_tokens(trained):
    assert trained["wordpiece"].encode("chest axial").tokens == ["[CLS]", "chest", "axial", "[SEP]"]
    assert trained["bpe"].encode("the").tokens == ["<start_of_text>", "the</w>", "<end_of_text>"]


def test_unknown_characters(trained, tmp_path):
    # Twelve texts: a wordpiece vocabulary knows their characters only, a bpe one all bytes.
    wordpiece, bpe = (
        load(trained[kind], tmp_path / f"{kind}.json") for kind in ("wordpiece", "bpe")
    )
    assert wordpiece.encode(["脳"])[0, :3].tolist() == [2, 1, 3]  # [CLS] [UNK] [SEP]
    assert bpe.decode(bpe.encode(["脳 MRI 👍"])[0]) == "脳 mri 👍"


def test_only_specials_are_special(trained):
    # Characters are handed to the trainer as special tokens, and must not stay so.
    special = {"wordpiece": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]}
    special["bpe"] = ["<pad>", "<start_of_text>", "<end_of_text>"]
    for kind, tokenizer in trained.items():
        assert [t.content for t in tokenizer.get_added_tokens_decoder().values()] == special[kind]
        assert tokenizer.decode(tokenizer.encode("a x").ids).strip() == "a x"


@pytest.mark.parametrize("kind", KINDS)
def test_train_errors(kind):
    with pytest.raises(ValueError, match=r"vocab_size \(20\) must be above \d+"):
        train_tokenizer(TEXTS, vocab_size=20, kind=kind)
    with pytest.raises(ValueError, match=r"texts \(0\) must be at least 1"):
        train_tokenizer(["", " "], vocab_size=1000, kind=kind)
    with pytest.raises(ValueError, match=r"kind \('unigram'\) must be one of wordpiece, bpe"):
        train_tokenizer(TEXTS, vocab_size=1000, kind="unigram")


def test_describe(trained):
    # "axial": [CLS] axial [SEP]. 99 times and 2 more: 101 tokens. "脳": 3, one of them unknown.
    report = describe(trained["wordpiece"], ["axial", "", " ".join(["axial"] * 99), "脳"])
    assert report == {
        "vocab_size": 120,
        "unknown_tokens": 1 / (3 + 101 + 3),
        "tokens_per_text": (3 + 101 + 3) / 3,
        "longer_than_77": 1 / 3,
    }


@pytest.fixture(scope="module")
def dataset_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("dataset")
    splits = ["train", "validation", "train", "test", "train"]
    examples = [
        Example(
            record=Record(
                image=b"x", width=1, height=1, caption=f"caption {i}", summary=f"sum {i}"
            ),
            split=split,
        )
        for i, split in enumerate(splits)
    ]
    write_shard(path, 0, examples)
    finish_dataset(path, 1, {})
    return path


def test_of_a_dataset_only_the_train_split_is_read(dataset_path):
    assert read_texts(dataset_path, "caption", 99) == ["caption 0", "caption 2", "caption 4"]
    assert read_texts(dataset_path, "summary", 2) == ["sum 0", "sum 4"]  # evenly spaced
    with pytest.raises(ValueError, match=r"field \('title'\) must be one of caption"):
        read_texts(dataset_path, "title", 99)


def test_read_jsonl(tmp_path):
    rows = [{"caption": "one"}, {"caption": None}, {"caption": "two"}, {"caption": "three"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert read_texts(tmp_path / "a.jsonl", "caption", 2) == ["one", "two"]
    assert read_texts(tmp_path / "a.jsonl.gz", "caption", 9) == ["one", "two", "three"]
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1, has no field 'title'"):
        read_texts(tmp_path / "a.jsonl", "title", 9)
    (tmp_path / "bad.jsonl").write_text('{"caption": "one"}\n{"caption": ')
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2, must be JSON"):
        read_texts(tmp_path / "bad.jsonl", "caption", 9)
    with pytest.raises(FileNotFoundError, match=r"input \(.*none\) must be a dataset"):
        read_texts(tmp_path / "none", "caption", 9)


def test_command(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    flags = [f"--input={tmp_path}/a.jsonl", "--field=text", "--vocab_size=120"]
    command = [sys.executable, "-m", "data_pipelines.tokenizer", *flags]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [*command, f"--out={tmp_path}/tokenizer.json"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    tokenizer = load_tokenizer(TokenizerConfig(path=f"{tmp_path}/tokenizer.json"))
    assert (report["texts"], report["vocab_size"]) == (12, 120)
    assert report["fingerprint"] == tokenizer.fingerprint
