"""Is another agent better than the one that served the users? An estimate from its log.

python examples/libraries/off_policy.py [figure.png]
"""

import sys

import numpy as np
from matplotlib.figure import Figure

from personalllm_env import load_bank
from personalllm_env.logged.estimators import confidence, effective_size, importance_weights
from personalllm_env.logged.off_policy import estimate, target_probabilities
from personalllm_env.logged.off_policy_models import pooled_rewards
from personalllm_env.logged.record import build_agent, record_log
from personalllm_env.registry import find_agent
from personalllm_env.task import Task

USERS, OTHERS = 300, 300


def main(figure_path: str) -> None:
    """Records a log of ``popular`` and asks it about three other agents."""
    task = Task(load_bank(), horizon=30).side("test")
    agents = {
        name: build_agent(find_agent(name), task, history_users=OTHERS)
        for name in ("popular", "uniform", "linucb", "empirical-bayes")
    }
    log = record_log(agents["popular"], task, num_users=USERS, seed=0, exploration=0.2)
    reward, shown = pooled_rewards(log), len(log)
    print(f"{shown:,} interactions served by popular, a fifth of them at random")
    print(f"mean reward in the log: {log.reward.mean():.3f}\n")

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for x, (name, agent) in enumerate(agents.items()):
        law = target_probabilities(agent, log, np.random.default_rng(0))
        weights = importance_weights(law, log.action, log.propensity)
        truth = (law * log.truth).sum() / shown  # which only a simulator knows
        found = estimate(log, law, reward)
        ends = confidence(list(found.values()))
        print(f"{name}: truth {truth:.3f}, effective size {effective_size(weights):,.0f}")
        axes.plot((x - 0.4, x + 0.4), (truth, truth), color="black", lw=1)
        for i, (kind, (value, low, high)) in enumerate(zip(found, ends, strict=True)):
            print(f"  {kind:6s}{value:7.3f}  [{low:6.3f}, {high:6.3f}]")
            place, error = x + 0.14 * (i - 2), [[value - low], [high - value]]
            axes.errorbar(place, value, error, fmt="o", ms=4, color=f"C{i}")
            if x == 0:
                axes.plot([], [], "o", color=f"C{i}", label=kind)
    axes.set_xticks(range(len(agents)), list(agents))
    axes.set_ylabel("mean reward per interaction")
    axes.set_title("estimated from the log of popular (line: the truth)", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(figure_path, dpi=120)
    print(f"\nfigure: {figure_path}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "off_policy.png")
