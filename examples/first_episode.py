"""One user, one episode: what an agent sees, does and hears."""

import gymnasium as gym

import personalllm_env  # noqa: F401 - registers the environments

env = gym.make(
    "PersonalLLM/Select-v0", horizon=5, feedback=["like", {"silence": {"probability": 0.5}}]
)
obs, info = env.reset(seed=0)
print(f"8 responses with {obs['response_features'].shape[1]} features each")

over = False
while not over:
    action = int(obs["response_features"].sum(axis=1).argmax())  # any rule will do
    obs, reward, terminated, truncated, info = env.step(action)
    over = terminated or truncated
    opinion = "likes it" if reward else "does not like it"
    said = opinion if obs["heard"][0] else "says nothing"
    print(f"shown response {action}: the user {said} (utility {info['utility']:+.2f})")
