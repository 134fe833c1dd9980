"""One smoke reproduction per package, shared by the suite."""

import threading
from pathlib import Path

import pytest
from fake_hub import TOKEN, Hub
from huggingface_hub import constants
from packages import PACKAGES, run

from docs.build import PAPERS


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """CACHE_ROOT of the suite: simulated and packed data are made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session", params=PAPERS)
def package(request):
    return PACKAGES[request.param]


@pytest.fixture(scope="session")
def smoke(package, cache, tmp_path_factory) -> Path:
    """Folder with `runs/` and `results/` of `make reproduce-<paper> TIER=smoke`."""
    out = tmp_path_factory.mktemp(f"smoke-{package.name}")
    options = ("--config", package.config, f"--runs={out / 'runs'}", f"--results={out / 'results'}")
    run(f"{package.name}.reproduce", *options, cache=cache, fresh=True)
    return out


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on loopback, a token that may write, an empty cache. Weights go by LFS: Xet has servers of its own."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)  # HF_ENDPOINT as read at the start of a process
    address = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield server
    server.shutdown()
    server.server_close()
