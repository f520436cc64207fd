"""The launchers against a cloud played by tests/fake_cloud.py: their calls and output; they leave nothing behind."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cloud import CLOUD, CONFIG, SLICE, SLURM, VM, WELL, git
from tests.conftest import REPOSITORY

GOLDEN = Path(__file__).parent / "golden"
RUN = ["--", CONFIG]
RENEW = "RENEW_GOLDEN=1 pytest tests/launch_test.py -k golden"
STOCK_OUT = {"status": 1, "err": "ERROR: code: ZONE_RESOURCE_POOL_EXHAUSTED\nmessage: does not have enough resources\n"}
QUOTA = {"status": 1, "err": "ERROR: (gcloud) Quota 'TPUS_PER_PROJECT' exceeded. Limit: 8.0 in region us-west4.\n"}


def ended(*statuses: int, log: str = "step 1\n") -> dict:
    """What is in the bucket when training has ended on all machines."""
    return {"files": {f"{i}.status": f"{status}\n" for i, status in enumerate(statuses)} | {"0.log": log}}


def last(out: str) -> str:
    return out.rstrip().splitlines()[-1]


# --- dry runs ---


@pytest.mark.parametrize(
    ("name", "launcher", "environment"),
    [
        ("tpu_vm", "tpu_vm.sh", CLOUD),
        ("tpu_vm_spot", "tpu_vm.sh", CLOUD | {"MODEL": "SPOT", "DATA": "datasets", "IAP": "1", "NAME": "mine"}),
        ("tpu_vm_flex", "tpu_vm.sh", CLOUD | {"MODEL": "FLEX_START", "MAX_HOURS": "100"}),
        ("tpu_slice", "tpu_slice.sh", CLOUD | {"TOPOLOGY": "16x16"}),
        ("slurm", *SLURM),
        ("gpus", "gpus.sh", {"GPUS": "0,1"}),
    ],
)
def test_a_dry_run_prints_the_golden_commands_and_runs_none(name, launcher, environment, cloud):
    status, out = cloud.run(launcher, environment, "--dry-run", "--", f"{CONFIG}", "--config.seed=it's")
    assert status == 0, out
    assert cloud.calls() == []
    assert not (cloud.clone / "runs").exists()
    out = out.replace(git(cloud.clone, "rev-parse", "HEAD"), "COMMIT")
    golden = GOLDEN / f"launch_{name}.txt"
    if os.environ.get("RENEW_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(out)
    assert out == golden.read_text(), f"if this is meant: {RENEW}, and read what has changed"


def test_a_machine_starts_with_the_flags_as_they_were_meant(cloud):
    """The startup script, as it is written and as the dry run shows it, has training's flags as words of a shell."""
    awkward = '--config.seed=it\'s a "$HOME" `x`'
    cloud.plays({"storage rsync": [ended(0)]})
    status, out = cloud.run(*VM, "--", CONFIG, awkward)
    assert status == 0, out
    script = (cloud.clone / "runs/launches/vgg16/time-1/startup.sh").read_text()
    head, _, rest = script.partition("set -- all\n")
    assert rest == (REPOSITORY / "launch/node.sh").read_text()
    flags = subprocess.run(
        ["bash", "-c", head + 'eval "set -- $FLAGS"; printf "%s\\n" "$HOME" "$NAME" "$LAUNCH" "$@"'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert flags == f"/root\nvgg16\ntime-1\n{CONFIG}\n{awkward}\n"
    shown = next(line for line in out.splitlines() if "startup.sh" in line)[2:].rpartition(" >")[0]
    assert subprocess.run(["bash", "-c", shown], cwd=REPOSITORY, capture_output=True, text=True).stdout == script


@pytest.mark.parametrize("launcher", ["tpu_vm.sh", "tpu_slice.sh", "slurm.sh", "gpus.sh"])
def test_help_names_every_value_that_is_asked_for(launcher, cloud):
    status, out = cloud.run(launcher, {}, "--help")
    assert status == 0
    assert f"launch/{launcher} [--dry-run] -- --config=" in out
    text = (REPOSITORY / "launch" / launcher).read_text()
    for name in re.findall(r"'([A-Z_]+) [a-z]", "".join(re.findall(r"^need .*(?:\\\n.*)*", text, re.MULTILINE))):
        assert re.search(rf"^ *([A-Z_]+, )*{name}\b", out, re.MULTILINE), name


# --- what is refused before anything is rented ---


@pytest.mark.parametrize(
    ("launcher", "environment", "flags", "sentence"),
    [
        ("tpu_vm.sh", {}, RUN, "PROJECT and ZONE and BUCKET must be given: PROJECT is the project of Google Cloud;"),
        (
            "tpu_vm.sh",
            CLOUD,
            ["--", "--config=configs/vgg61.py"],
            "--config=configs/vgg61.py: there is no such file in ",
        ),
        ("tpu_vm.sh", CLOUD, ["--", CONFIG, "--workdir=x"], "--workdir=x: the launcher says where the run is written"),
        ("tpu_vm.sh", CLOUD, ["--dryrun"], "'--dryrun' is not a flag of launch/tpu_vm.sh"),
        ("tpu_vm.sh", CLOUD, ["--"], "say what to train: launch/tpu_vm.sh -- --config=configs/vgg16.py"),
        ("tpu_vm.sh", CLOUD | {"NAME": "My run"}, RUN, "NAME=My run cannot name a machine"),
        ("tpu_vm.sh", CLOUD | {"MAX_HOURS": "2d"}, RUN, "MAX_HOURS=2d is not a whole number"),
        (
            "tpu_vm.sh",
            CLOUD | {"MAX_HOURS": "08"},
            RUN,
            "MAX_HOURS=08 is not a whole number from 1 up to 999999, written without",
        ),
        ("tpu_vm.sh", CLOUD | {"TRIES": "0"}, RUN, "TRIES=0 is not a whole number from 1 up"),
        ("tpu_vm.sh", CLOUD | {"MODEL": "CHEAP"}, RUN, "MODEL=CHEAP is not a provisioning model: STANDARD, SPOT"),
        ("tpu_vm.sh", CLOUD | {"BUCKET": "gs://b/x"}, RUN, "BUCKET=gs://b/x is not a bucket: write gs://name"),
        ("tpu_vm.sh", CLOUD | {"DATA": "gs://b/x"}, RUN, "DATA=gs://b/x: name the directory inside gs://my-bucket"),
        ("tpu_slice.sh", CLOUD | {"TOPOLOGY": "4"}, RUN, "TOPOLOGY=4 is no topology; write 4x8"),
        ("tpu_slice.sh", CLOUD | {"TOPOLOGY": "1x3"}, RUN, "TOPOLOGY=1x3 has 3 chips, which machines of 4"),
        ("tpu_slice.sh", CLOUD | {"TOPOLOGY": "2x2"}, RUN, "one machine of ct6e-standard-4t; use launch/tpu_vm.sh"),
        (
            "tpu_slice.sh",
            CLOUD | {"TOPOLOGY": "16x16", "MACHINE_TYPE": "ct5lp-hightpu-4t"},
            RUN,
            "is v5e, of which managed instance groups form no slices; use launch/sky.yaml",
        ),
        *(
            (
                *launcher,
                ["--", CONFIG, "--config.seed=1\nx: 2"],
                "the flag --config.seed is $'--config.seed=1\\nx: 2', with a line's end",
            )
            for launcher in (VM, SLICE, SLURM, ("gpus.sh", {}))
        ),
        *(
            (launcher, values | {"DATA": f"a{end}b"}, RUN, "DATA is $'a")
            for launcher, values in (VM, SLICE, SLURM, ("gpus.sh", {}))
            for end in ("\n", "\r", "\x1b")
        ),
        *((*VM[:1], CLOUD | {"DATA": f"a{end}b"}, RUN, "with a line's end") for end in "\x85\u2028\u2029"),
        *(
            (
                launcher,
                values | {"MAX_HOURS": str(10**20)},
                RUN,
                "MAX_HOURS=100000000000000000000 is not a whole number from 1 up to",
            )
            for launcher, values in (VM, SLICE)
        ),
        ("tpu_vm.sh", CLOUD | {"MAX_HOURS": "2881"}, RUN, "MAX_HOURS=2881 is more than 2880"),
        ("tpu_vm.sh", CLOUD | {"BOOT_DISK_GB": str(10**20)}, RUN, "BOOT_DISK_GB=100000000000000000000 is not a whole"),
        ("tpu_slice.sh", CLOUD | {"TOPOLOGY": f"{10**20}x4"}, RUN, f"TOPOLOGY={10**20}x4 is no topology"),
        ("tpu_slice.sh", CLOUD | {"TOPOLOGY": "08x4"}, RUN, "TOPOLOGY=08x4 is no topology"),
        ("tpu_slice.sh", CLOUD | {"TOPOLOGY": "4x4", "MACHINE_TYPE": "ct6e-standard-0t"}, RUN, "is no TPU machine"),
        ("slurm.sh", SLURM[1] | {"GPUS": str(10**20)}, RUN, f"GPUS={10**20} is not a whole number from 1 up to"),
        ("slurm.sh", SLURM[1] | {"TIME": "::"}, RUN, "TIME=:: is no time that SLURM reads"),
        ("slurm.sh", SLURM[1] | {"NODES": "0"}, RUN, "NODES=0 is not a whole number from 1 up"),
        ("slurm.sh", SLURM[1] | {"TIME": "soon"}, RUN, "TIME=soon is no time that SLURM reads"),
        ("slurm.sh", SLURM[1] | {"SHARED": "here"}, RUN, "SHARED=here: give the whole path"),
    ],
)
def test_a_mistake_gets_a_sentence_and_nothing_is_made(launcher, environment, flags, sentence, cloud):
    status, out = cloud.run(launcher, environment, *flags)
    assert status == 2
    assert sentence in out
    assert len(out.splitlines()) == 1
    assert cloud.calls("create|apply|sbatch|cp") == []


def test_a_tree_that_differs_from_the_commit_is_refused(cloud):
    stray = cloud.clone / "configs" / "mine.py"
    stray.write_text("")
    try:
        status, out = cloud.run(*VM)
    finally:
        stray.unlink()
    assert (status, cloud.calls()) == (2, [])
    assert out == (
        "error: files differ from the commit, configs/mine.py among them: commit or remove them, so that what is "
        "launched is a commit.\n"
    )


def test_a_bucket_in_which_checkpoints_could_be_published_by_halves_is_refused(cloud):
    cloud.plays({"buckets describe": [{"out": "\n"}]})
    status, out = cloud.run(*VM)
    assert status == 2
    assert "gs://my-bucket has no hierarchical namespace" in last(out)
    assert "--enable-hierarchical-namespace" in last(out)
    cloud.plays({"buckets describe": [{"status": 1, "err": "ERROR: gs://my-bucket not found: 404.\n"}]})
    assert "gs://my-bucket cannot be read: ERROR: gs://my-bucket not found: 404." in cloud.run(*VM)[1]
    assert cloud.calls("create|ssh") == []


def test_a_program_that_is_missing_is_named(cloud):
    (cloud.directory / "bin" / "sbatch").unlink()
    status, out = cloud.run(*SLURM)
    assert (status, out) == (
        2,
        "error: the program 'sbatch' is not here; this is no machine from which SLURM takes jobs.\n",
    )


# --- the cloud's moods ---


@pytest.mark.parametrize(("launcher", "workers"), [(VM, 1), (SLICE, 2)])
def test_a_run_that_finishes(launcher, workers, cloud):
    cloud.plays({"storage rsync": [{}, ended(*[0] * workers, log="step 1\nstep 2\n")]})
    status, out = cloud.run(*launcher)
    assert status == 0, out
    assert last(out).startswith(
        "finished: the run is in gs://my-bucket/runs/vgg16, logs in runs/launches/vgg16/time-1;"
    )
    assert cloud.left() == set()
    (made,) = cloud.calls("(instances|templates) create")
    assert "--metadata-from-file=startup-script=runs/launches/vgg16/time-1/startup.sh" in made
    script = (cloud.clone / "runs/launches/vgg16/time-1/startup.sh").read_text()
    assert ("'FLAGS=--distributed --join_timeout=7200 --config" in script) == (workers > 1)
    # What is launched is the commit, and it is there before a machine is.
    calls = cloud.calls()
    uploaded = next(i for i, call in enumerate(calls) if "storage cp" in call)
    assert uploaded < next(i for i, call in enumerate(calls) if " create " in call)


def test_logs_are_shown_as_they_grow_and_kept(cloud):
    grown = {"files": {"vgg-jax-vgg16.log": "one\ntwo\n"}}
    done = {"files": {"vgg-jax-vgg16.log": "one\ntwo\nthree\n", "vgg-jax-vgg16.status": "0\n"}}
    cloud.plays({"storage rsync": [grown, grown, done]})
    _, out = cloud.run(*VM)
    assert [line for line in out.splitlines() if line in ("one", "two", "three")] == ["one", "two", "three"]
    assert (cloud.clone / "runs/launches/vgg16/time-1/vgg-jax-vgg16.log").read_text() == "one\ntwo\nthree\n"


def test_a_log_may_end_in_the_middle_of_a_line(cloud):
    grown = {"files": {"vgg-jax-vgg16.log": "one\ntw"}}
    cloud.plays({"storage rsync": [*[grown] * 5, ended(0, log=""), ended(0)]})
    status, out = cloud.run(*VM)
    assert (status, out.count("\none\n")) == (0, 1), out


each_that_rents = pytest.mark.parametrize(
    ("launcher", "made"),
    [
        (VM, "instances create"),
        (SLICE, "managed create"),
    ],
)


@each_that_rents
def test_no_capacity_is_asked_for_again_and_then_given_up(launcher, made, cloud):
    cloud.plays({made: [STOCK_OUT, STOCK_OUT, {}], "storage rsync": [ended(0, 0)]})
    status, out = cloud.run(*launcher)
    assert status == 0, out
    assert len(cloud.calls(made)) == 3
    assert "no capacity for the " in out
    assert cloud.left() == set()

    (cloud.directory / "calls.jsonl").unlink()
    cloud.plays({made: [STOCK_OUT]})
    status, out = cloud.run(launcher[0], launcher[1] | {"CAPACITY_TRIES": "4"})
    assert status == 1
    assert re.search(r"error: us-west4-a had no capacity for the .* in 4 tries; try another ZONE, or later\.", out)
    assert len(cloud.calls(made)) == 4
    assert cloud.left() == set()
    assert last(out) == "all that was made has been deleted."


@each_that_rents
def test_a_quota_is_not_tried_again(launcher, made, cloud):
    cloud.plays({made: [QUOTA]})
    status, out = cloud.run(*launcher)
    assert status == 1
    assert "error: the quota of project my-project does not allow the " in out
    assert "It was not tried again." in out
    assert len(cloud.calls(made)) == 1
    assert cloud.left() == set()


def test_a_complaint_that_comes_later_is_heard_too(cloud):
    waiting = {"out": "PROVISIONING\nPROVISIONING\n"}
    running = {"out": "RUNNING\nRUNNING\n"}
    cloud.plays({"instanceStatus": [waiting, waiting, running], "storage rsync": [ended(0, 0)]})
    status, out = cloud.run(*SLICE)
    assert (status, cloud.left()) == (0, set())
    assert "is not there yet (WAITING); looking again" in out

    cloud.plays({"instanceStatus": [waiting], "list-errors": [{"out": "QUOTA_EXCEEDED Quota 'TPU' exceeded\n"}]})
    status, out = cloud.run(*SLICE)
    assert (status, cloud.left()) == (1, set())
    assert "the quota of project my-project does not allow the slice" in out


def test_a_look_that_fails_once_ends_nothing(cloud):
    error = {"status": 1, "err": "ERROR: 503 Backend error\n"}
    waiting, running = {"out": "PROVISIONING\nPROVISIONING\n"}, {"out": "RUNNING\nRUNNING\n"}
    cloud.plays(
        {
            "instanceStatus": [waiting, error, running],
            "list-errors": [error],
            "list-instances": [error, {"out": "slice-a\nslice-b\n"}],
            "storage rsync": [*[error] * 5, ended(0, 0)],
        }
    )
    status, out = cloud.run(*SLICE)
    assert (status, cloud.left()) == (0, set()), out
    assert (
        out.count("nothing is to be seen of the run for 3 looks; it continues as it is: ERROR: 503 Backend error") == 1
    )


@pytest.mark.parametrize("heard", [[{"files": {"vgg-jax-vgg16.alive": str(i)}} for i in range(2)], [{}]])
def test_silent_machines_are_given_back(heard, cloud):
    console = [{"out": "gcsfuse: permission denied\n"}]
    cloud.plays(
        {"storage rsync.*time-1": heard, "storage rsync.*time-2": [{}, ended(0)], "get-serial-port-output": console}
    )
    status, out = cloud.run(VM[0], VM[1] | {"SILENT_SECONDS": "2"})
    assert (status, cloud.left()) == (0, set()), out
    assert "nothing was heard from vgg-jax-vgg16 for 2 s\n" in out
    assert "training is taken for dead (try 1 of 5; logs in runs/launches/vgg16/time-1)" in out
    assert (cloud.clone / "runs/launches/vgg16/time-1/vgg-jax-vgg16.serial").read_text() == console[0]["out"]
    assert len(cloud.calls("instances create")) == 2


def test_one_silent_machine_among_others_is_enough(cloud):
    beat = 'echo x >"$5/slice-b.alive"; date +%N >>"$5/slice-a.alive"'
    cloud.plays({"storage rsync.*time-1": [{"shell": beat}], "storage rsync.*time-2": [ended(0, 0)]})
    status, out = cloud.run(SLICE[0], SLICE[1] | {"SILENT_SECONDS": "2"})
    assert (status, cloud.left()) == (0, set()), out
    assert "nothing was heard from slice-b for 2 s\n" in out


@pytest.mark.parametrize(
    ("launcher", "state", "gone"),
    [
        (VM, "instances describe", {"status": 1, "err": "ERROR: The resource 'x' was not found\n"}),
        (VM, "instances describe", {"out": "STOPPING\n"}),
        (SLICE, "instanceStatus", {"out": "RUNNING\n"}),
    ],
)
def test_machines_that_were_taken_away_are_rented_again_and_the_run_continues(launcher, state, gone, cloud):
    count = 1 if launcher == VM else 2
    running = WELL.get(state, WELL[r"list-instances.*instanceStatus"])[0]
    await_first = [] if launcher == VM else [running]  # one look until it is there, before those of the watch
    cloud.plays({state: [*await_first, running, gone, running], "storage rsync": [{}, ended(143), ended(*[0] * count)]})
    status, out = cloud.run(*launcher)
    assert status == 0, out
    assert "the machines were taken away (try 1 of 5); the run continues from its last checkpoint" in out
    first, second = cloud.calls("(instances|templates) create")
    assert ("time-1/startup.sh" in first, "time-2/startup.sh" in second) == (True, True)
    scripts = [(cloud.clone / f"runs/launches/vgg16/time-{i}/startup.sh").read_text() for i in (1, 2)]
    assert scripts[0].replace("LAUNCH=time-1", "LAUNCH=time-2") == scripts[1]  # the same workdir
    assert cloud.left() == set()


def test_it_gives_up_after_so_many_tries(cloud):
    cloud.plays({"instances describe": [{"out": "TERMINATED\n"}]})
    status, out = cloud.run(VM[0], VM[1] | {"TRIES": "3"})
    assert status == 1
    assert "error: gave up after 3 tries, the last of which ended with: preempted" in last(out)
    assert len(cloud.calls("instances create")) == 3
    assert cloud.left() == set()


def test_a_refusal_of_training_is_not_tried_again_and_its_sentence_is_shown(cloud):
    cloud.plays(
        {"storage rsync": [ended(1, 2, log="error: config.batch_size is 33, which 8 devices do not divide.\n")]}
    )
    status, out = cloud.run(*SLICE)
    assert status == 2
    assert "error: training was refused: config.batch_size is 33, which 8 devices do not divide. (logs in " in last(out)
    assert len(cloud.calls("managed create")) == 1
    assert cloud.left() == set()


def test_a_crash_is_tried_again(cloud):
    cloud.plays({"storage rsync": [ended(139, 0), ended(0, 0)]})
    status, out = cloud.run(*SLICE)
    assert status == 0, out
    assert "training ended with status 139 (try 1 of 5; logs in runs/launches/vgg16/time-1)" in out
    assert cloud.left() == set()


def test_a_signal_between_two_tries_is_heeded_when_what_was_made_is_gone(cloud):
    cloud.plays({"instances describe": [{"out": "TERMINATED\n"}], "instances delete": [{"shell": "sleep 1"}]})
    process = cloud.start(*VM, "--", CONFIG)
    while not cloud.calls("instances delete"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.terminate()
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 143
    assert (len(cloud.calls("instances create")), cloud.left()) == (1, set())
    assert last(out).startswith("stopped by SIGTERM; all that was made has been deleted.")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("launcher", "at", "hangs"),
    [
        (VM, "instances create", True),
        (SLICE, "managed create", True),
        (SLICE, "list-errors", False),
        (VM, "storage rsync", False),
    ],
)
def test_a_signal_in_the_middle_deletes_all(launcher, at, hangs, number, cloud):
    waiting = {} if at != "list-errors" else {"instanceStatus": [{"out": "PROVISIONING\n"}]}
    cloud.plays({at: [{"shell": "exec sleep 60"} if hangs else {}]} | waiting)
    process = cloud.start(launcher[0], launcher[1] | {"POLL_SECONDS": "1", "BACKOFF_SECONDS": "1"}, "--", CONFIG)
    while not cloud.calls(at):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert cloud.left() == set()
    assert last(out) == (
        f"stopped by {number.name}; all that was made has been deleted. "
        "The same command continues from the last checkpoint."
    )


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGHUP, signal.SIGHUP], [signal.SIGTERM, signal.SIGINT]])
def test_nothing_is_left_where_nobody_reads_any_more_and_signals_come_in_pairs(numbers, cloud):
    """`launch/tpu_vm.sh ... | tee log` and Ctrl-C, which ends tee first; a terminal that closes."""
    process = cloud.start(*VM, "--", CONFIG)
    while not cloud.calls("storage rsync"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.stdout.close()
    for number in numbers:
        os.killpg(process.pid, number)
    process.wait(timeout=20)
    assert len(cloud.calls("instances delete")) == 1
    assert cloud.left() == set()


def test_another_launch_of_that_name_is_left_alone(cloud):
    cloud.plays({"instances create": [{"status": 1, "err": "ERROR: The resource 'x' already exists\n"}]})
    status, out = cloud.run(*VM)
    assert status == 2
    assert "exists already: another launch of NAME=vgg16 is under way, or was left behind." in out
    assert cloud.calls("delete") == []


def test_a_failed_deletion_is_reported_with_its_command(cloud):
    cloud.plays({"instances delete": [{"status": 1, "err": "ERROR: 503\n"}], "storage rsync": [ended(0)]})
    status, out = cloud.run(*VM)
    assert status == 1
    assert len(cloud.calls("instances delete")) == 5
    assert (
        "something that costs money could not be deleted (ERROR: 503). "
        "Delete it by hand: gcloud compute instances delete" in out
    )


def test_a_machine_that_is_being_made_is_deleted_once_it_exists(cloud):
    busy = {"status": 1, "err": "ERROR: code=400, message=Group is running incompatible operation x.\n"}
    cloud.plays({"managed delete": [*[busy] * 8, {}], "storage rsync": [ended(0, 0)]})
    status, out = cloud.run(*SLICE)
    assert (status, len(cloud.calls("managed delete"))) == (0, 9), out
