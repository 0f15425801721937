"""s3:// and gs:// as they are spoken over HTTP: moto's server, and Google's JSON API in small."""

import pytest

from data_pipelines import remote
from data_pipelines.corpora import CorpusOptions, build_corpus
from data_pipelines.pmc.articles import list_inputs
from data_pipelines.remote import expand, filesystem, open_file
from data_pipelines.synthetic_releases import draw, write_release
from tests.pipelines.buckets import gs_bucket, s3_bucket
from tests.pipelines.pmc.articles import build as build_articles
from tests.pipelines.pmc.articles import write_articles

IMAGES = [draw(number, 40, 60) for number in range(24)]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A release with its traps, and what is made of it from the disk."""
    root = tmp_path_factory.mktemp("release")
    options = write_release("pmc_oa", root / "pmc_oa", IMAGES, traps=True)
    tars = write_release("open_pmc", root / "open_pmc", IMAGES, traps=True)
    made = {
        "open_pmc": build(root / "a", tars),
        "pmc_oa": build(root / "b", options),
    }
    return root, made


def build(out, options):
    return build_corpus(CorpusOptions(out=str(out), workers=1, tokenizer_vocab=0, **options))


def same_from(bucket: str, release, tmp_path) -> None:
    """A glob, a brace, a folder; tars in one pass, a zip by its parts: as from the disk."""
    _, made = release
    assert len(expand([f"{bucket}/open_pmc/*.tar"], (".tar",))) == 3
    assert len(expand([f"{bucket}/open_pmc/train-{{0000..0001}}.tar"], (".tar",))) == 2
    tars = {"layout": "open_pmc", "input": (f"{bucket}/open_pmc",)}
    assert build(tmp_path / "tars", tars).metadata.equals(made["open_pmc"].metadata)
    table = {"layout": "pmc_oa", "input": (f"{bucket}/pmc_oa/pmc_oa.jsonl",)}
    table["images"] = f"{bucket}/pmc_oa/images.zip"
    assert build(tmp_path / "table", table).metadata.equals(made["pmc_oa"].metadata)
    with pytest.raises(FileNotFoundError, match="nothing.tar is no file"):
        expand([f"{bucket}/nothing.tar"], (".tar",))
    with open_file(f"{bucket}/open_pmc/train-0000.tar") as file:
        file.seek(100)
        assert len(file.read(10)) == 10


def test_s3(release, tmp_path, monkeypatch):
    with s3_bucket(monkeypatch) as bucket:
        fs = filesystem(bucket)[0]
        for folder in ("open_pmc", "pmc_oa"):
            fs.put(str(release[0] / folder), f"corpora/{folder}", recursive=True)
        same_from(bucket, release, tmp_path)


def test_gs(release, tmp_path, monkeypatch):
    with gs_bucket(monkeypatch, release[0]) as bucket:
        same_from(bucket, release, tmp_path)


def test_a_public_bucket_needs_no_credentials(release, tmp_path, monkeypatch):
    with s3_bucket(monkeypatch) as bucket:
        import s3fs

        public = s3fs.S3FileSystem(s3_additional_kwargs={"ACL": "public-read"})
        public.put(str(release[0] / "open_pmc"), "corpora/open_pmc", recursive=True)
        public.s3_additional_kwargs["ACL"] = "private"
        public.pipe("corpora/mine/a.tar", b"x")
        public.chmod("corpora", "public-read")
        without_credentials(monkeypatch, tmp_path)
        fs = filesystem(bucket)[0]
        assert fs.anon and len(expand([f"{bucket}/open_pmc/*.tar"], (".tar",))) == 3
        with open_file(f"{bucket}/open_pmc/train-0000.tar") as file:
            assert len(file.read(512)) == 512
        with pytest.raises(ValueError, match="mine/a.tar cannot be read .Permission"):
            open_file(f"{bucket}/mine/a.tar").read()


def test_articles_of_a_public_bucket(tmp_path, monkeypatch):
    folder = write_articles(tmp_path / "articles", 2)
    local = build_articles(folder, tmp_path / "of_folder")
    with s3_bucket(monkeypatch) as bucket:
        import s3fs

        public = s3fs.S3FileSystem(s3_additional_kwargs={"ACL": "public-read"})
        public.put(str(folder), "corpora/articles", recursive=True)
        public.chmod("corpora", "public-read")
        without_credentials(monkeypatch, tmp_path)
        dataset = build_articles(f"{bucket}/articles", tmp_path / "of_bucket")
    assert dataset.metadata.equals(local.metadata) and len(dataset) == 2


def test_a_bucket_that_cannot_be_reached_is_told_in_a_line(tmp_path, monkeypatch):
    pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    without_credentials(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match="s3://nowhere/a.parquet cannot be read .*") as said:
        expand(["s3://nowhere/a.parquet"], (".parquet",))
    assert "\n" not in str(said.value)
    with pytest.raises(ValueError, match="s3://nowhere/a cannot be read .*"):
        list_inputs("s3://nowhere/a")


def without_credentials(monkeypatch, tmp_path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    remote._is_anonymous.cache_clear()
    monkeypatch.setattr(remote, "_is_anonymous", remote._is_anonymous.__wrapped__)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
