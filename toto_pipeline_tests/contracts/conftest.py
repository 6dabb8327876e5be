from __future__ import annotations

import pytest

from toto_pipeline_tests.contracts.libraries import Libraries


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    return Libraries(tmp_path_factory.mktemp("libraries"))
