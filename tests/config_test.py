"""Configurations: the paper's values, and every impossible value refused by name."""

import importlib
import math
import re

import pytest
from ml_collections import ConfigDict

from tests.conftest import REPOSITORY
from tests.refusals import refused
from vgg_jax.commands.configuration import with_start
from vgg_jax.config import default_config, flatten, recipe_of
from vgg_jax.recipe import KEYS, SCHEDULES
from vgg_jax.reproduction.stages import split_config
from vgg_jax.training.schedules import Plateau, learning_rate
from vgg_jax.validation import validate
from vgg_jax.value_parsers import lr_factors_text

NETS = {
    "vgg11": "A",
    "vgg11_lrn": "A-LRN",
    "vgg13": "B",
    "vgg16_c": "C",
    "vgg16": "D",
    "vgg19": "E",
}


@pytest.mark.parametrize(("file", "configuration"), NETS.items())
def test_configurations_hold_the_papers_values(file, configuration):
    config = importlib.import_module(f"configs.{file}").get_config()
    validate(config, num_devices=8)
    assert config.model.configuration == configuration
    assert (config.batch_size, config.optimizer.momentum, config.optimizer.l2) == (256, 0.9, 5e-4)
    assert (config.optimizer.learning_rate, config.plateau.factor, config.plateau.max_drops) == (1e-2, 0.1, 3)
    assert (config.model.dropout_rate, config.num_epochs, config.model.fc_width) == (0.5, 74, 4096)
    assert (config.image.crop, config.image.scale_min, config.image.scale_max) == (224, 256, 256)
    assert (config.data.name, config.model.num_classes, config.init_from) == ("imagenet2012", 1000, "")


@pytest.mark.parametrize(
    ("argument", "scales", "q", "rate"),
    [("S=256", (256, 256), 256, 1e-2), ("S=384", (384, 384), 384, 1e-3), ("S=jitter", (256, 512), 384, 1e-3)],
)
def test_the_argument_chooses_the_training_scale(argument, scales, q, rate):
    config = importlib.import_module("configs.vgg19").get_config(argument)
    assert (config.image.scale_min, config.image.scale_max) == scales
    assert recipe_of(config).image.eval_scale == q
    assert config.optimizer.learning_rate == rate
    if argument != "S=256":
        with refused(r"give its workdir with --config.init_from=DIR, or say .*=none"):
            validate(config, num_devices=1)
        config.init_from = "none"
    validate(config, num_devices=1)


def test_an_unknown_argument_is_refused():
    with refused("'S=300'.*write S=256, S=384 or S=jitter"):
        importlib.import_module("configs.vgg16").get_config("S=300")


@pytest.mark.parametrize("network", ["D", "ResNet-50", "ResNet-20", "GoogLeNet", "AlexNet"])
@pytest.mark.parametrize("head", ["fc", "gap"])
def test_any_network_can_be_fine_tuned(network, head):
    config = importlib.import_module("configs.finetune").get_config(network)
    config.data.root, config.init_from = str(REPOSITORY), "runs/mine"
    config.model.head = head if network == "D" else "fc"
    validate(config, num_devices=8)
    layer = "fc8" if network == "AlexNet" or (network, head) == ("D", "fc") else "fc"
    assert config.image.crop == {"AlexNet": 227, "ResNet-20": 32}.get(network, 224)
    factors = dict(recipe_of(config).optimizer.lr_factors)
    assert {name: factor for name, factor in factors.items() if factor != 1} == {layer: 10.0}


@pytest.mark.parametrize(
    ("text", "factors", "description"),
    [
        (
            "conv1_*=0,conv2_*=0,conv*=0.1,classifier=10",
            {"bn1_1": 0, "bn2_2": 0, "bn3_1": 0.1, "conv3_1": 0.1, "fc6": 1, "fc8": 10},
            "frozen: conv1_1 to bn2_2; x 0.1: conv3_1 to bn5_3; x 1: fc6, fc7; x 10: fc8",
        ),
        ("conv*=0,bn1_1=1", {"conv1_1": 0, "bn1_1": 1, "bn1_2": 0}, None),
        ("conv1_*=0,*=0.1", {"conv1_1": 0, "bn1_1": 0.1, "bn1_2": 0.1, "fc8": 0.1}, None),
        ("bn1_*=0", {"conv1_1": 1, "bn1_1": 0}, "frozen: bn1_1, bn1_2; x 1: conv1_1, conv1_2, conv2_1 to fc8"),
    ],
)
def test_a_normalisation_has_the_factor_of_its_convolution_unless_a_pattern_matches_its_name(
    text, factors, description
):
    config = changed("optimizer.lr_factors", text)
    config.model.batch_norm = True
    assert dict(recipe_of(config).optimizer.lr_factors).items() >= factors.items()
    if description:
        assert lr_factors_text(recipe_of(config).optimizer.lr_factors) == description
    config.optimizer.norms_follow = False
    assert {
        factor for name, factor in dict(recipe_of(config).optimizer.lr_factors).items() if name.startswith("bn")
    } <= {1, 0.1, 0}
    assert dict(recipe_of(config).optimizer.lr_factors)["bn5_3"] == (0.1 if "*=0.1" in text.split(",") else 1)


@pytest.mark.parametrize("text", ["conv1=0,conv2_*=0.1"])
def test_a_shortcuts_normalisation_follows_its_own_convolution(text):
    config = changed("optimizer.lr_factors", text)
    config.model.configuration = "ResNet-50"
    assert (
        dict(recipe_of(config).optimizer.lr_factors).items()
        >= {"bn1": 0, "bn2_1a": 0.1, "bn2_1s": 0.1, "bn3_1s": 1, "fc": 1}.items()
    )


@pytest.mark.parametrize(("key", "value"), [("ema_decay", 0.99), ("optimizer.name", "adamw")])
def test_averages_in_bfloat16_are_refused(key, value):
    config = changed(key, value)
    config.model.dtype = "bfloat16"
    validate(config, num_devices=8)
    config.model.param_dtype = "bfloat16"
    with refused(r"config.model.param_dtype is 'bfloat16', in which the averages of .* say --config"):
        validate(config, num_devices=8)


def test_every_configuration_file_is_valid_on_eight_devices():
    files = sorted(path.stem for path in (REPOSITORY / "configs").glob("*.py"))
    assert len(files) >= 7
    for file in files:
        config = importlib.import_module(f"configs.{file}").get_config()
        if file in ("finetune", "small"):  # have neither images nor a start before the user names them
            config.data.root, config.init_from = str(REPOSITORY), "runs/mine" if file == "finetune" else ""
        validate(split_config(config)[0] if file == "paper" else config, num_devices=8)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.configuration", "F", "'F'; it must be one of A, A-LRN, B, C, D, E, B-5x5"),
        ("model.configuration", "a-lrn", "it must be one of A, A-LRN"),
        ("model.init", "glorott", "Did you mean 'glorot'?"),
        ("model.dtype", "float16", "it must be one of float32, bfloat16"),
        *(("profile_steps", text, "the first and the last step") for text in ("5", "(5, 4)", "0,3", "a,b", "1,2,3")),
        ("model.num_classes", 1, "a network tells at least 2 classes apart"),
        ("model.dropout_rate", 1.0, "must be at least 0 and at most 0.99"),
        ("model.width_multiplier", 0.0, "must be at least 0.001 and at most 64"),
        ("batch_size", 250, "which 8 devices do not divide; 248 or 256 would do"),
        ("batch_size", 4, "8 or 16 would do"),
        ("batch_size", 0, "must be at least 1"),
        ("accumulation_steps", 3, "which 8 devices x 3 accumulation steps do not divide; 240 or 264 would do"),
        (
            "image.crop",
            31,
            "a crop of 31 pixels is too small: nothing would be left of it at pool5 of D; give a larger one",
        ),
        ("image.crop", 257, "config.image.scale_min (S) is 256, less than config.image.crop, 257"),
        ("image.scale_max", 200, "config.image.scale_max is 200, less than config.image.scale_min, 256"),
        ("image.eval_scale", 100, "config.image.eval_scale (Q) is 100, less than config.image.crop, 224"),
        ("optimizer.learning_rate", -0.01, "config.optimizer.learning_rate is -0.01; it must be at least 1e-12"),
        ("optimizer.learning_rate", float("nan"), "must be a finite number"),
        ("optimizer.momentum", 1.5, "must be at least 0 and at most 0.9999"),
        ("optimizer.l2", -1e-4, "must be at least 0"),
        ("optimizer.l2_mask", "weights", "one of kernels, all"),
        ("plateau.patience", 0, "must be at least 1"),
        ("plateau.factor", 10.0, "must be at least 1e-06 and at most 0.9999"),
        ("plateau.min_improvement", 0.0, "must be at least 1e-09 and at most 0.99."),
        ("plateau.min_improvement", 1.0, "must be at least 1e-09 and at most 0.99."),
        ("schedule.warmup_error", 0.0, "must be at least 0.0001 and at most 1."),
        ("augment.mixup", 1e-320, "which mixes nothing; give at least 0.001, or 0 for none"),
        ("augment.cutmix", 9e-4, "which mixes nothing; give at least 0.001, or 0 for none"),
        ("model.bottleneck_stride", "1x1", "and D has no bottlenecks, as a ResNet from 50 layers up has; leave it out"),
        ("model.shortcut", "Q", "config.model.shortcut is 'Q'; it must be one of '', A, B, C."),
        ("num_epochs", 0.0, "must be at least 1e-06 and at most 1000000.0."),
        ("log_every_steps", 0, "must be at least 1"),
        ("sharding", "zero", "one of replicated, fsdp, fc_model_parallel"),
        ("model_parallel", 3, "which does not divide the 8 devices"),
        ("model_parallel", 2, "but config.sharding is 'replicated', which splits nothing over the `model` axis"),
        ("data.name", "", "must be `builtin`, `folder`, or the name of a TFDS data set"),
        ("data.name", "folder", "--config.data.root=DIR"),
        ("data.root", "/nowhere", "a root goes with --config.data.name=folder"),
        ("seed", -1, "must be at least 0 and at most 4294967295."),
        ("seed", 2**32, "must be at least 0 and at most 4294967295."),
        ("plateau.max_drops", 40, "which makes a rate of less than 1e-30 of config.optimizer.learning_rate, 0.01, in"),
        ("batch_size", 10**99, "config.batch_size is an integer of 329 bits; it must be at least 1"),
        (
            "data.dir",
            "a\0b",
            r"config.data.dir is 'a\x00b'; it must have at most 4096 letters and no control characters",
        ),
        ("data.dir", "a" * 5000, "it must have at most 4096 letters"),
        ("init_layers", "conv*", "there is nothing to take layers from; give --config.init_from=DIR as well"),
        ("optimizer.lr_factors", "fc8", "'fc8' is not layer=factor with a factor from 0 to 1e+06"),
        ("optimizer.lr_factors", "fc8=-1", "'fc8=-1' is not layer=factor"),
        ("optimizer.lr_factors", "fc8=1,fc8=0", "earlier patterns decide every layer of 'fc8'"),
        ("optimizer.lr_factors", "*=0.5,conv1_1=0", "earlier patterns decide every layer of 'conv1_1'"),
        ("optimizer.lr_factors", "classifier=0,*=0", "which freezes every layer"),
        ("optimizer.lr_factors", "conv6*=0", "no layer of configuration D is called 'conv6*'; there are conv1_1"),
    ],
)
def test_impossible_values_are_refused_in_one_sentence(key, value, message):
    with refused(re.escape(message)) as caught:
        validate(changed(key, value), num_devices=8)
    assert "config." in str(caught.value)


def test_steps_need_drops_and_of_a_shortened_run_drop_at_the_same_shares():
    config = default_config()
    config.schedule.name, config.schedule.drop_epochs = "steps", ""
    with refused("'steps', drops the rate at these epochs; name them"):
        validate(config, num_devices=8)
    for epochs in ("1,3", " 3, 1 ", (1, 3), [3, 1.0]):
        config.schedule.drop_epochs = epochs
        recipe = validate(config, num_devices=8)
        assert (recipe.schedule.drop_epochs, recipe.given["schedule.drop_epochs"]) == ((1.0, 3.0), "1,3")
    cifar = importlib.import_module("configs.resnet_cifar").get_config()
    assert cifar.schedule.drop_epochs == "81.92,122.88"  # 32,000 and 48,000 steps of 128 (He et al. 2015 §4.2)
    cifar.num_epochs = 10.0
    assert cifar.schedule.drop_epochs == "5.0,7.5"
    validate(cifar, num_devices=8)


def changed(key: str, value) -> ConfigDict:
    config = default_config()
    *path, name = key.split(".")
    section = config
    for part in path:
        section = section[part]
    with section.ignore_type():
        section[name] = value
    return config


DEFAULTS = flatten(default_config())
HOSTILE = {
    int: (-1, -(2**31), -(10**30), 2**32, 2**63, 10**30, 10**5000, 0.5, math.nan, True, "1", None),
    float: (-1.0, -math.inf, math.inf, math.nan, 1e308, -1e308, -1e-300, 10**30, 10**300, "", "1", None),
    str: ("a\0b", "\n", "\x1b[31m", "a" * 5000, 1, -1, 0.5, math.nan, True, None, b"text", ("a",)),
    tuple: (
        "a\0b",
        "\n",
        "\x1b[31m",
        "a" * 5000,
        -1,
        math.nan,
        True,
        None,
        b"text",
        ("a",),
        (-1.0,),
        (30, math.inf),
        ((1,),),
    ),
    bool: (0, 1, -1, 2**31, 10**5000, 0.0, math.nan, math.inf, "True", "", None, b"yes"),
}


@pytest.mark.parametrize("key", DEFAULTS)
def test_every_key_refuses_hostile_values_in_one_sentence(key):
    kind = type(DEFAULTS[key])
    for value in HOSTILE[kind]:
        low, high = KEYS[key].least, KEYS[key].greatest
        if type(value) is kind is int and low <= value <= high:
            continue
        with refused(re.escape(f"config.{key} is ")) as caught:
            validate(changed(key, value), num_devices=1)
        assert len(str(caught.value)) < 400


def test_every_number_has_a_range_that_holds_its_default():
    for key, value in DEFAULTS.items():
        if type(value) in (int, float):
            assert -math.inf < KEYS[key].least <= value <= KEYS[key].greatest < math.inf, key


def test_a_missing_root_is_named():
    config = default_config()
    config.data.name, config.data.root = "folder", "/no/such/place"
    with refused("config.data.root is '/no/such/place', and there is no such directory"):
        validate(config, num_devices=1)


def test_strange_and_missing_keys_and_types_are_named():
    config = default_config()
    config.model.widht_multiplier = 0.5
    with refused("config.model.widht_multiplier is not a known key. Did you mean 'model.width_m"):
        validate(config, num_devices=1)
    config = ConfigDict({key: value for key, value in default_config().items() if key != "plateau"})
    with refused(r"config\.plateau\.factor is missing"):
        validate(config, num_devices=1)
    config = default_config()
    with config.ignore_type():
        config.batch_size = "many"
    with refused("config.batch_size is 'many'; it must be of type int"):
        validate(config, num_devices=1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_needs_no_other_key(name):
    config = default_config()
    config.schedule.name = name
    validate(config, num_devices=1)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"model.configuration": "ResNet-50", "model.batch_norm": True}, "are for the VGGs, and ResNet-50 is none"),
        ({"model.configuration": "Plain-34", "model.head": "gap"}, "are for the VGGs, and Plain-34 is none"),
        ({"model.shortcut": "C"}, "config.model.shortcut is 'C', and D has no shortcuts; leave it out."),
        ({"model.configuration": "Plain-34", "model.shortcut": "A"}, "and Plain-34 has no shortcuts"),
        ({"model.auxiliary": True}, "config.model.auxiliary is True, and D has no auxiliary classifiers"),
        (
            {"model.configuration": "GoogLeNet", "model.auxiliary": True, "image.crop": 64},
            "config.image.crop is 64, and a crop of 64 pixels is too small: nothing would be left of it at aux1_pool",
        ),
        (
            {"model.configuration": "AlexNet", "image.crop": 227, "model.width_multiplier": 1 / 96},
            "leaves channels that the 2 groups of conv2 and the 2 groups of conv5 do not divide; "
            "give another, as 0.25.",
        ),
        (
            {"model.batch_norm": True, "batch_size": 1},
            "batch normalisation would see 1 image at a time; give at least 2",
        ),
        (
            {"model.configuration": "ResNet-18", "batch_size": 8, "accumulation_steps": 8},
            "batch normalisation would see 1 image at a time",
        ),
        (
            {"image.area_min": 0.08, "image.padding": 4},
            "a random resized crop, for which there is no config.image.padding",
        ),
        ({"image.padding": 224}, "config.image.padding is 224, and a crop of config.image.crop, 224, could lie in it"),
        (
            {"schedule.name": "steps", "schedule.drop_epochs": "30,80", "num_epochs": 74.0},
            "'30,80', of which 80 lie beyond config.num_epochs, 74; drop earlier or train longer.",
        ),
        (
            {"schedule.warmup_epochs": 74.0},
            "config.schedule.warmup_epochs is 74, and config.num_epochs, 74, is no longer",
        ),
    ],
)
def test_what_excludes_each_other_is_said(values, sentence):
    config = default_config()
    for key, value in values.items():
        config.update_from_flattened_dict({key: value})
    with refused(re.escape(sentence)):
        validate(config, num_devices=1)


@pytest.mark.parametrize(
    ("file", "argument", "name"),
    [
        ("vgg16_bn", None, "D-BN"),
        ("vgg16_gap", "S=256", "D-BN-GAP"),
        ("resnet50", "18", "ResNet-18"),
        ("resnet_cifar", "110", "ResNet-110"),
        ("resnet_cifar", "plain-56", "Plain-56"),
        ("alexnet", None, "AlexNet"),
        ("googlenet", None, "GoogLeNet"),
    ],
)
def test_configurations_of_other_networks(file, argument, name):
    get_config = importlib.import_module(f"configs.{file}").get_config
    config = get_config(argument) if argument else get_config()
    validate(config, num_devices=1)
    assert recipe_of(config).model.network.name == name
    if file == "resnet_cifar":  # He et al. 2015, §4.2, in iterations
        rates = [
            learning_rate(recipe_of(config), step, 50_000 / 128, Plateau())
            for step in (1000, 31_999, 32_000, 48_000, 63_999)
        ]
        assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.001])
        assert config.num_epochs * 50_000 / 128 == pytest.approx(64_000)


def test_a_network_that_is_that_of_the_start_stays_as_it_is_without_a_start(tmp_path):
    for start in ("", "none"):
        config = default_config()
        config.init_network, config.init_from = True, start
        assert with_start(config, (), tmp_path) is config


@pytest.mark.parametrize(("argument", "crop", "scale"), [("64", 64, 73), ("112", 112, 128), ("224", 224, 256)])
def test_the_small_configuration_scales_with_its_crop(argument, crop, scale):
    config = importlib.import_module("configs.small").get_config(argument)
    config.data.root = str(REPOSITORY)
    image = validate(config, num_devices=8).image
    assert (image.crop, image.scale_min, image.scale_max, image.eval_scale) == (crop, scale, scale, scale)
    with refused("does not know the argument '65'"):
        importlib.import_module("configs.small").get_config("65")
