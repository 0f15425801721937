"""What names a run, and what a study refuses."""

import copy
import dataclasses

import pytest

from data_pipelines.subset import SubsetOptions
from experiments import study
from experiments.study import Sweep, load_sweep, make_run, short
from jaxclip.config import to_dict
from tests import tiny_config

DATA = SubsetOptions(dataset="there/corpus", size=40, seed=1)


def run_of(config=None, data=DATA, **axes):
    axes = {"source": "corpus", "samples_seen": 64, "model": "tiny"} | axes
    return make_run(config or tiny_config.get_config(), data, **axes)


def changed(**fields):
    config = tiny_config.get_config()
    for path, value in fields.items():
        part, name = path.split("__")
        setattr(getattr(config, part), name, value)
    return config


def test_an_id_is_readable_and_stays():
    run_id = run_of().run_id
    assert run_id.startswith("corpus-40-of-64-tiny-s0-") and run_id == run_of().run_id


def test_whatever_changes_the_result_changes_the_id():
    others = [
        run_of(changed(optimizer__peak_lr=5e-4)),
        run_of(changed(loss__label_smoothing=0.1)),
        run_of(data=dataclasses.replace(DATA, seed=2)),
        run_of(data=dataclasses.replace(DATA, where="caption_chars > 3")),
        run_of(samples_seen=80),
        run_of(lr="half"),
    ]
    assert len({run.run_id for run in [run_of(), *others]}) == 7


def test_the_content_of_a_list_counts_and_its_place_does_not(tmp_path):
    ids = []
    for place, content in (("a", "1"), ("b", "1"), ("b", "2")):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "list.txt").write_text(content)
        listed = dataclasses.replace(DATA, exclude=(str(tmp_path / place / "list.txt"),))
        ids.append((run_of(data=listed).run_id, run_of(data=listed).subset_path(tmp_path)))
    assert ids[0] == ids[1] and ids[1][0] != ids[2][0] and ids[1][1] != ids[2][1]


def test_a_field_at_its_default_is_not_in_the_id(monkeypatch):
    before = run_of().run_id
    later = study.defaults() | {"data.text.colour": "none"}
    monkeypatch.setattr(study, "defaults", lambda: later)
    for colour in ("none", "red"):  # of a version that has one more field

        def later_to_dict(config, colour=colour):
            values = to_dict(config)
            values["data"]["text"]["colour"] = colour
            return values

        monkeypatch.setattr(study, "to_dict", later_to_dict)
        assert (run_of().run_id == before) == (colour == "none")


def test_what_it_is_told_against_is_an_axis_and_not_in_the_id():
    run = run_of(variant="longer", base="long")
    assert run.axes["base"] == "long" and run_of().axes["base"] == ""
    assert run.run_id == run_of(variant="longer").run_id


def test_where_and_how_fast_it_runs_does_not():
    moved = dataclasses.replace(DATA, dataset="elsewhere/corpus")
    faster = changed(data__num_threads=7, log__every=3)
    assert run_of(faster, data=moved).run_id == run_of().run_id


def test_a_run_keeps_the_config_it_was_given():
    config = tiny_config.get_config()
    run = run_of(config)
    before = run.config_hash
    config.optimizer.peak_lr = 1.0
    assert copy.deepcopy(run).config_hash == before and run.config.optimizer.peak_lr != 1.0
    assert run.config.duration.amount == 64 and config.duration.unit == "steps"


def test_the_same_subset_has_one_place(tmp_path):
    other_model = changed(optimizer__peak_lr=5e-4)
    assert run_of().subset_path(tmp_path) == run_of(other_model).subset_path(tmp_path)
    larger = dataclasses.replace(DATA, size=50)
    assert run_of().subset_path(tmp_path) != run_of(data=larger).subset_path(tmp_path)


def test_what_a_study_refuses():
    parts = {"name": "s", "question": "?", "evaluations": {}}
    with pytest.raises(ValueError, match="twice: the same config"):
        Sweep(runs=[run_of(), run_of()], **parts).validate()
    with pytest.raises(ValueError, match="is empty"):
        Sweep(runs=[], **parts).validate()
    with pytest.raises(ValueError, match="'another' must be a source: corpus"):
        Sweep(runs=[run_of()], reference="another", **parts).validate()
    with pytest.raises(ValueError, match="base .'long'. of 'longer' must be another variant of s"):
        Sweep(runs=[run_of(), run_of(variant="longer", base="long")], **parts).validate()
    other = run_of(data=dataclasses.replace(DATA, dataset="v2/corpus"), source="v2")
    with pytest.raises(ValueError, match="there/corpus and v2/corpus of s have one name"):
        Sweep(runs=[run_of(), other], **parts).validate()
    with pytest.raises(ValueError, match="optimizer.peak_lr"):
        Sweep(runs=[run_of(changed(optimizer__peak_lr=-1.0))], **parts).validate()


def test_a_file_that_is_no_study_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not there"):
        load_sweep(str(tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="must have get_sweep"):
        load_sweep(str(tmp_path / "empty.py"))
    (tmp_path / "plain.py").write_text("def get_sweep(): return None")
    with pytest.raises(ValueError, match="takes no argument"):
        load_sweep(str(tmp_path / "plain.py:DATA"))


@pytest.mark.parametrize(
    "number, text", [(0, "all"), (480, "480"), (1500, "1.5k"), (112_000_000, "112M")]
)
def test_short(number, text):
    assert short(number) == text
