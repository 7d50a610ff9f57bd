"""A run killed at three random moments and resumed is, bit for bit, the run that nobody killed."""

import kill_resume


def test_three_kills(base_dir, monkeypatch):
    monkeypatch.setattr(kill_resume, "STEPS", 9)  # two more than the step in which it is killed
    rows = kill_resume.measure(3, str(base_dir))
    assert [row["phase"] for row in rows] == ["step", "checkpoint", "latent cache"]
    for row in rows:
        assert row["killed"] and row["resumed"], row
        assert row["equal"] and row["each_step_once"], row
