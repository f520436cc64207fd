"""The command line: help, defaults, and a sentence for every mistake."""

import ast

import pytest

from tests.command import as_flags, help_of, run_main
from vgg_jax.commands import keys
from vgg_jax.commands.configuration import default_workdir
from vgg_jax.recipe import KEYS

QUICKSTART = "--config=configs/quickstart.py"
TWO = ("--coordinator_address=localhost:1", "--num_processes=2", "--process_id=0")


def test_help_answers_without_loading_jax():
    shown = help_of("train")
    assert "--workdir" in shown
    assert "configs/vgg19.py:S=384" in shown
    for key in KEYS:
        assert f"\n  config.{key}" in shown
    assert "config.plateau.patience = 4\n      Evaluations without improvement that make a plateau; the paper" in shown


def test_keys_are_read_from_the_source_as_the_recipe_has_them():
    assert list(keys.declared()) == list(KEYS)
    assert all(field.section for field in keys.declared().values())
    literals = {key: ast.literal_eval(field.default) for key, field in keys.declared().items() if field.default}
    assert literals == {key: KEYS[key].default for key in literals}
    assert set(KEYS) - set(literals) == {"compilation_cache", "data.dir"}


def test_a_configuration_is_printed_with_its_values(tmp_path):
    status, out, err = run_main(QUICKSTART, "--config.batch_size=9", "--print_config", f"--workdir={tmp_path / 'run'}")
    assert (status, err) == (0, "")
    assert "config.batch_size = 9\n      Images in a step" in out
    assert "config.data.name = 'builtin'\n" in out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_says_what_would_run_and_writes_nothing_into_the_workdir(tiny_config, tmp_path):
    status, out, err = run_main(QUICKSTART, *as_flags(tiny_config), f"--workdir={tmp_path / 'run'}", "--dry_run")
    assert (status, err) == (0, "")
    for promised in ("90 training and 31 validation images", "memory a device", "without --dry_run it takes 34 steps"):
        assert promised in out
    assert not (tmp_path / "run").exists()


def test_the_default_workdir_is_named_after_the_configuration():
    assert str(default_workdir("configs/vgg19.py")) == "runs/vgg19"
    assert str(default_workdir("configs/vgg19.py:S=384")) == "runs/vgg19-S=384"


@pytest.mark.parametrize(
    "form", [("--config=vgg19:S=384",), ("--config", "vgg19:S=384"), ("--config=./configs/vgg19.py:S=384",)]
)
def test_a_configuration_is_found_by_its_name_and_by_its_path(form, tmp_path):
    status, _, err = run_main(*form, f"--workdir={tmp_path}/run", "--config.batch_size=4")
    assert (status, err.count("\n")) == (2, 1)
    assert "this stage (S=384, learning rate 0.001) starts from a trained model" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "say what to train: --config=quickstart"),
        (("--confg=configs/quickstart.py",), "Unknown command line flag 'confg'. Did you mean: config"),
        (
            (QUICKSTART, "--num_epochs=3"),
            "--num_epochs is not a flag but a key of the configuration; write --config.num",
        ),
        ((QUICKSTART, "--learning_rate=3"), "write --config.optimizer.learning_rate."),
        (("configs/quickstart.py",), "'configs/quickstart.py' is not a flag"),
        (("--config=configs/quickstrat.py",), "--config=configs/quickstrat.py: there is no such file, and no config"),
        (
            ("--config", "quickstrat:S=1"),
            "name. Did you mean 'quickstart'? There are alexnet, finetune, googlenet, paper, quickstart, ",
        ),
        (
            (QUICKSTART, "--config.bach_size=3"),
            'error: the configuration has no key \'bach_size\'. Did you mean "batch_size" instead of "bach_size"?',
        ),
        (
            ("-config=quickstrat",),
            "--config=quickstrat: there is no such file, and no configuration of that name. Did you",
        ),
        (("--config=vgg16_today:S=384",), "configuration takes no argument; leave :S=384 out."),
        (
            (QUICKSTART, "--config.schedule=cosine"),
            "error: --config.schedule=cosine: schedule is a section of keys "
            "(name, warmup_epochs, warmup_error, drop_epochs, drop_factor); "
            "name one of them, as --config.schedule.name=cosine.",
        ),
        (("--config=configs/finetune.py:Q",), "error: 'Q' is no network. There are A, A-LRN"),
        ((QUICKSTART, "--config.batch_size 8"), "'--config.batch_size 8' is one word; write --config.batch_size=8"),
        ((QUICKSTART, "--config.batch_size=many"), "flag --config.batch_size=many: invalid literal for int()"),
        ((QUICKSTART, "--config.batch_size=33"), "config.batch_size is 33, which 2 devices do not divide; 32 or 34"),
        ((QUICKSTART, "--config.model.configuration=F"), "config.model.configuration is 'F'; it must be one of A,"),
        (
            (
                QUICKSTART,
                "--config.sharding=fc_model_parallel",
                "--config.model_parallel=2",
                "--config.model.fc_width=9",
            ),
            "config.model_parallel is 2, which does not divide config.model.fc_width, 9; 1 would do",
        ),
        ((QUICKSTART, "--process_id=1"), "go together; missing: --coordinator_address, --num_processes."),
        ((QUICKSTART, *TWO, "--coordinator_address=here"), "--coordinator_address=here has no port; write HOST:PORT"),
        ((QUICKSTART, *TWO, "--process_id=2"), "--process_id=2 is not below --num_processes=2"),
        ((QUICKSTART, "--distributed"), "--distributed alone works where JAX finds the processes by itself"),
        (("--config=configs/vgg19.py:S=7",), "write S=256, S=384 or S=jitter after the colon"),
        (("--config=configs/vgg19.py:S=384",), "give its workdir with --config.init_from=DIR"),
        ((QUICKSTART, "--workdir=/proc/1/run"), "--workdir=/proc/1/run cannot be written"),
        (
            ("--config=configs/vgg19.py", "--config.data.dir=/nowhere"),
            "vgg-jax prepare imagenet2012 --tars=DIR --data_dir=/nowhere",
        ),
    ],
)
def test_a_mistake_gets_a_sentence_and_a_status(arguments, sentence, tmp_path):
    if QUICKSTART in arguments or arguments == ("--config=configs/vgg19.py:S=384",):
        arguments = (f"--workdir={tmp_path}/run", *arguments)
    status, out, err = run_main(*arguments, devices=2)
    assert status == 2
    assert sentence in " ".join(err.split())
    assert "Traceback" not in err
    assert "VGG" not in out  # nothing was begun
    assert not (tmp_path / "run").exists()
