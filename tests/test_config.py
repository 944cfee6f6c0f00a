"""From the command line to Settings: what is composed, what is refused and in which words."""

import os
import subprocess
import sys
import typing
from dataclasses import FrozenInstanceError

import pytest
import yaml

from jaxrnn import config, initializers, planning, settings, usage
from jaxrnn.errors import ConfigurationError

GROUPS = [group for group in settings.GROUPS if group != "dataset"]
MEMBERS = [f"{group}={name}" for group in GROUPS for name in config.members(group) if f"{group}={name}" != "head=every"]

REFUSED = {
    "hiden_size=64": ["hiden_size", "'hidden_size'"],
    "optimizer.learning_rat=1": ["optimizer.learning_rat", "'optimizer.learning_rate'"],
    "optimizer.lr=1": ["optimizer.lr", "optimizer has: name, learning_rate, weight_decay"],
    "dataset.path=a.csv": ["'dataset.path'; dataset=files has it; dataset has: name, train_rows"],
    "optimizer.lr=0.1": ["did you mean 'optimizer.learning_rate'?", "optimizer has: name"],
    "lr=0.1": ["did you mean 'optimizer.learning_rate'?"],
    "bs=8": ["did you mean 'batch_size'?"],
    "optimizer.momentum=0.9": ["optimizer=rmsprop or sgd has it"],
    "input=one_hot input.size=3": ["input=embedding has it"],
    "hydra.sweep.dir=here": ["hydra.sweep.dir=here", "expected hydra.run.dir=DIR, or -m"],
    "++hydra.sweep.dir=here": ["expected hydra.run.dir=DIR, or -m"],
    "hydra.run={dir:here}": ["expected hydra.run.dir=DIR"],
    "hydra.run.dir=": ["hydra.run.dir=: expected a folder"],
    "hydra.run.dir=???": ["hydra.run.dir=???: expected a folder"],
    "hydra.run.dir=${oc.env:NOPE}/x": ["hydra.run.dir", "'NOPE'"],
    "hydra.sweep.subdir=x": ["hydra.sweep.subdir=x", "job n is in the folder n"],
    "+foo=1": ["'foo'"],
    "+optimizer.foo=1": ["optimizer.foo", "learning_rate"],
    "hidden_size.x=1": ["hidden_size.x"],
    "cells=gru": ["'cells'", "'cell'"],
    "cell=lstmm": ["cell 'lstmm'", "did you mean 'lstm'", "gru, lstm, vanilla"],
    "cell=": ["known: gru, lstm, vanilla"],
    "cell=null": ["name of one of its members"],
    "cell=[gru,lstm]": ["cell=", "gru, lstm, vanilla"],
    "cell={a:1}": ["cell.a"],
    "cell.name=gru": ["cell=gru"],
    "+cell=gru": ["+cell"],
    "~cell": ["cell"],
    "~hidden_size": ["hidden_size"],
    "cell=gru,lstm": ["cell=gru,lstm", "-m"],
    "hidden_size": ["'hidden_size'", "key=value"],
    "hidden_size=[1": ["hidden_size=[1", "key=value"],
    "hidden_size=${foo}": ["hidden_size", "foo"],
    "batch_size=0": ["batch_size=0", "whole number of at least 1"],
    "batch_size=-4": ["batch_size=-4", "whole number of at least 1"],
    "epochs=0": ["epochs=0", "whole number of at least 1"],
    "epochs=1e3": ["epochs=1000.0", "whole number"],
    "hidden_size=0": ["hidden_size=0"],
    "hidden_size=long": ["hidden_size='long'", "whole number"],
    "hidden_size=nan": ["hidden_size=nan"],
    "optimizer.learning_rate=-1": ["optimizer.learning_rate=-1", "above 0"],
    "optimizer.learning_rate=nan": ["optimizer.learning_rate=nan", "finite"],
    "optimizer.learning_rate=inf": ["optimizer.learning_rate=inf", "finite"],
    "optimizer.weight_decay=-1": ["optimizer.weight_decay=-1", "at least 0"],
    "optimizer.b1=1": ["optimizer.b1=1", "below 1"],
    "dropout_rate=1.5": ["dropout_rate=1.5", "below 1"],
    "dropout_rate=1": ["dropout_rate=1", "below 1"],
    "clip_value=true": ["clip_value=True", "null"],
    "bidirectional=yes": ["bidirectional='yes'", "true or false"],
    "precision=float46": ["precision='float46'", "float32"],
    "seed=-1": ["seed=-1", "between 0"],
    "schedule=cosine schedule.final_fraction=2": ["schedule.final_fraction=2"],
    "device.count=0": ["device.count=0"],
    "initializer.recurrent=orthogonl": ["initializer.recurrent='orthogonl'", "did you mean 'orthogonal'?"],
    "resume=mus": ["resume='mus'", "did you mean 'must'?"],
    "initializer.recurent=notes": ["initializer.recurent", "'initializer.recurrent'"],
    "logger=[console,foo]": ["logger 'foo'", "console, csv, jsonl"],
    "logger.console.x=1": ["logger.console.x"],
    "experiment=nosuch": ["experiment 'nosuch'", "notes"],
    "head=every": ["head=every", "one label per text"],
    "hydra/launcher=nosuch": ["hydra/launcher 'nosuch'", "basic"],
    "hydra.job.chdir=foo": ["hydra.job.chdir", "bool"],
    "hydra.job.chdir=true": ["hydra.job.chdir=True", "no effect here"],
    "hydra.output_subdir=x": ["hydra.output_subdir=x", "no effect here"],
    "hydra.mode=MULTIRUN": ["-m asks for a sweep"],
    "hydra.verbose=true": ["no effect here"],
    "+hydra.sweeper.params.seed=1": ["hydra/sweeper", "add -m"],
    "resume=perhaps": ["resume='perhaps'", "auto, must, never"],
    "resume_allow=seed": ["resume_allow='seed'", "list"],
    "checkpoint.every_steps=0": ["checkpoint.every_steps=0", "at least 1"],
    "flow.every_steps=often": ["flow.every_steps='often'", "auto, or a whole number of at least 0, or null"],
    "checkpoint.evry_steps=3": ["checkpoint.evry_steps", "'checkpoint.every_steps'"],
    "checkpoint=3": ["checkpoint"],
    "on_nonfinite=ignore": ["on_nonfinite='ignore'", "one of stop, skip, rollback"],
}


@pytest.mark.parametrize("line", REFUSED)
def test_refusals_name_the_key_what_was_given_and_what_is_allowed(line):
    with pytest.raises(ConfigurationError) as refused:
        config.compose(line.split())
    message = str(refused.value)
    assert all(part in message for part in REFUSED[line]), message
    assert message.count("\n") < 2


@pytest.mark.parametrize("path", ["~/a.tsv", "a b (1).tsv", "a=b.tsv", "a,b.tsv"])
def test_a_path_that_hydra_would_take_apart_is_refused_as_it_has_to_be_written(path):
    with pytest.raises(ConfigurationError) as refused:
        config.compose(["dataset=files", f"dataset.path={path}"])
    line = f"dataset.path='{path}'"
    assert f'"{line}", with both pairs of quotes' in str(refused.value)
    found = config.compose(["dataset=files", line, f"hydra.run.dir='{path}'"])
    assert found.dataset.path == found.directory == path.replace("~", os.path.expanduser("~"))


def test_the_defaults_are_those_of_conf():
    found = config.compose([])
    assert (found.hidden_size, found.cell.name, found.optimizer.learning_rate) == (64, "vanilla", 0.003)
    assert (found.logger, found.experiment, found.directory) == (("console", "jsonl"), "default", None)
    assert found.overrides == ()


def test_values_are_converted_to_the_type_of_their_key():
    found = config.compose(["optimizer.learning_rate=1", "bidirectional=true", "clip_global_norm=null", "logger=csv"])
    assert isinstance(found.optimizer.learning_rate, float)
    assert found.bidirectional is True
    assert found.clip_global_norm is None
    assert found.logger == ("csv",)
    assert config.compose(["logger=[]"]).logger == ()


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        config.compose([]).hidden_size = 3


@pytest.mark.parametrize("line", MEMBERS)
def test_every_member_composes_under_its_own_name(line):
    group, name = line.split("=")
    assert getattr(config.compose([line]), group).name == name


@pytest.mark.parametrize("name", config.members("experiment"))
def test_every_experiment_composes_and_its_header_carries_its_command(name):
    assert config.compose([f"experiment={name}"]).experiment == name
    lines = (config.folder() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    header = "\n".join(line for line in lines[1:20] if line.startswith("#"))
    assert f"python -m jaxrnn.train experiment={name}" in header
    assert "minutes" in header


def test_the_command_line_outweighs_an_experiment():
    found = config.compose(["experiment=notes", "cell=gru", "optimizer.learning_rate=0.5"])
    assert (found.cell.name, found.optimizer.name, found.optimizer.learning_rate) == ("gru", "sgd", 0.5)


def test_a_folder_of_ones_own_members(tmp_path):
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "slow.yaml").write_text("name: adam\nlearning_rate: 1.0e-5\nweight_decay: 0.0\n")
    found = config.compose(["optimizer=slow"], config_dir=str(tmp_path))
    assert (found.optimizer.name, found.optimizer.learning_rate, dict(found.optimizer.settings)) == (
        "adam", 1e-5, {"learning_rate": 1e-5, "weight_decay": 0.0},
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match="slow"):
        config.compose(["optimizer=slow"])
    with pytest.raises(ConfigurationError, match="no such folder"):
        config.compose([], config_dir=str(tmp_path / "nosuch"))


def test_a_sweep_is_every_combination_the_last_key_turning_fastest():
    plan = planning.planned(["cell=vanilla,gru", "seed=range(0,2)", "epochs=3", "hydra.sweep.dir=here"])
    directory, jobs = plan.directory, plan.jobs
    assert directory == "here"
    assert [(job.cell.name, job.seed, job.epochs) for job in jobs] == [
        ("vanilla", 0, 3), ("vanilla", 1, 3), ("gru", 0, 3), ("gru", 1, 3),
    ]  # fmt: skip
    assert jobs[2].overrides == ("cell=gru", "seed=0", "epochs=3")


@pytest.mark.parametrize("character", ["\t", "\n", "\x1b", "\u202e", "\udcff"])
def test_a_word_that_no_report_would_show_is_refused(character, tmp_path):
    word = f'dataset.path="a{character}b.csv"'
    for compose in (config.compose, planning.planned):
        with pytest.raises(ConfigurationError, match="expected printable characters") as refused:
            compose(["dataset=files", word])
        assert character not in str(refused.value)
        (place := tmp_path / "x\ty").mkdir(exist_ok=True)
        with pytest.raises(ConfigurationError, match="expected printable characters"):
            compose([], config_dir=str(place))
    path = "dataset.path='\u0645\u06cc\u200c\u0631.csv'"
    assert config.compose(["dataset=files", path]).overrides[1] == path


def test_a_launcher_is_given_what_it_can_use():
    with pytest.raises(ConfigurationError, match="'nope' not found"):
        planning.planned(["hydra/launcher=population", "hydra.launcher.members=${nope}", "seed=0,1"])
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    with pytest.raises(ConfigurationError, match="n_jobs=0: expected at least 1"):
        planning.planned(["hydra/launcher=joblib", "hydra.launcher.n_jobs=0", "seed=0,1"])


@pytest.mark.parametrize("line", ["seed=0,1 seed=2,3", "seed=0,1 seed=5", "cell=gru +cell=lstm,vanilla"])
@pytest.mark.parametrize("sweeper", ["basic", "optuna"])
def test_a_swept_key_is_given_once(line, sweeper):
    with pytest.raises(ConfigurationError, match="is given twice"):
        planning.planned([f"hydra/sweeper={sweeper}", *line.split()])


@pytest.mark.parametrize("line", ["seed=shuffle(range(9))", "seed=shuffle(0,1,2,3,4,5,6,7,8)"])
def test_a_shuffled_sweep_is_the_same_again(line):
    assert [job.seed for job in planning.planned([line]).jobs] == list(range(9))


def test_jobs_are_counted_before_they_are_made():
    with pytest.raises(ConfigurationError, match="the sweep has 300,006 jobs"):
        planning.planned(["seed=range(50001)", "cell=vanilla,gru,lstm", "dropout_rate=range(0,0.5,0.25)"])
    assert planning.planned(["hydra/sweeper=optuna", "seed=range(1000000)"]) is None


def test_a_sweep_names_all_its_bad_jobs_before_any_starts():
    with pytest.raises(ConfigurationError) as refused:
        planning.planned(["cell=gru,lstm", "optimizer.learning_rate=0.1,oops"])
    lines = str(refused.value).splitlines()
    assert [line.split()[:3] for line in lines] == [["job", "1", "(cell=gru"], ["job", "3", "(cell=lstm"]]


def test_the_record_for_people_is_the_whole_tree():
    found = config.compose(["cell=lstm", "optimizer=sgd"])
    tree = yaml.safe_load(config.to_yaml(found))
    assert tree["optimizer"] == {
        "name": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, "momentum": 0.0, "nesterov": False,
    }  # fmt: skip
    assert set(tree) == {*settings.KEYS, *settings.GROUPS, "logger", "initializer", "flow", "checkpoint", "experiment"}


def test_initializers_are_the_networks_own():
    assert set(settings.INITIALIZERS) == {"default", *initializers.MEMBERS}


def test_help_tells_every_key_and_every_member():
    page = usage.text()
    for group in (*settings.GROUPS, "logger", "experiment"):
        assert all(name in page for name in (f"{group}=", *config.members(group)))
    assert all(f"  {key}=" in page for key in settings.KEYS)
    assert max(map(len, page.splitlines())) <= 120


@pytest.mark.parametrize("line", ["--help", "hiden_size=64"])
def test_help_and_refusals_do_without_jax(line):
    code = "import sys; from jaxrnn import command, train; command.exit_code('train', train.main, sys.argv[1:]); "
    code += "print(sorted({'jax', 'matplotlib', 'optax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, line], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_field_is_a_key_or_a_group():
    own = {"experiment", "overrides", "directory", "config_dir"}
    hints = typing.get_type_hints(settings.Settings)
    assert set(hints) - own == {*settings.KEYS, *settings.GROUPS, "logger", "initializer", "flow", "checkpoint"}


LISTS = [
    ["seed=range(3)", "optimizer.learning_rate=1e-3,0.01,1", "cell=vanilla,gru"],
    ["dataset=sst2", "dataset.train=sentences,phrases", "hidden_size=32,64"],  # with what is tuned for it
    ["clip_global_norm=null,1,2.5", "schedule.warmup_steps=0,5", "bidirectional=true,false"],
    ["experiment=notes", "seed=1,2", "epochs=7", "optimizer.learning_rate=0.1,0.2"],
    ["epochs=1", "seed=1,2", "epochs=2"],  # the last word counts
    ["initializer={recurrent:notes,input:zeros,readout:zeros,embedding:zeros}", "seed=3,4"],
    ["seed=1,2", "epochs=${seed}"],
    ["logger=[jsonl],[csv]", "patience=2,3"],
]


def test_a_yaml_of_ones_own_chooses_the_launcher(tmp_path):
    (tmp_path / "experiment").mkdir()
    lines = "# @package _global_\ndefaults:\n  - override /hydra/launcher: population\n"
    (tmp_path / "experiment" / "wide.yaml").write_text(lines)
    plan = planning.planned(["experiment=wide", "seed=1,2"], config_dir=str(tmp_path))
    assert (plan.launcher, len(plan.jobs)) == ("population", 2)


@pytest.mark.parametrize("line", LISTS, ids=lambda line: line[0])
def test_a_job_of_a_sweep_is_what_its_own_command_line_composes(line):
    for job in planning.planned(line).jobs:
        assert job == config.compose(job.overrides)


def test_a_thousand_jobs_are_composed_once_for_each_choice(monkeypatch):
    lines, compose = [], config.composed

    def counted(loader, given):
        lines.append(given)
        return compose(loader, given)

    monkeypatch.setattr(config, "composed", counted)
    jobs = planning.planned(["cell=vanilla,gru", "optimizer.learning_rate=0.1,0.2", "seed=range(250)"]).jobs
    assert len({(job.cell.name, job.optimizer.learning_rate, job.seed) for job in jobs}) == 1000
    assert lines == [["cell=vanilla", *(rest := ["optimizer.learning_rate=0.1", "seed=0"])], ["cell=gru", *rest]]
    lines.clear()
    assert planning.planned(["hydra/launcher=population", "seed=1,2"]).launcher == "population"
    assert [job.overrides for job in planning.planned(["hydra/launcher=population"]).jobs] == [()]
    assert planning.planned(["hydra/sweeper=optuna", "dropout_rate=interval(0,1)"]) is None
    assert lines == [["hydra/launcher=population", "seed=1"], ["hydra/launcher=population"], ["hydra/sweeper=optuna"]]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("seeed=range(1000)", "seed"),
        ("seed=range(0)", "at least one value"),
        ("seed=range(3,1)", "at least one value"),
        ("seed=range(0,3,0)", "seed=range(0,3,0): "),
        ("dropout_rate=range(0,0.5,0)", "dropout_rate=range(0,0.5,0): "),
        ("seed=range(100000000)", "the sweep has 100,000,000 jobs, expected at most 100,000"),
        ("dropout_rate=range(0,inf)", "inf jobs"),
        ("seed=1,2,-3", "job 2"),
        ("seed=range(5", "cannot read"),
        ("dropout_rate=interval(0,1)", "hydra/sweeper=optuna"),
        ("hydra.sweep.dir=here,there", "one value"),
        ("hydra/launcher=basic,population", "one value"),
        ("hydra.run.dir=here", "hydra.run.dir=here: it is the folder of one run: a sweep has hydra.sweep.dir=DIR"),
        ("++hydra.sweep.dir=here,there", "one value"),
        ("hydra.sweep={dir:here}", "expected hydra.sweep.dir=DIR"),
        ("hydra.sweep.dir=''", "expected a folder"),
        ("hydra.sweep.dir=${nope}", "hydra.sweep.dir: Interpolation key 'nope' not found"),
        ("hydra.sweep.subdir=x", "job n is in the folder n"),
        ("hydra.sweeper.max_batch_size=2", "no effect here"),
        ("hydra.launcher.members=2", "hydra/launcher=population has it"),
        ("hydra.sweeper.n_trials=2", "hydra/sweeper=optuna has it"),
    ],
)
def test_a_sweep_over_nothing_or_an_unknown_key_is_refused(line, says):
    with pytest.raises(ConfigurationError) as refused:
        planning.planned([line])
    assert says in str(refused.value) and str(refused.value).count("\n") < 12


def test_a_folder_may_be_forced_as_any_word_of_hydras():
    assert planning.planned(["++hydra.sweep.dir=here", "seed=0,1"]).directory == "here"
    assert config.compose(["++hydra.run.dir=here"]).directory == "here"


@pytest.mark.parametrize("name", ["2026_11_26", "1e5", "true", "007"])
def test_a_folder_is_called_as_it_was_typed(name):
    assert config.compose([f"hydra.run.dir={name}"]).directory == name
    assert planning.planned([f"hydra.sweep.dir={name}", "seed=0,1"]).directory == name


def own(folder, lines):
    """A folder of the user's own whose experiment=mine says that about hydra."""
    (folder / "experiment").mkdir()
    text = "".join(f"  {line}\n" for line in lines)
    (folder / "experiment" / "mine.yaml").write_text(f"# @package _global_\nhydra:\n{text}")
    return str(folder)


def test_a_yaml_of_ones_own_may_name_the_folder(tmp_path):
    folder = own(tmp_path, ["run: {dir: 'of/${cell.name}'}", "sweep: {dir: swept}"])
    assert config.compose(["experiment=mine", "cell=gru"], config_dir=folder).directory == "of/gru"
    assert config.compose(["experiment=mine", "hydra.run.dir=here"], config_dir=folder).directory == "here"
    plan = planning.planned(["experiment=mine", "seed=0,1"], config_dir=folder)
    assert (plan.directory, {job.directory for job in plan.jobs}) == ("swept", {None})


def test_a_yaml_of_ones_own_may_hold_the_sweep(tmp_path):
    folder = own(tmp_path, ["sweeper: {params: {cell: 'gru,lstm', seed: 'range(2)', epochs: 3}}"])
    plan = planning.planned(["experiment=mine", "seed=5"], config_dir=folder)
    assert [job.overrides[1:] for job in plan.jobs] == [("seed=5", f"cell={c}", "epochs=3") for c in ("gru", "lstm")]
    words = planning.planned(['+hydra.sweeper.params.seed="1,2"', "+hydra.sweeper.params={epochs:3}"])
    assert [(job.seed, job.epochs) for job in words.jobs] == [(1, 3), (2, 3)]


def test_a_yaml_of_ones_own_says_nothing_that_is_not_done(tmp_path):
    folder = own(tmp_path, ["job: {chdir: true}"])
    with pytest.raises(ConfigurationError, match="no effect here"):
        config.compose(["experiment=mine"], config_dir=folder)
