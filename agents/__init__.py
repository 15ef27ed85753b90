"""Reference agents. Nothing in ``personalllm_env`` imports this package: it is reached by name.

Whoever adds an agent adds one file and one line here.
"""

from __future__ import annotations

AGENTS: dict[str, str] = {
    "uniform": "personalllm_env.agents.simple:Uniform",
    "best-responder": "personalllm_env.agents.simple:BestResponder",
    "popular": "personalllm_env.agents.linear:Popular",
    "epsilon-greedy": "personalllm_env.agents.linear:EpsilonGreedy",
    "linucb": "personalllm_env.agents.linear:LinUCB",
    "thompson": "personalllm_env.agents.linear:LinearThompson",
    "empirical-bayes": "personalllm_env.agents.empirical_bayes:EmpiricalBayes",
    "eb-gaussian": "personalllm_env.agents.empirical_bayes:EmpiricalBayes@components=1",
    "eb-thompson": "personalllm_env.agents.empirical_bayes:EmpiricalBayes@explore=thompson",
    "retrieval": "personalllm_env.agents.retrieval:Retrieval",
    "retrieval-winning": "personalllm_env.agents.retrieval:Retrieval@embedding=winning",
    "retrieval-losing": "personalllm_env.agents.retrieval:Retrieval@embedding=losing",
    "retrieval-self": "personalllm_env.agents.retrieval:Retrieval@pool=self",
    "retrieval-everyone": "personalllm_env.agents.retrieval:Retrieval@pool=everyone",
    "retrieval-steady": "personalllm_env.agents.retrieval:Retrieval@background=20",
    "tabular": "personalllm_env.agents.tabular:Tabular",
    "tabular-greedy": "personalllm_env.agents.tabular:Tabular@explore=greedy",
    "tabular-thompson": "personalllm_env.agents.tabular:Tabular@explore=thompson",
    "feature-bayes": "personalllm_env.agents.feature_bayes:FeatureBayes",
    "exact-bayes": "personalllm_env.agents.bayes:ParticleBayes",
    "popular-scores": "personalllm_env.agents.privileged:PopularFromScores",
    "decoder-oracle": "personalllm_env.agents.privileged:DecoderOracle",
    "oracle": "personalllm_env.agents.privileged:Oracle",
}
"""Names of the agents, and where they are. Loaded only when asked for."""
