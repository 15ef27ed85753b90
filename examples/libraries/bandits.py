"""Bandits of other libraries learn new users from their clicks, beside ours.

    python examples/libraries/bandits.py [figure.png] [users]

Needs pip install 'personalllm-env[bandits]'. Every agent is first shown the clicks of 1,000
other users. The personalisation gain at the start of an episode and at its end says what it
then learnt from each user's own: 0 is what the average user likes, 1 the best response.
"""

import sys

from personalllm_env import load_bank
from personalllm_env.feedback import feedback_model
from personalllm_env.plots import plot_learning_curves
from personalllm_env.registry import find_agent
from personalllm_env.runner import compare
from personalllm_env.task import Task
from personalllm_env.users import DirichletUsers

NAMES = (
    *("uniform", "popular", "linucb", "best-responder"),
    *("vowpal-wabbit", "river-candidates", "mabwiser-candidates", "mabwiser-responders"),
    *("contextualbandits-candidates", "contextualbandits-responders"),
)
HORIZON, SPAN = 50, 10


def gain(regret, popular, span):
    """Returns the personalisation gain over some interactions, and its standard error."""
    mine, theirs = regret[:, span].mean(axis=1), popular[:, span].mean(axis=1)
    share = mine.mean() / theirs.mean()
    error = (mine - share * theirs).std() / theirs.mean() / len(mine) ** 0.5
    return 1 - share, error


def main(figure="bandits.png", users="100"):
    """Compares, prints and draws."""
    bank = load_bank()
    people = DirichletUsers(bank.num_reward_models, 0.05)
    task = Task(bank, people, feedback_model("click"), horizon=HORIZON)
    result = compare(map(find_agent, NAMES), task, seeds=[0], num_users=int(users))

    popular, ends = result.runs["popular"][0].regret, {}
    print(f"{'agent':30s} gain, first {SPAN}     gain, last {SPAN}     decisions/s")
    for name, [run] in result.runs.items():
        (before, e), (after, f) = (
            gain(run.regret, popular, span) for span in (slice(SPAN), slice(-SPAN, None))
        )
        ends[name], speed = after, run.regret.size / run.seconds
        print(
            f"{name:30s} {before:6.2f} ±{1.96 * e:.2f}      {after:6.2f} ±{1.96 * f:.2f}"
            f"{speed:17,.0f}"
        )
    blind = [name for name in NAMES if name.endswith("-responders")]
    print(
        f"Best at the end: {max(ends, key=ends.get)}. {' and '.join(blind)}, whose arms are "
        f"the responders, never see a response: at most {max(ends[n] for n in blind):.2f}."
    )
    plot_learning_curves(result, figure, title="Agents of other libraries on clicks")
    print(f"Curves: {figure}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
