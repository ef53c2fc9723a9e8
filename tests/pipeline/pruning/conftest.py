"""One whole study of levels, which no test changes."""

from typing import Any

import pytest
from makers.levels import ALL, CNN, Study, prune_config, tiny_runs

from dlth.pipeline.pruning.prune import found_prune
from dlth.pipeline.studies.worker import run_study


@pytest.fixture(scope="session")
def cnn(shared: dict[str, Any]) -> dict[str, Any]:
    """Settings of train of a convolutional network with buffers; six steps, without tickets."""
    return tiny_runs(shared, **CNN)


@pytest.fixture(scope="session")
def whole(cnn: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two rounds of every arm with two seeds, rewound to step 2, by one worker that nobody disturbs."""
    folder = tmp_path_factory.mktemp("levels") / "study"
    plan = found_prune(prune_config(folder, arm=ALL, seeds="0,1"), cnn)
    return Study(folder, plan, run_study(folder, plan))
