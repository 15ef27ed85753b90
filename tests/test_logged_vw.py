"""Logs as Vowpal Wabbit's lines: read back, and learnt from by the real library."""

from dataclasses import replace

import numpy as np
import pytest

from personalllm_env.envs.translate import task_from_settings
from personalllm_env.logged.record import build_agent, record_log
from personalllm_env.logged.vw import read_vw, vw_examples, write_vw
from personalllm_env.registry import find_agent


def log_of(task, agent="linucb", *, num_users=12, **settings):
    agent = build_agent(find_agent(agent), task)
    return record_log(agent, task, num_users=num_users, seed=0, **settings)


def test_a_block_says_what_was_shown(tasks):
    log = log_of(tasks["reward"])
    lines = next(vw_examples(log))
    assert len(lines) == 1 + 4
    assert lines[0].startswith("shared |u 0 |p 0:")
    labelled = [line for line in lines[1:] if not line.startswith("|r 0:")]
    assert labelled == [lines[1 + log.action[0]]]
    action, cost, propensity = labelled[0].split(" ")[0].split(":")
    assert int(action) == log.action[0]
    assert np.float32(cost) == -log.reward[0]
    assert np.float32(propensity) == np.float32(log.propensity[0])


@pytest.mark.parametrize("name", ["reward", "like", "leaving", "silence"])
def test_lines_are_read_back_bit_for_bit(tasks, tmp_path, name):
    log = log_of(tasks[name])
    num = write_vw(log, tmp_path / "log.vw")
    heard = log.spoken()
    data = read_vw(tmp_path / "log.vw")
    assert num == len(heard) == len(data.action)
    assert np.array_equal(data.user, heard.user)
    assert np.array_equal(data.prompts, heard.prompt_features[heard.prompt])
    assert np.array_equal(data.responses, heard.candidates())
    assert np.array_equal(data.action, heard.action)
    assert np.array_equal(data.cost, -heard.reward)
    assert np.array_equal(data.propensity, heard.propensity.astype(np.float32))


def test_users_may_be_left_out(tasks, tmp_path):
    write_vw(log_of(tasks["reward"]), tmp_path / "log.vw", users=False)
    assert read_vw(tmp_path / "log.vw").user is None


def test_bad_files_and_empty_logs_are_refused(tasks, tmp_path):
    log, path = log_of(tasks["reward"]), tmp_path / "log.vw"
    with pytest.raises(ValueError, match="nothing was said"):
        write_vw(replace(log, heard=np.zeros(96, dtype=bool)), path)
    assert not path.exists()
    write_vw(log, path)
    lines = path.read_text(encoding="ascii").splitlines()
    lines[6] = "unshared"
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
    with pytest.raises(ValueError, match="block of line 7: expected 'shared"):
        read_vw(path)
    path.write_bytes(b"PK\x03\x04\xd2")  # as of another format
    with pytest.raises(ValueError, match=r"log\.vw: expected Vowpal Wabbit's lines, got"):
        read_vw(path)
    unlabelled = "shared |p 0:1\n|r 0:1\n\n"
    path.write_text(unlabelled, encoding="ascii")
    with pytest.raises(ValueError, match="expected one labelled response, got 0"):
        read_vw(path)


def test_vowpal_wabbit_learns_from_the_lines(tmp_path):
    """What it would show after reading the log is better than what the log shows: 4.5 sd."""
    vowpalwabbit = pytest.importorskip("vowpalwabbit")
    task = task_from_settings(horizon=25)
    log = log_of(task, "uniform", num_users=120)
    write_vw(log, tmp_path / "log.vw")
    flags = "--cb_explore_adf --epsilon 0 --quiet -q ur"
    with vowpalwabbit.Workspace(f"{flags} -d {tmp_path / 'log.vw'}") as workspace:
        # The file was read when the workspace was made.
        assert workspace.get_weighted_examples() == len(log)
        gains = []
        examples = vw_examples(log)
        for i, lines in enumerate(examples):
            lines[1 + log.action[i]] = lines[1 + log.action[i]].partition(" ")[2]
            law = np.array(workspace.predict(lines))
            gains.append(law @ log.truth[i] / law.sum() - log.truth[i].mean())
    of_users = np.bincount(log.user, gains) / 25
    assert of_users.mean() > 4.5 * of_users.std() / np.sqrt(120)
    assert of_users.mean() > 0.2
