"""Logs as RLlib's offline columns, learnt from by the real library."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("ray.rllib")

PAGE = Path(__file__).parents[1] / "docs" / "libraries" / "logged-data.md"
# On two cores, with the page's own words in place of RECIPE.
LEARN = textwrap.dedent(
    """
    import os
    import sys

    import gymnasium as gym
    import numpy as np
    import ray
    import torch
    from ray.rllib.algorithms.bc import BCConfig
    from ray.rllib.algorithms.marwil import MARWILConfig

    import personalllm_env
    from personalllm_env.envs.wrappers import Flat

    def main(name):
        torch.set_num_threads(1)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        env = Flat(gym.make("PersonalLLM/Select-v0", horizon=10))
        config = {"BC": BCConfig, "MARWIL": MARWILConfig}[name]()
        config = (
            RECIPE
        )
        config = config.training(lr=3e-3, train_batch_size_per_learner=512)
        algorithm = config.build_algo()
        losses = []
        for _ in range(3):
            result = algorithm.train()["learners"]["default_policy"]
            losses.append(float(result["policy_loss"]))
        print(name, losses, flush=True)
        assert losses[-1] < losses[0] - 0.2, losses
        ray.shutdown()
        os._exit(0)  # threads of Ray Data may wait for data that nobody will take

    if __name__ == "__main__":
        main(*sys.argv[1:])
    """
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BC", "MARWIL"])
def test_offline_algorithms_learn_from_the_file(tmp_path, name):
    from personalllm_env.envs.translate import task_from_settings
    from personalllm_env.logged.record import build_agent, record_log
    from personalllm_env.logged.rllib_files import write_rllib
    from personalllm_env.registry import find_agent

    task = task_from_settings(horizon=10)
    agent = build_agent(find_agent("popular"), task, history_users=300)
    log = record_log(agent, task, num_users=300, seed=0)
    write_rllib(log, task, tmp_path / "log.parquet")
    script = tmp_path / "learn.py"
    [recipe] = re.findall(r"```\n(config\..*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    script.write_text(LEARN.replace("RECIPE", recipe), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), name],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=tmp_path,
        env=_environment(),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{name} [" in done.stdout


def _environment():
    import os

    kept = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    return kept | {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
