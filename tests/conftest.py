"""How the two workers of `make test` share the tests: what uses the same fixtures stays together.

That is a file, and of the suite over all packages what belongs to one package. This suite takes longest, so it starts
first. (xdist's own groups do nothing under the pinned pytest.)
"""

import re

import pytest
from xdist.scheduler import LoadScopeScheduling


class ByFixtures(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        package = re.match(r"\w+\[(\w+)", test)  # of test[meit] and of test[meit-train]
        return f"conformance-{package[1]}" if "/conformance/" in file and package else file


def pytest_xdist_make_scheduler(config, log) -> ByFixtures:
    return ByFixtures(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "conformance" not in item.path.parts)
