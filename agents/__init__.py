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

LIBRARY_AGENTS: dict[str, str] = {
    "vowpal-wabbit": "personalllm_env.agents.vowpal_wabbit:VowpalWabbit",
    "river-candidates": "personalllm_env.agents.river_models:RiverCandidates",
    "river-responders": "personalllm_env.agents.river_models:RiverResponders",
    "mabwiser-candidates": "personalllm_env.agents.mabwiser_models:MabwiserCandidates",
    "mabwiser-responders": "personalllm_env.agents.mabwiser_models:MabwiserResponders",
    "contextualbandits-candidates": (
        "personalllm_env.agents.contextual_bandits:ContextualCandidates"
    ),
    "contextualbandits-responders": (
        "personalllm_env.agents.contextual_bandits:ContextualResponders"
    ),
}
"""Agents made of other libraries (extra ``bandits``): found by name, and not among "all"."""

_FEW = "personalllm_env.agents.few_shot"
_BEST = "personalllm_env.agents.best_of_n"
_LOOKUP = "among=200"

WRITERS: dict[str, str] = {
    "zero-shot": "personalllm_env.agents.writers:ZeroShot",
    "copy": "personalllm_env.agents.writers:Copy",
    "summary": "personalllm_env.agents.summary:Summary",
    "k-shot-winning": f"{_FEW}:KShot@examples=winning",
    "k-shot-losing": f"{_FEW}:KShot@examples=losing",
    "k-shot-both": f"{_FEW}:KShot@examples=both",
    "k-shot-mislabelled": f"{_FEW}:KShot@examples=mislabelled",
    "k-shot-unpersonalised": f"{_FEW}:KShot@source=stranger",
    "k-shot-population": f"{_FEW}:KShot@source=everyone",
    "meta-winning": f"{_FEW}:MetaShot@embedding=winning",
    "meta-losing": f"{_FEW}:MetaShot@embedding=losing",
    "meta-winning-minus-losing": f"{_FEW}:MetaShot@embedding=difference",
    "meta-winning-lookup": f"{_FEW}:MetaShot@embedding=winning,{_LOOKUP}",
    "meta-losing-lookup": f"{_FEW}:MetaShot@embedding=losing,{_LOOKUP}",
    "meta-winning-minus-losing-lookup": f"{_FEW}:MetaShot@embedding=difference,{_LOOKUP}",
    "meta-unpersonalised": f"{_FEW}:KShot@source=strangers",
    "best-of-n": f"{_BEST}:BestOfN",
    "best-of-n-random": f"{_BEST}:BestOfNRandom",
    "best-of-n-oracle": f"{_BEST}:BestOfNOracle",
}
"""Names of the writers, and where they are."""
