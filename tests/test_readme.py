"""The code of the README runs and prints what it promises."""

import itertools
import re
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_twenty_lines_run(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(code, str(README), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    errors = [float(found) for found in re.findall(r"control error (\S+),", "\n".join(lines))]
    assert len(errors) == 7
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    assert "contracts by 0.50" in lines[-1]


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\(((?!https?:)[^)#]+)\)", README.read_text())
    assert targets
    assert [t for t in targets if not (README.parent / t).exists()] == []
