"""The README's example runs as it stands."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]


def test_the_example_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(compile(example, "README.md", "exec"), namespace)
    assert (tmp_path / "model_2_4" / "saved_model.pb").exists()
    verification = namespace["tfmot_asp"].export.verify("model_2_4")
    assert verification.ok
    assert str(verification) in capsys.readouterr().out


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(((?!http)[^)#]+)", (ROOT / "README.md").read_text())
    assert targets
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert not missing
