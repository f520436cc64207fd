"""The report: what it says is what the files say, in a page that a real browser shows without a complaint."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.browser import browser
from tests.command import help_of, run_command
from tests.runs import make_run
from vgg_jax.config import recipe_of
from vgg_jax.data.builtin import CLASS_NAMES
from vgg_jax.evaluation import measures
from vgg_jax.evaluation.cache import Probs
from vgg_jax.evaluation.passes import EvalPass
from vgg_jax.evaluation.protocol import Request, evaluate
from vgg_jax.evaluation.trained_model import load_trained
from vgg_jax.reporting import charts, curves, history, images, predictions
from vgg_jax.reporting.page import write_page
from vgg_jax.reporting.sections import ABSENT
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.sharding import make_mesh
from vgg_jax.training.state import init_state, state_shapes

BLOCKS = [*(f"block{i}" for i in range(1, 6)), "fc6", "fc7", "fc8"]


def logged(workdir, epochs=6, finished=True, drops=(3,)):
    """Adds what training leaves: 12 steps an epoch, logged every 6; the rate drops at the validations named."""
    dataset = json.loads((workdir / "dataset.json").read_text())
    (workdir / "dataset.json").write_text(json.dumps(dataset | {"train_images": 96, "validation_images": 10}))
    config = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(config | {"num_epochs": 8.0}))
    lines, rate = [], 1e-2
    for epoch in range(1, epochs + 1):
        for step in (12 * epoch - 6, 12 * epoch):
            scalars = {"loss": 3 / epoch, "lr": rate, "top1_error": 0.7 / epoch, "top5_error": 0.0}
            scalars |= {"images_per_second": 100.0 + step, "input_wait": 0.01}
            scalars |= {f"gradient_norm/{block}": 10.0**-i for i, block in enumerate(BLOCKS)}
            lines.append({"step": step, **{f"train/{name}": value for name, value in scalars.items()}})
        lines.append(
            {"step": 12 * epoch, "val/loss": 3.5 / epoch, "val/top1_error": 0.8 / epoch, "val/top5_error": 0.0}
        )
        rate /= 10 if epoch in drops else 1
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        summary = {"steps": 12 * epochs, "seconds": 75.0, "lr_drops": len(drops), "stopped_by": "num_epochs"}
        (workdir / "summary.json").write_text(
            json.dumps(summary | {"versions": {"jax": "0.0.7"}, "devices": "abacus x 2"})
        )
    return workdir


@pytest.fixture
def trained(run):
    return logged(run)


def text_of(page):
    """The page without its marks, spaces made one."""
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]*>", " ", page.read_text(), flags=re.DOTALL).split())


def test_help_answers_without_loading_jax():
    shown = help_of("report")
    assert "--output" in shown
    assert "--data_dir" in shown


def test_a_run_that_ends_with_guessing_is_headed_by_that(trained):
    path = trained / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"final_train_loss": 5.0}))
    assert "the run ends with a training loss of 5.0000, which is guessing" in text_of(
        write_page([trained], None, quiet=True)
    )


def test_a_bare_run_gets_a_page_with_everything(trained):
    page = write_page([trained], None, quiet=True)
    assert page == trained / "report.html"
    html, text = page.read_text(), text_of(page)
    # The evaluation that it lacked is made and kept like any other.
    (cached,) = trained.glob("evaluation/7/*/center_crop-Q73.npz")
    with np.load(cached) as arrays:
        labels, probs = arrays["labels"], arrays["probs"]
    wrong = sum(int(np.argmax(row) != label) for row, label in zip(probs, labels, strict=True))
    assert f"checkpoint 7, vgg_jax_folder/{cached.parent.name.split('vgg_jax_folder_')[1][:5]}" in text
    low, high = measures.error_interval(wrong / 10, 10)
    assert f"top-1 error {10 * wrong}.0 % ({100 * low:.1f} to {100 * high:.1f} %)." in text
    assert "top-5 0.0 %" not in text  # three classes
    predicted = np.array([int(np.argmax(row)) for row in probs])
    for k, name in enumerate(CLASS_NAMES[:3]):
        right, mine = ((predicted == k) & (labels == k)).sum(), (predicted == k).sum()
        precision = f"{100 * right / mine:.1f} %" if mine else ABSENT
        recall = f"{100 * right / (labels == k).sum():.1f} %"
        assert f" {name} {(labels == k).sum()} {mine} {precision} {recall} " in text
    # Curves: the least error with its step, the drop where it was, the norms that are logged.
    assert "13.3 % validation top-1 error; chance: 66.7 % 95 %: 2.9 to 44.1 %; best, step 72; centre crop" in text
    assert "Chance: guessing one of 3 classes is wrong in 66.7 %." in text
    assert "<details><summary>What this configuration reaches in the paper" in html  # not ImageNet's classes
    assert "Drops of the learning rate: to 1e-3 after epoch 3." in text
    assert "Gradient norm by block" in text
    assert "Update relative to parameters" not in text
    for said in ("abacus x 2", "jax 0.0.7", "1 min 15 s", "finished", "29.6 / 10.4 %", "model.width_multiplier"):
        assert said in text, said
    # Nothing comes from elsewhere, and it is small.
    assert set(re.findall(r'(?:src|href)="([^":]*:|[^"#])', html)) == {"data:"}
    assert not re.findall(r"https?://|@import|url\(", html)
    assert len(html) < 1_000_000
    for tag in re.findall(r"<img [^>]*>", html):
        assert re.search(r'alt="[^"]', tag), tag
    assert all("<title>" in svg for svg in re.findall(r'<svg viewBox="0 0 400.*?</svg>', html, flags=re.DOTALL))
    # Again: the probabilities are not computed again, the page is replaced.
    before = cached.stat().st_mtime_ns
    write_page([trained], None, quiet=True)
    assert cached.stat().st_mtime_ns == before


def test_a_cosine_has_a_curve_and_no_drops(trained):
    config = json.loads((trained / "config.json").read_text())
    assert history.read_history(trained, "run").rate_drops() == [(3.0, 1e-3)]
    assert "Learning rate" not in [
        chart.title for chart in curves.run_charts(history.read_history(trained, "run"), curves.chance_of(3))
    ]
    (trained / "config.json").write_text(json.dumps(config | {"schedule": {"name": "cosine"}}))
    of_cosine = history.read_history(trained, "run")
    assert of_cosine.rate_drops() == []
    drawn = {chart.title: chart for chart in curves.run_charts(of_cosine, curves.chance_of(3))}
    assert "Learning rate" in drawn
    assert not any('class="mark"' in chart.svg for chart in drawn.values())
    assert "Dashed" not in drawn["Error"].caption


@pytest.mark.slow
def test_the_most_thorough_evaluation_of_the_checkpoint_is_shown(trained):
    evaluate(Request((str(trained),), protocol="center_crop"), quiet=True)
    evaluate(Request((str(trained),), protocol="dense", scales="multi"), quiet=True)
    model = load_trained(trained)
    cached = predictions.cached_predictions(model, history.read_history(trained, "run").evaluations)
    assert (cached.request.protocol, cached.scales, cached.split) == ("dense", "64, 73, 82", "validation")
    parts = [np.load(path)["probs"] for path in trained.glob("evaluation/7/*/dense-Q*.npz")]
    np.testing.assert_allclose(cached.probs_NxK, sum(parts) / 3, rtol=1e-6)
    text = text_of(write_page([trained], None, quiet=True))
    assert "From dense, Q = 64, 73, 82, checkpoint 7" in text
    # Probabilities of other parameters count as none.
    other = model._replace(digest="another")
    assert predictions.cached_predictions(other, history.read_history(trained, "run").evaluations) is None


def some_predictions(probs, labels):
    probs = np.array(probs, np.float64)
    keys = np.array([f"{i}.png" for i in range(len(labels))])
    return predictions.Predictions(None, Request(()), "73", "d", "s", keys, np.array(labels), probs, 0.5, 0.0, 73)


def test_the_best_of_equal_errors_has_least_loss_then_comes_first(trained):
    results = {60: (0.5, 1.5999), 84: (0.1, 0.7), 96: (0.1, 0.6), 108: (0.1, 0.6), 110: (0.1, 1.6)}
    lines = [{"step": step, "val/top1_error": error, "val/loss": loss} for step, (error, loss) in results.items()]
    (trained / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert history.read_history(trained, "").best()["step"] == 96


def test_confusion_best_and_worst_by_hand():
    result = some_predictions(
        [[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.2, 0.5, 0.3], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.0, 0.0, 0.0]],
        [0, 0, 1, 1, 2, 2],  # the last was refused
    )
    matrix = measures.confusion_matrix(result.labels, result.predicted(), 3)
    assert matrix.tolist() == [[2, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert result.surest_wrong(5) == [4, 3]
    assert result.surest_right(5) == [0, 2]  # one of each class, of class 0 the surer
    assert result.surest_wrong(1) == [4]


@pytest.mark.parametrize(
    ("wrong", "scale"),
    [
        ({64: 40, 73: 10, 144: 80}, 73),  # the largest is worse than chance explains
        ({64: 10, 73: 12, 144: 14}, 144),
        ({73: 10}, 73),
    ],
)
def test_maps_are_drawn_at_the_largest_scale_at_which_the_network_works(wrong, scale):
    labels, keys, none = np.zeros(100, int), np.arange(100).astype(str), np.zeros(100, bool)
    probs = {
        EvalPass("dense", q, 64, True): Probs(keys, labels, np.eye(3)[(np.arange(100) < count).astype(int)], none)
        for q, count in wrong.items()
    }
    assert predictions._map_scale(probs) == scale


def test_chance_is_the_better_guess():
    assert curves.chance_of(5).text == "chance: 80 %"
    assert curves.chance_of(1000).text == "chance: 99.9 %"
    assert curves.chance_of(3, np.array([0, 1, 2]), "abc") == curves.chance_of(3)
    biased = curves.chance_of(3, np.array([1, 1, 0, 1]), ["a", "the_b", "c"])
    assert biased.text == "chance: 25 %"
    assert biased.sentence == "Chance: always answering the largest class, the b, is wrong in 25 %."


def test_chance_is_a_line_as_long_as_the_others_unless_it_flattens_them():
    lines = [charts.Line("a", [(1, 0.6), (4, 0.2)], 0), charts.Line("b", [(1, 0.5), (3, 0.4)], 1)]
    (line,) = curves.chance_of(5).lines(lines)
    assert line.points == [(0, 0.8), (4, 0.8)]
    assert curves.chance_of(5).lines([charts.Line("a", [(1, 0.02)], 0)]) == []
    assert curves.chance_of(5).lines([]) == []


def test_chance_comes_from_the_labels_of_the_evaluated_split(trained):
    evaluate(Request((str(trained),), protocol="center_crop"), quiet=True)
    (cached,) = trained.glob("evaluation/7/*/center_crop-Q73.npz")
    spoil_json(trained / "dataset.json", "name", value=next(iter(results_of(trained)))["data"]["name"])
    with np.load(cached) as arrays:
        share = np.bincount(arrays["labels"]).max() / 10
    assert share == 0.4
    assert "chance: 60 %" in text_of(write_page([trained], None, quiet=True))


def results_of(workdir):
    return [json.loads(path.read_text()) for path in workdir.glob("evaluation/*/*/results-*.json")]


@pytest.mark.slow
def test_maps_of_one_row_are_grad_cam(trained):
    model = load_trained(trained)
    evaluate(Request((str(trained),), protocol="dense"), quiet=True)
    cached = predictions.cached_predictions(model, history.read_history(trained, "run").evaluations)
    drawn = cached.score_maps(cached.open_split(predictions.PageOptions()), 8)
    # Crop 64 at Q = 73: two cells of 32 pixels make one of the score map, so a shorter side has one.
    assert drawn
    assert all(one["is_cam"] for one in drawn)
    for one in drawn:
        rows, columns = map(int, one["cells"].split(" x "))
        assert min(rows, columns) == 73 // 16
        assert all(shown.cam_hxw.shape == (rows, columns) for shown, _ in one["maps"])
    at_twice = cached._replace(map_scale=146).score_maps(cached.open_split(predictions.PageOptions()), 8)
    assert not any(one["is_cam"] for one in at_twice)
    assert min(int(n) for one in at_twice for n in one["cells"].split(" x ")) == 146 // 32 - 1


@pytest.mark.slow
def test_of_many_classes_the_hardest_are_shown(net_config, tmp_path):
    net_config.model.num_classes = 25
    names = [*CLASS_NAMES[:3], *(f"other_{i}" for i in range(22))]
    workdir = logged(make_run(tmp_path / "run", net_config, class_names=names))
    text = text_of(write_page([workdir], None, quiet=True))
    (cached,) = workdir.glob("evaluation/7/*/center_crop-Q73.npz")
    with np.load(cached) as arrays:
        labels, predicted = arrays["labels"], arrays["probs"].argmax(1)
    assert "The hardest of 25 classes" in text
    assert "Confusion matrix" not in text
    for k in range(3):
        mine = predicted[labels == k]
        error = f"{100 * (mine != k).mean():.1f} %"
        assert re.search(rf" {names[k]} {len(mine)} {re.escape(error)} ", text), (names[k], error)
        for j in np.unique(mine[mine != k])[:1]:
            assert f"{names[j].replace('_', ' ')} ({(mine == j).sum()})" in text


def test_a_point_of_a_curve_lies_where_the_axes_say():
    points = [(1, 0.83), (7, 0.31), (10, 0.12)]
    drawn = charts.chart(
        "e", [charts.Line("v", points, 0, dots=True)], "epoch", [charts.Mark(7, "lr")], charts.YAxis(percent=True)
    )
    ticks = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(end|middle)">([\d.]+)%?</text>', drawn.svg)
    xs = [(float(x), float(v)) for x, _, anchor, v in ticks if anchor == "middle"]
    ys = [(float(y) - 4, float(v) / 100) for _, y, anchor, v in ticks if anchor == "end"]
    dots = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn.svg)
    for (x, y), point in zip(dots, points, strict=True):
        (x0, v0), (x1, v1) = xs[0], xs[-1]
        assert v0 + (float(x) - x0) / (x1 - x0) * (v1 - v0) == pytest.approx(point[0], abs=0.02)
        (y0, w0), (y1, w1) = ys[0], ys[-1]
        assert w0 + (float(y) - y0) / (y1 - y0) * (w1 - w0) == pytest.approx(point[1], abs=0.005)
    assert f'class="mark" d="M{float(dots[1][0]):g} ' in drawn.svg
    assert "v, epoch 7: 31 %" in drawn.svg


def test_charts_of_little_and_of_much():
    assert charts.chart("e", [charts.Line("v", [], 0)], "epoch") is None
    assert charts.chart("e", [charts.Line("v", [(1, 0.0)], 0, dots=True)], "epoch") is not None
    logarithmic = charts.chart(
        "e", [charts.Line("v", [(0, 0.0), (1, 1e-5), (2, 3e2)], 0)], "step", y_axis=charts.YAxis(log=True)
    )
    assert "1e-5" in logarithmic.svg
    assert "1000" in logarithmic.svg
    flat = charts.chart("e", [charts.Line("v", [(1, 0.5), (2, 0.5)], 0)], "epoch", y_axis=charts.YAxis(log=True))
    assert "nan" not in flat.svg
    many = charts.thinned([(x, 2.0 * x) for x in range(10_001)], 400)
    assert len(many) <= 400
    assert many[-1] == (10_000, 20_000)
    assert all(y == pytest.approx(2 * x) for x, y in many)


def test_filters_are_drawn_as_they_are():
    kernel = np.zeros((3, 3, 3, 2), np.float32)
    kernel[0, 2, :, 0] = [0.1, -0.1, 0.05]  # the weaker one
    kernel[1, 1, :, 1] = [0, 2, -2]
    image = Image.open(io.BytesIO(base64.b64decode(images.filters(kernel).split(",")[1])))
    pixels = np.asarray(image)
    assert pixels[12, 12].tolist() == [128, 255, 0, 255]  # the stronger one comes first: its middle
    assert pixels[4, 26 + 20].tolist() == [255, 0, 191, 255]
    assert pixels[0, 0].tolist() == [128, 128, 128, 255]
    assert pixels[0, 24, 3] == 0  # between the two


@pytest.mark.slow
def test_an_unfinished_run_says_how_far_it_is(trained):
    (trained / "summary.json").unlink()
    with open(trained / "metrics.jsonl", "a") as file:
        file.write('{"step": 78, "train/lo')
    text = text_of(write_page([trained], None, quiet=True))
    assert "This run is not finished: at step 72 of at most 96; metrics.jsonl was last written " in text
    # Continued after it had been finished: the summary is of before.
    logged(trained, epochs=4)
    (trained / "summary.json").write_text(json.dumps({"steps": 24, "seconds": 1.0, "lr_drops": 0}))
    assert "This run is not finished: at step 48" in text_of(write_page([trained], None, quiet=True))


def test_damaged_lines_of_metrics_are_left_out_and_said(trained):
    with open(trained / "metrics.jsonl", "ab") as file:
        file.write(b"\0\0\0\n\xff\n" + b'{"loss": 1}\n')
    text = text_of(write_page([trained], None, quiet=True))
    assert f"3 lines of {trained}/metrics.jsonl are damaged and left out." in text


def test_a_run_that_has_only_begun_has_a_page(trained):
    for name in ("metrics.jsonl", "summary.json"):
        (trained / name).unlink()
    shutil.rmtree(trained / "checkpoints")
    text = text_of(write_page([trained], None, quiet=True))
    assert "Nothing that could be drawn has been logged yet." in text
    assert "There is no checkpoint yet" in text
    assert "Not evaluated yet." in text


@pytest.mark.slow
def test_without_the_images_the_rest_is_made(trained, net_config, tmp_path):
    evaluate(Request((str(trained),), protocol="dense"), quiet=True)
    config = json.loads((trained / "config.json").read_text())
    config["data"]["root"] = str(tmp_path / "gone")
    (trained / "config.json").write_text(json.dumps(config))
    page = write_page([trained], None, quiet=True)
    text = text_of(page)
    assert "The images cannot be shown: there is no folder of images" in text
    assert "Confusion matrix" in text
    assert "no image" in text
    assert "Score maps" not in text
    # Named by hand they are found.
    page = write_page([trained], None, data_root=net_config.data.root, quiet=True)
    assert "cannot be shown" not in text_of(page)
    # And with neither images nor probabilities there are still the curves.
    shutil.rmtree(trained / "evaluation")
    text = text_of(write_page([trained], None, quiet=True))
    assert "No predictions: there is no folder of images" in text
    assert "Learning curves" in text


@pytest.mark.slow
def test_a_fusions_partner_is_not_shown_as_the_run(trained, net_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the page of several runs goes
    partner = logged(make_run(tmp_path / "partner", net_config, seed=1))
    evaluate(Request((str(trained), str(partner)), protocol="center_crop", scales="64,73"), quiet=True)
    text = text_of(write_page([trained, partner], None, quiet=True))
    errors = text[text.index("Test errors Every evaluation") :]
    assert errors.count("run, 7 center crop 64 ") == 1  # at two scales and as their mean
    assert errors.count("run, 7 center crop 73 ") == 1
    assert errors.count("fusion of 2, 7 center crop") == 1


def test_several_runs_side_by_side(trained, net_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net_config.optimizer.learning_rate = 0.5
    other = logged(make_run(tmp_path / "<b>other & co", net_config, seed=1), epochs=3, drops=())
    page = write_page([trained, other, trained], None, quiet=True)
    assert page.resolve() == tmp_path / "report.html"
    html, text = page.read_text(), text_of(page)
    assert "2 runs" in text
    assert "optimizer.learning_rate 0.001 0.5" in text
    assert "&lt;b&gt;other &amp; co" in html
    assert "<b>other" not in html
    assert html.count('<details class="run">') == 2


def test_a_directory_stands_for_the_runs_in_it(trained, net_config, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    runs.mkdir()
    trained.rename(runs / "b")
    logged(make_run(runs / "a", net_config, seed=1))
    (runs / "notes").mkdir()
    reproduction(runs / "paper", lambda workdir: make_run(workdir, net_config), tables=False)
    page = write_page([runs], None)
    assert page == runs / "report.html"
    out = capsys.readouterr().out
    assert f"left out: {runs / 'paper'}, a whole reproduction, which has its own page" in out
    assert re.findall(r"looking at (.*)", out) == [str(runs / "a"), str(runs / "b")]
    named = write_page([runs / "a", runs / "b"], tmp_path / "named.html", quiet=True)
    assert text_of(page).split("Made ")[0] == text_of(named).split("Made ")[0]
    # One run in it has the page of one run, next to which the directory's other files stay.
    shutil.rmtree(runs / "a")
    assert '<details class="run">' not in write_page([runs], None, quiet=True).read_text()
    shutil.rmtree(runs / "b")
    with pytest.raises(UserError, match=f"{runs} holds no config.json of a run and no plan.json, and no directory of"):
        write_page([runs], None, quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["ResNet-20", "AlexNet", "GoogLeNet"])
def test_networks_other_than_vggs_have_a_page(net_config, tmp_path, configuration):
    net_config.model.configuration, net_config.model.width_multiplier = configuration, 1 / 8
    net_config.image.crop = net_config.image.scale_min = net_config.image.scale_max = 67
    state = init_state(recipe_of(net_config), state_shapes(recipe_of(net_config), make_mesh()))
    run = make_run(tmp_path / "run", net_config, state=state)
    text = text_of(write_page([run], None, quiet=True))
    assert "filters of conv1" in text
    assert configuration in text


def reproduction(directory, make_stage, tables=True):
    """A plan of four stages and two seeds: of the first seed two are finished, one is on its way."""
    plan = {
        "stages": [
            {"name": "A-73", "configuration": "A", "scales": [73, 73], "starts_from": ""},
            {"name": "B-73", "configuration": "A", "scales": [73, 73], "starts_from": "A-73"},
            {"name": "D-73", "configuration": "D", "scales": [73, 73], "starts_from": "A-73"},
            {"name": "D-jitter", "configuration": "D", "scales": [73, 146], "starts_from": "D-73"},
        ],
        "seeds": [0, 1],
    }
    directory.mkdir(parents=True)
    (directory / "plan.json").write_text(json.dumps(plan))
    logged(make_stage(directory / "seed0" / "A-73"))
    logged(make_stage(directory / "seed1" / "A-73"))
    logged(make_stage(directory / "seed0" / "B-73"), epochs=4)
    logged(make_stage(directory / "seed0" / "D-73"), epochs=2, finished=False)
    broken = make_stage(directory / "seed1" / "B-73")
    (broken / "config.json").write_text("{")
    row = {"model": "D", "scales": "73", "test_scales": "73", "protocol": "dense", "images": 1000, "seeds": 2}
    rows = [
        row
        | {"top1_error": 0.4123, "top1_spread": 0.0081, "top5_error": 0.1, "top5_spread": None}
        | {"paper": {"top1": 27.0, "top5": 8.8}},
        row
        | {
            "model": "E",
            "top1_error": None,
            "top1_spread": None,
            "top5_error": None,
            "top5_spread": None,
            "paper": None,
        },
    ]
    if tables:
        content = {
            "tables": [{"number": 3, "title": "Single-scale", "rows": rows}],
            "missing": ["E-73, seed 1: not yet"],
        }
        (directory / "tables.json").write_text(json.dumps(content))
    return directory


def test_a_whole_reproduction(net_config, tmp_path):
    directory = reproduction(tmp_path / "whole", lambda workdir: make_run(workdir, net_config))
    trained = str(directory / "seed0" / "A-73")
    evaluate(Request((trained,), protocol="dense"), quiet=True)
    page = write_page([directory], None, quiet=True)
    assert page == directory / "report.html"
    text = text_of(page)
    assert "3 of 8 trainings are finished." in text
    assert "A-73 A 73 random finished 13.3 % finished 13.3 %" in text
    assert "D-73 D 73 A-73 running or stopped at step 24 of 96 40.0 % not begun" in text
    assert f"cannot be read: {directory / 'seed1' / 'B-73' / 'config.json'}" in text
    assert "D-jitter D 73 to 146 D-73 not begun not begun" in text
    assert "Table 3: Single-scale All of them dense." in text
    assert "D 73 73 41.2 ± 0.8 27.0 10.0 8.8 1,000 2" in text
    assert f"E 73 73 {4 * (ABSENT + ' ')}1,000 2" in text
    assert "E-73, seed 1: not yet" in text
    html = page.read_text()
    assert html.count("VGG A: validation top-1 error</title>") == 1
    assert ' thin dashed"' in html  # B-73, of the same configuration and scale as A-73
    assert html.count('<details class="run">') == 2  # finished stages of the first seed
    assert "From dense, Q = 73, checkpoint 7" in text
    # It computes nothing by itself.
    assert not list(directory.glob("seed0/B-73/evaluation"))
    assert "it was not evaluated yet" in text

    content = json.loads((directory / "tables.json").read_text())
    content["tables"][0]["rows"][0]["top1_error"] = "41"
    (directory / "tables.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="tables.json holds no tables of a reproduction .*top1_error is '41'"):
        write_page([directory], None, quiet=True)
    (directory / "tables.json").unlink()
    assert "The paper's tables are not made yet." in text_of(write_page([directory], None, quiet=True))


def broken(path, content):
    path.write_text(content)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda run: shutil.rmtree(run), "there is no such directory"),
        (lambda run: (shutil.rmtree(run), run.mkdir()), "is empty, so there is nothing to report"),
        (lambda run: (run / "config.json").unlink(), "holds no config.json of a run and no plan.json"),
        (lambda run: broken(run / "config.json", "{"), "config.json cannot be read (Expecting property name"),
        (lambda run: broken(run / "config.json", "[]"), "config.json holds no JSON object, but list"),
        (
            lambda run: broken(run / "config.json", '{"model": {}}'),
            "model.configuration is missing; bring it back from a copy.",
        ),
        (lambda run: broken(run / "dataset.json", '{"class_names": 3}'), "dataset.json has 'class_names' as 3"),
        (
            lambda run: broken(run / "dataset.json", '{"class_names": [], "train_images": "9"}'),
            "has 'train_images' as '9'",
        ),
        (
            lambda run: broken(run / "config.json", '{"model": {"configuration": "A"}, "batch_size": 0}'),
            "batch_size is 0",
        ),
        (lambda run: broken(run / "config.json", '{"model": {"configuration": "A"}, "seed": "x"}'), "seed is 'x'"),
        (lambda run: broken(run / "summary.json", "{}"), "summary.json has 'steps' as None"),
        (lambda run: broken(run / "plan.json", "{}"), "plan.json is not a plan of a reproduction"),
        (lambda run: broken(run / "report.html", "my own page"), "report.html is there already and no report"),
        (lambda run: (run / "report.html").mkdir(), "report.html is a directory"),
    ],
)
def test_bad_input_gets_one_sentence(trained, spoil, sentence):
    spoil(trained)
    with pytest.raises(UserError) as caught:
        write_page([trained], None, quiet=True)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(trained) in str(caught.value)


def spoil_json(path, *keys, value):
    """Puts a value where the keys lead."""
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "keys", "value"),
    [
        ("config.json", ("label_smoothing",), 10**400),
        ("config.json", ("image", "scale_min"), 10**400),
        ("config.json", ("model", "batch_norm"), 10**400),
        ("config.json", ("data", "root"), True),
        ("config.json", ("model", "init"), "x"),
        ("config.json", ("model", "num_classes"), 0),
        ("config.json", ("image", "crop"), float("nan")),
        ("dataset.json", ("class_names", 0), {"a": 1}),
        ("dataset.json", ("class_names", 0), 10**400),
        ("dataset.json", ("train_images",), -1),
        ("dataset.json", ("unknown",), [10**400]),
        ("summary.json", ("steps",), 10**400),
        ("summary.json", ("seconds",), float("nan")),
        ("summary.json", ("seconds",), float("inf")),
    ],
    ids=map(str, range(14)),
)
def test_a_value_that_no_run_has_gets_one_sentence(trained, file, keys, value):
    spoil_json(trained / file, *keys, value=value)
    with pytest.raises(UserError, match=f"^{trained / file} ") as caught:
        write_page([trained], None, quiet=True)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("keys", "value"),
    [(("mean_rgb",), []), (("mean_rgb", 0), float("nan")), (("color_vectors", 0, 0), 1e308), (("class_names", 0), 3)],
)
def test_a_damaged_description_of_the_data_is_not_evaluated(trained, keys, value):
    spoil_json(trained / "dataset.json", *keys, value=value)
    sentence = "has 'class_names' as 3" if value == 3 else "is not a data set's description"
    with pytest.raises(UserError, match=f"{trained}/dataset.json {sentence}"):
        load_trained(trained)


def test_of_equal_errors_the_best_is_that_of_least_loss_then_the_earlier(trained):
    lines = [
        (60, 0.25, 1.5999),
        (90, 0.25, float("nan")),
        (110, 0.25, 1.6079),
        (120, 0.25, 1.5999),
        (130, float("nan"), 1.0),
    ]
    text = "".join(json.dumps({"step": s, "val/top1_error": e, "val/loss": loss}) + "\n" for s, e, loss in lines)
    (trained / "metrics.jsonl").write_text(text)
    assert history.read_history(trained, "run").best()["step"] == 60


def test_a_page_leaves_out_large_numbers_and_unknown_reasons(trained):
    shutil.rmtree(trained / "checkpoints")
    spoil_json(trained / "summary.json", "stopped_by", value={"a": 1})
    with open(trained / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 72, "val/top1_error": 10**400}) + "\n")
        file.write(json.dumps({"step": 10**400, "val/top1_error": 0.5}) + "\n")
    assert "2 lines of" in text_of(write_page([trained], None, quiet=True))


def test_conflicting_flags_get_one_sentence(trained, net_config, tmp_path):
    other = logged(make_run(tmp_path / "other", net_config))
    description = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps(description | {"class_names": ["a", "b", "c"]}))
    with pytest.raises(UserError, match="are runs on different data .*; write a report of each"):
        write_page([trained, other], tmp_path / "x.html", quiet=True)
    (other / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="is a whole reproduction, which has its own page; give it alone"):
        write_page([trained, other], tmp_path / "x.html", quiet=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to .*; choose another --output"):
        write_page([trained], tmp_path / "file" / "x.html", quiet=True)
    assert not list(tmp_path.glob("*.html*"))


@pytest.mark.slow
def test_a_broken_evaluation_is_noted_and_left_out(trained):
    evaluate(Request((str(trained),), protocol="dense"), quiet=True)
    (results,) = trained.glob("evaluation/7/*/results-dense-*.json")
    content = json.loads(results.read_text())
    spoilt_values = [
        (("rows", 0, "protocol"), None, "has 'protocol' as None"),
        (("rows", 0, "paper"), [1], "has 'paper' as [1]"),
        (("rows", 0, "top5_error"), {"a": 1}, "has 'top5_error' as {'a': 1}"),
        (("request", "split"), 3, "has 'split' as 3"),
        (("request", "data_root"), {"a": 1}, "has 'data_root' as {'a': 1}"),
        (("models", 0, "passes", 0, "mirrored"), [], "has 'mirrored' as []"),
        (("models", 0, "passes", 0), True, "has 'method' as None"),
        (("computing", "seconds"), 10**400, "has an integer of 1329 bits"),
    ]
    results.write_text("{")
    assert f"An evaluation is left out: {results} cannot be read" in text_of(write_page([trained], None, quiet=True))
    for keys, value, sentence in spoilt_values:
        results.write_text(json.dumps(content))
        spoil_json(results, *keys, value=value)
        text = text_of(write_page([trained], None, quiet=True))
        assert f"An evaluation is left out: {results} {sentence}".replace("'", "&#39;") in text
        assert "From center crop, Q = 73" in text


def test_a_checkpoint_that_cannot_be_read_leaves_the_curves(trained):
    for directory in trained.glob("checkpoints/7/*"):
        if directory.is_dir():
            shutil.rmtree(directory)
    text = text_of(write_page([trained], None, quiet=True))
    assert "No filters and no predictions: " in text
    assert "Learning curves" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [((), "say what to report on"), (("/nowhere",), "error: /nowhere: there is no such directory")],
)
def test_the_command_line_says_mistakes_in_a_sentence(arguments, sentence):
    status, out, err = run_command("report", *arguments)
    assert status == 2
    assert sentence in out + err
    assert "Traceback" not in err


def test_the_command_line_makes_the_page(trained, tmp_path):
    status, out, err = run_command("report", trained, f"--output={tmp_path / 'new' / 'page.html'}")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].startswith(f"report: {tmp_path / 'new' / 'page.html'} (")
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!doctype html>")


def faults(tab, page):
    """What a browser has to say against a page, at a phone's width and a desk's, light and dark."""
    problems = []
    for width in (360, 1200):
        backgrounds = []
        for dark in (False, True):
            tab.open(page, width, dark)
            tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
            tab.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
            problems += tab.messages()
            problems += [address for address in tab.requests() if not address.startswith(("data:", page.as_uri()))]
            wide = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            problems += [f"{wide} pixels too wide at {width}"] if wide > 0 or tab.evaluate("innerWidth") > width else []
            broken = "Promise.allSettled([...document.images].map(image => image.decode()))"
            states = tab.evaluate(f"{broken}.then(all => all.map(one => one.status))")
            problems += [f"{states.count('rejected')} images that cannot be shown"] if "rejected" in states else []
            backgrounds.append(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        problems += [f"no dark page: {backgrounds}"] if backgrounds[0] == backgrounds[1] else []
    return problems


@pytest.mark.slow
def test_in_a_browser(trained, net_config, tmp_path):
    other = logged(make_run(tmp_path / "other", net_config, seed=1))
    whole = reproduction(tmp_path / "whole", lambda workdir: make_run(workdir, net_config))
    with browser(tmp_path / "profile") as tab:
        for directories in ([trained], [trained, other], [whole]):
            page = write_page(directories, tmp_path / "page.html", quiet=True)
            assert faults(tab, page) == []
            assert tab.evaluate("document.querySelectorAll('.chart > svg').length") >= 2
            assert tab.evaluate("document.querySelectorAll('table').length") >= 2

        # The same look finds what it looks for.
        bad = tmp_path / "bad.html"
        bad.write_text(
            '<!doctype html><meta name="viewport" content="width=device-width"><p style="width:500px">wide</p>'
            '<img src="data:image/png;base64,xx"><img src="http://127.0.0.1:9/x.png">'
            '<script>console.error("no")</script>'
        )
        problems = " ".join(faults(tab, bad))
        for fault in ("too wide at 360", "images that cannot be shown", "127.0.0.1:9", '"no"', "no dark page"):
            assert fault in problems, fault
