"""Fixtures. JAX gets eight CPU devices before it is imported; a test that needs one names one."""

import os
import shutil
import signal
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Programs of tests run a few times: optimised little, they compile in a third of the time. See `fully_optimised`.
# jaxlib aborts on a flag that it does not know, as 0.12 does not know the last one.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true" + (
    " --xla_cpu_use_fusion_emitters=false" if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11) else ""
)
# Tests share compiled programs: with the programs that tests start, with pytest's other workers, and with the next
# run. A bounded cache is a locked one, so that no two processes meet in a file.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**30)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"  # what takes less is not worth the file
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import pytest

from tests.cloud import Cloud, make_clone
from tests.runs import make_run, varied_images
from vgg_jax.config import default_config
from vgg_jax.data.builtin import CLASS_NAMES, render

REPOSITORY = Path(__file__).parents[1]

# Programs that tests start are to hear these, also where the tests themselves run in the background or under nohup.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """A folder of 90 training and 31 validation images in three classes."""
    root = tmp_path_factory.mktemp("images")
    for split, count, first in (("train", 90, 0), ("validation", 31, 100_000)):
        for i in range(count):
            image, label = render(first + 10 * (i // 3) + i % 3)
            file = root / split / CLASS_NAMES[label] / f"{i:03d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
    return root


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """Where prepared data lies; one place, so that it is prepared once."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def tiny_config(images, prepared):
    """A model that trains in seconds on `images`: 12 steps an epoch, which no epoch's edge divides."""
    config = default_config()
    config.model.configuration = "A"
    config.model.num_classes = 3
    config.model.width_multiplier = 1 / 16
    config.model.fc_width = 16
    config.image.crop = 32
    config.image.scale_min = 36
    config.image.scale_max = 40
    config.batch_size = 8
    config.num_epochs = 3.0
    config.log_every_steps = 5
    config.checkpoint_every_steps = 4
    config.optimizer.learning_rate = 1e-3
    config.data.name = "folder"
    config.data.root = str(images)
    config.data.dir = str(prepared)
    config.data.threads = 2
    return config


@pytest.fixture
def fully_optimised(monkeypatch):
    """Programs that this test starts compile as a user's do."""
    monkeypatch.setenv("XLA_FLAGS", "")


@pytest.fixture(scope="session")
def real_images() -> Path:
    """Real images: the directory that VGG_JAX_PICTURES names."""
    data = Path(os.environ.get("VGG_JAX_PICTURES", REPOSITORY.parent / "shared" / "data"))
    if not data.is_dir():
        pytest.skip(f"no real images in {data}; name a directory of them with VGG_JAX_PICTURES")
    return data


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A folder of images of awkward sizes, to be evaluated; see `tests.runs`."""
    return varied_images(tmp_path_factory.mktemp("varied"))


@pytest.fixture
def net_config(tiny_config, photos):
    """A narrow net A at crop 64, S = 73, on `photos`."""
    tiny_config.image.crop = 64
    tiny_config.image.scale_min = tiny_config.image.scale_max = 73
    tiny_config.data.root = str(photos)
    return tiny_config


@pytest.fixture
def run(net_config, tmp_path) -> Path:
    """Its workdir, with random weights."""
    return make_run(tmp_path / "run", net_config)


@pytest.fixture(scope="session")
def clone(tmp_path_factory) -> Path:
    """A clone of this repository, the working tree committed."""
    return make_clone(tmp_path_factory.mktemp("clone") / "vgg_jax")


@pytest.fixture
def cloud(tmp_path, clone):
    """A fake cloud in which launchers run."""
    yield Cloud(tmp_path, clone)
    shutil.rmtree(clone / "runs", ignore_errors=True)
