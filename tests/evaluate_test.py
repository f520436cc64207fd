"""The command line of evaluation: help, mistakes, and going on after Ctrl-C."""

import json
import signal

import pytest

from tests.command import help_of, run_command, start_command
from tests.refusals import assert_refused
from tests.runs import make_run


def test_help_answers_without_loading_jax():
    shown = help_of("evaluate")
    for flag in ("--workdir", "--protocol", "--scales", "--split", "--batch_size", "--maps", "--class_numbers"):
        assert flag in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "say what to evaluate: --workdir=runs/quickstart"),
        (("runs/vgg16",), "'runs/vgg16' is not a flag"),
        (("--worckdir=x",), "Unknown command line flag 'worckdir'. Did you mean: workdir"),
        (
            ("--workdir=x", "--protocol=sparse"),
            "value should be one of <center_crop|ten_crop|dense|multi_crop|square_crop|dense+multi_crop>",
        ),
        (("--workdir=/nowhere",), "error: /nowhere: there is no such directory or file; give a training run's workdir"),
    ],
)
def test_a_mistake_gets_a_sentence_and_a_status(arguments, sentence):
    assert_refused(run_command("evaluate", *arguments), sentence)


@pytest.mark.slow
def test_errors_name_the_flags_of_the_command(net_config, tmp_path):
    run = make_run(tmp_path / "run", net_config)
    status, _, err = run_command("evaluate", f"--workdir={run}", "--data_root=/nowhere")
    assert status == 2
    assert err.endswith("'/nowhere'; give one, laid out <split>/<class>/<image>, with --data_root=DIR.\n")
    net_config.data.name, net_config.data.root = "builtin", ""
    status, _, err = run_command(
        "evaluate", f"--workdir={make_run(tmp_path / 'other', net_config)}", "--data_name=folder"
    )
    assert status == 2
    assert err.endswith("no folder of images ''; give one, laid out <split>/<class>/<image>, with --data_root=DIR.\n")
    status, _, err = run_command("evaluate", f"--workdir={run}", f"--json={tmp_path}")
    assert (status, err) == (2, f"error: --json={tmp_path} is a directory; name a file in it.\n")
    status, _, err = run_command("evaluate", f"--workdir={run}", "--data_name=imagenet2021")
    assert status == 2
    assert err.startswith("error: --data_name is 'imagenet2021', which is neither")


@pytest.mark.slow
def test_ctrl_c_keeps_results_and_the_same_command_continues(net_config, tmp_path):
    run = make_run(tmp_path / "run", net_config)
    scales = ",".join(map(str, range(64, 72)))
    command = ("evaluate", f"--workdir={run}", "--protocol=multi_crop", f"--scales={scales}")
    process = start_command(*command)
    for line in process.stdout:
        if line.startswith("pass 2 of 8, "):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert err == "stopped; nothing that was saved is lost, the same command continues.\n"
    assert list(run.glob("evaluation/7/*/multi_crop-Q64.npz"))
    assert not list(run.glob("evaluation/7/*/multi_crop-Q71.npz"))

    status, out, err = run_command(*command)
    assert (status, err) == (0, "")
    assert "from the cache: multi_crop-Q64" in out
    assert f"A run   multi_crop  {scales}" in out
    (results,) = run.glob("evaluation/7/*/results-multi_crop-*.json")
    summary = json.loads(results.read_text())
    assert [row["scales"] for row in summary["rows"]] == [*scales.split(","), scales]
    assert summary["data"]["images"] == 10
    assert summary["request"]["protocol"] == "multi_crop"
