"""One whole study of levels, which no test changes."""

from dataclasses import replace
from typing import Any

import pytest
from makers.pruning import ALL, CNN, Study, prune_config, the_run, tiny_runs

from dlth.pipeline.pruning.planning import plan_prune
from dlth.pipeline.studies.founding import founded
from dlth.pipeline.studies.worker import run_study


@pytest.fixture(scope="session")
def cnn(shared: dict[str, Any]) -> dict[str, Any]:
    """Settings of train of a convolutional network with buffers; six steps, without tickets."""
    return tiny_runs(shared, **CNN)


@pytest.fixture(scope="session")
def whole(cnn: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two rounds of every arm, and the first level of lt and rr with another seed, rewound to step 2, by one worker
    that nobody disturbs.
    """
    folder = tmp_path_factory.mktemp("levels") / "study"
    plan = plan_prune(prune_config(folder, arm=ALL, seeds="0,1"), cnn)
    others = [the_run(plan, arm, level, seed=1) for arm, level in (("", 0), ("lt", 1), ("rr", 1))]
    part = replace(plan, runs=(*(run for run in plan.runs if run.seed == 0), *others))
    founded(folder, "two rounds, and a seed's first", lambda known: part)
    return Study(folder, part, run_study(folder, part))
