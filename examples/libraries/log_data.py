"""Log an agent that explores, hand the log to Vowpal Wabbit, see what it learns of users.

    python examples/libraries/log_data.py [figure.png]

Needs: pip install 'personalllm-env[bandits]'.
"""

import sys

import numpy as np
import vowpalwabbit
from matplotlib.figure import Figure

from personalllm_env.envs.translate import task_from_settings
from personalllm_env.logged.record import build_agent, record_log
from personalllm_env.logged.vw import vw_examples
from personalllm_env.registry import find_agent

USERS, INTERACTIONS, LAST = 150, 50, 10
LENGTHS = (0, 5, 10, 20, 40)


def utility_of_picks(log, first_n):
    """Learns from each user's first n interactions; returns the utility of its last picks."""
    # Every user has a taste (-q ur) beside everybody's (r).
    workspace = vowpalwabbit.Workspace("--cb_explore_adf --epsilon 0 --quiet -q ur -l 0.1")
    for lines in vw_examples(log.rows(log.t < first_n)):
        workspace.learn(lines)
    held_out = log.rows(log.t >= INTERACTIONS - LAST)
    worth = np.empty(len(held_out))
    for i, lines in enumerate(vw_examples(held_out)):
        shown = 1 + held_out.action[i]
        lines[shown] = lines[shown].partition(" ")[2]  # without the label
        law = np.array(workspace.predict(lines))
        worth[i] = law @ held_out.truth[i] / law.sum()
    workspace.finish()
    return worth.reshape(USERS, LAST).mean(axis=1)


def main(path):
    """Logs, learns, prints and plots."""
    task = task_from_settings(horizon=INTERACTIONS).side("train")
    agent = build_agent(find_agent("linucb"), task)
    log = record_log(agent, task, num_users=USERS, seed=0, exploration=0.3)
    shown = np.take_along_axis(log.truth, log.action[:, None], axis=1)[:, 0]
    print(f"{len(log)} interactions logged; propensities {np.unique(log.propensity).round(4)}")
    print(
        f"mean utility shown: {shown.mean():.2f}; of a random response {log.truth.mean():.2f}"
    )
    means, errors = [], []
    for n in LENGTHS:
        worth = utility_of_picks(log, n)
        means.append(worth.mean())
        errors.append(1.96 * worth.std() / np.sqrt(USERS))
        print(
            f"VW after {n:2d} logged interactions per user: {means[-1]:.2f} ±{errors[-1]:.2f}"
        )
    served = shown[log.t >= INTERACTIONS - LAST].mean()
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.errorbar(LENGTHS, means, errors, marker="o", label="Vowpal Wabbit, from the log")
    axes.axhline(served, ls="--", color="black", label="what linucb showed, exploring")
    axes.axhline(log.truth.mean(), ls=":", color="gray", label="a random response")
    axes.set_xlabel("logged interactions per user")
    axes.set_ylabel(f"utility at the last {LAST} interactions")
    axes.legend(loc=(0.5, 0.25))
    figure.savefig(path)
    print(f"figure: {path}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "log_data.png")
