"""One smoke reproduction per package, shared by the suite."""

from pathlib import Path

import pytest
from packages import PACKAGES, run


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """CACHE_ROOT of the suite: simulated and packed data are made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session", params=PACKAGES)
def package(request):
    return PACKAGES[request.param]


@pytest.fixture(scope="session")
def smoke(package, cache, tmp_path_factory) -> Path:
    """Folder with `runs/` and `results/` of `make reproduce-<paper> TIER=smoke`."""
    out = tmp_path_factory.mktemp(f"smoke-{package.name}")
    options = ("--config", package.config, f"--runs={out / 'runs'}", f"--results={out / 'results'}")
    run(f"{package.name}.reproduce", *options, cache=cache, fresh=True)
    return out
