"""How the two workers of `make test` share the tests: a file stays together, for its fixtures are made once.

The suite over all packages takes longest and starts first, one package after the other; tests of two processes each
follow one another on one worker.
"""

import pytest


@pytest.hookimpl(tryfirst=True)  # before the workers write the groups into the names
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "conformance" not in item.path.parts)
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            package = getattr(item, "callspec", None) and item.callspec.params.get("package")
            item.add_marker(pytest.mark.xdist_group(f"conformance-{package}" if package else str(item.path)))
