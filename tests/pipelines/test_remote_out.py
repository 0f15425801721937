"""--out=URL: byte for byte the dataset of a folder, whatever breaks off on the way."""

import functools
import importlib
import itertools
import pathlib
import pickle
import posixpath
import runpy
import shlex

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data_pipelines import remote, write
from data_pipelines.corpora import CorpusOptions
from data_pipelines.options import take_beam_options
from data_pipelines.pmc.build import build_pmc
from data_pipelines.pmc.context import ContextOptions
from data_pipelines.pmc.options import PmcOptions
from data_pipelines.remote import Shards, create_file, filesystem, read_file
from data_pipelines.table import TableOptions, build_table
from jaxclip.data.dataset import Dataset, write_shard
from jaxclip.data.record import Drop, Example, Record
from jaxclip.data.subset import Subset, open_dataset
from tests.pipelines.buckets import gs_bucket, s3_bucket
from tests.pipelines.pmc.articles import picture, write_articles
from tests.pipelines.test_write import JOBS, build, items_of

BEAM = ("--runner=DirectRunner", "--direct_num_workers=1")


def files_in(folder: str | pathlib.Path) -> dict[str, bytes]:
    fs, root = filesystem(str(folder))
    return {posixpath.basename(name): fs.cat_file(name) for name in fs.ls(root, detail=False)}


@pytest.fixture
def memory():
    """A URL where nothing is."""
    MemoryFileSystem.store.clear()
    yield "memory://bucket/ds"
    MemoryFileSystem.store.clear()


@pytest.fixture(scope="module")
def articles(tmp_path_factory):
    """Six articles: of the second the image is gone, the third has that of the first once more."""
    folder = write_articles(tmp_path_factory.mktemp("articles"), 6)
    (folder / "PMC101/f1.jpg").unlink()
    (folder / "PMC102/f1.jpg").write_bytes(picture(100, size=(90, 120)))
    return folder


def build_articles(articles, out: str, **how) -> Dataset:
    options = {"workers": 1, "articles_per_shard": 1, "tokenizer_vocab": 90} | how
    beam = options.pop("beam", ())
    options = PmcOptions(input=str(articles), out=out, panels="figures", **options)
    return build_pmc(options, ContextOptions(), beam)


@pytest.fixture(scope="module")
def in_folder(articles, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("built") / "ds"
    dataset = build_articles(articles, str(out))
    clusters = dataset.metadata["duplicate_cluster"].to_pylist()
    assert clusters[:2] == [0, 0]  # thumbnails were compared: records of two shards
    assert "records-00001.array_record" not in files_in(out)  # the shard without records
    return files_in(out)


@pytest.mark.parametrize("kind, how", [("gs", {"workers": 2}), ("s3", {"beam": BEAM})])
def test_a_bucket_has_the_bytes_of_a_folder(articles, in_folder, tmp_path, monkeypatch, kind, how):
    serve = s3_bucket(monkeypatch) if kind == "s3" else gs_bucket(monkeypatch, tmp_path)
    with serve as bucket:
        dataset = build_articles(articles, f"{bucket}/sets/ds", **how)
        assert files_in(f"{bucket}/sets/ds") == in_folder
        assert dataset[4].caption == "Mouse 105."  # fetched
        again = build_articles(articles, f"{bucket}/sets/ds/", **how)
        assert again.manifest == dataset.manifest and again[0] == dataset[0]
        assert files_in(f"{bucket}/sets/ds") == in_folder


class Killed(BaseException):
    """No `except Exception` sees it, as none sees a SIGKILL."""


def items_and_an_empty_shard(job: int):
    if job == 10:
        yield Drop(item="all of it", reason="too small")
    else:
        yield from items_of(job)


def test_killed_anywhere_it_is_not_finished_and_the_same_command_finishes_it(
    memory, tmp_path, monkeypatch
):
    """Before every single upload and removal in turn."""
    run = functools.partial(build, make_items=items_and_an_empty_shard, tokenizer_vocab=60)
    run(tmp_path / "ds")
    whole = files_in(tmp_path / "ds")
    put_file, rm_file = MemoryFileSystem.put_file, MemoryFileSystem.rm_file
    for at in itertools.count():
        left = iter(range(at))

        def counted(function, left=left):
            def call(*args, **options):
                if next(left, None) is None:
                    raise Killed
                return function(*args, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(MemoryFileSystem, "put_file", counted(put_file))
            patch.setattr(MemoryFileSystem, "rm_file", counted(rm_file))
            try:
                run(f"{memory}{at}")
                break
            except Killed:
                there = files_in(f"{memory}{at}") if at else {}
        if "manifest.json" in there:
            assert whole.items() <= there.items()
        run(f"{memory}{at}")
        assert files_in(f"{memory}{at}") == whole
    # build.json twice, three files of each of four shards, then what the whole adds: 4 files;
    # removed: tables and counts of four shards, the empty shard and build.json
    assert at == 2 + 4 * 3 + 4 + 4 * 2 + 1 + 1


def test_an_upload_that_fails_is_one_line_and_can_be_done_again(memory, monkeypatch):
    with monkeypatch.context() as patch:

        def put_file(*_, **__):
            raise PermissionError("403")

        patch.setattr(MemoryFileSystem, "put_file", put_file)
        with pytest.raises(ValueError, match="cannot be written .PermissionError: 403.*logged in"):
            build(memory)
    assert len(build(memory)) == 20


def test_whose_url_it_is(memory, capsys):
    build(memory, jobs=JOBS[:2])
    with pytest.raises(ValueError, match="options.size: 3 there, 4 now"):
        build(memory, made_by={"module": "test", "options": {"size": 4}})
    build(memory, lambda job: pytest.fail("made again"), jobs=JOBS[:2])
    assert "Already done" in capsys.readouterr().out
    with create_file(f"{memory}/notes.txt") as file:
        pathlib.Path(file).write_text("mine")
    assert len(build(memory, made_by={"other": 1}, overwrite=True)) == 20
    assert read_file(f"{memory}/notes.txt") == b"mine"
    MemoryFileSystem().rm_file(f"{memory}/records-00002.array_record")
    with pytest.raises(ValueError, match="lost records-00002.array_record"):
        build(memory, made_by={"other": 1})


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_something_else_is_left_alone(memory, overwrite):
    with create_file(f"{memory}/manifest.json") as file:
        pathlib.Path(file).write_text('{"name": "a web app"}')
    with pytest.raises(ValueError, match="has manifest.json"):
        build(memory, overwrite=overwrite)
    assert files_in(memory) == {"manifest.json": b'{"name": "a web app"}'}


def test_nothing_but_drops_is_an_error_with_its_list(memory):
    def only_drops(job: int):
        yield Drop(item=str(job), reason="too small")

    with pytest.raises(ValueError, match="written to ds: dropped {'too small': 4}"):
        build(memory, only_drops)
    assert read_file(f"{memory}/manifest.json") is None
    assert len(read_file(f"{memory}/dropped.jsonl").splitlines()) == 4


def test_a_table_is_staged_there_for_the_workers(memory, tmp_path):
    (tmp_path / "a.png").write_bytes(picture(1, kind="PNG"))
    rows = "\n".join(f"a.png,caption {i},PMC{i},{i}" for i in range(100))
    (tmp_path / "t.csv").write_text(f"file,text,article,year\n{rows}\n")
    options = {"table": str(tmp_path / "t.csv"), "images": str(tmp_path), "image": "file"}
    options |= {"caption": "text", "group": "article", "keep": ("year",), "workers": 1}
    options |= {"tokenizer_vocab": 0}
    build_table(TableOptions(out=str(tmp_path / "ds"), **options))
    dataset = build_table(TableOptions(out=memory, **options))
    assert files_in(memory) == files_in(tmp_path / "ds")
    assert dataset.metadata["year"].to_pylist() == list(range(100))


def test_shards_are_fetched_one_at_a_time_in_order(memory, tmp_path, monkeypatch):
    def example(number: int) -> Example:
        record = Record(image=b"x" * 999, width=1, height=1, caption=f"c{number}")
        return Example(record=record, split="train")

    for shard, numbers in enumerate(([0, 1], [], [2], [3, 4])):
        write_shard(tmp_path, shard, map(example, numbers))
    names = [f"records-{i:05d}.array_record" for i in range(4)]
    remote.upload(tmp_path, names, memory)
    fetched, get_file = [], MemoryFileSystem.get_file

    def noted(self, path, *args, **options):
        fetched.append(path[-14])
        return get_file(self, path, *args, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", noted)
    shards = Shards([f"{memory}/{name}" for name in names], [2, 0, 1, 2])
    captions = [Record.unpack(shards[position]).caption for position in np.arange(5)]
    assert captions == [f"c{i}" for i in range(5)] and fetched == ["0", "2", "3"]
    again = pickle.loads(pickle.dumps(shards))
    assert Record.unpack(again[1]).caption == "c1"


def test_a_url_is_not_read_and_it_is_said_what_to_do():
    for opened in (Dataset, Subset, open_dataset):
        with pytest.raises(ValueError, match="`mkdir -p FOLDER && gcloud storage rsync gs://b/ds "):
            opened("gs://b/ds")
    with pytest.raises(ValueError, match="aws s3 sync s3://b/ds FOLDER"):
        Dataset("s3://b/ds")


# --- Beam -----------------------------------------------------------------------------------------


def test_a_worker_with_another_pillow_or_another_disk_refuses(tmp_path):
    pytest.importorskip("apache_beam")
    here = write._versions()
    with pytest.raises(RuntimeError, match="ds is not on this worker. --out must be a URL"):
        write._write_and_count(str(tmp_path / "ds"), items_of, here, 0, 0)
    (tmp_path / "build.json").write_text("{}")
    with pytest.raises(RuntimeError, match=r"started from .*'pillow': '1.0'"):
        write._write_and_count(str(tmp_path), items_of, here | {"pillow": "1.0"}, 0, 0)
    assert not list(tmp_path.glob("records-*"))
    write._write_and_count(str(tmp_path), items_of, here, 0, 0)
    assert (tmp_path / "records-00000.json").exists()


@pytest.mark.parametrize(
    "module, options",
    [("pmc.__main__", (PmcOptions, ContextOptions)), ("corpora", (CorpusOptions,))],
)
def test_documented_commands_have_flags_that_exist(module, options):
    pytest.importorskip("apache_beam")
    text = importlib.import_module(f"data_pipelines.{module}").__doc__.replace("\\\n", " ")
    commands = [line for line in text.splitlines() if line.startswith("    ") and " --" in line]
    ours = {field for cls in options for field in cls.__dataclass_fields__}
    assert any("--runner=DataflowRunner" in command for command in commands)
    for command in commands:
        words = shlex.split(command, comments=False)
        flags = [word for word in words if word.startswith("--")]
        beam = take_beam_options(flags)  # what is left is not Beam's
        assert {flag[2:].partition("=")[0] for flag in flags} <= ours, command
        assert bool(beam) == ("--runner=" in command)


@pytest.mark.parametrize(
    "flag", ["--worker_machine_type=n2-standard-8", "--no_use_public_ips", "--experiment=x"]
)
def test_other_names_of_beams_options_are_known(flag):
    pytest.importorskip("apache_beam")
    argv = ["x", "--input=a", "--runner=DataflowRunner", flag]
    assert take_beam_options(argv) == ["--runner=DataflowRunner", flag]
    assert argv == ["x", "--input=a"]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("module", ["data_pipelines.corpora", "data_pipelines.pmc"])
def test_a_command_names_its_functions_as_beams_workers_import_them(module, monkeypatch):
    """Not as __main__'s, which on a worker is Beam's."""
    asked = []
    monkeypatch.setattr("data_pipelines.options.run", lambda *arguments: asked.extend(arguments))
    monkeypatch.setattr("sys.argv", ["x"])
    runpy.run_module(module, run_name="__main__")
    build, *options = asked
    assert {build.func.__module__, *(cls.__module__ for cls in options)}.isdisjoint({"__main__"})
