"""The papers of the house say what is so."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import segzoo
from segzoo import cli, data, study

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")


def blocks(text, language):
    return [body for kind, body in FENCE.findall(text) if kind == language]


def slug(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_readme_has_two_set_up_commands():
    commands = [body for body in blocks(README, "sh") if "venv" in body]
    assert len(commands) == 2
    for command in commands:
        parts = [shlex.split(part) for part in command.split("&&")]
        assert [part[0] for part in parts] == ["python3", ".venv/bin/pip", ".venv/bin/python"]
        assert parts[1][1:4] == ["install", "-c", "constraints.txt"]
    assert "experiments.shapes" in commands[0]
    assert "pytest" in commands[1]


def test_readme_example_runs(capsys):
    (code,) = blocks(README, "python")
    assert len(code.splitlines()) <= 15
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    told = re.findall(r"^print.*?#\s*(\([\d, ]+\))", code, re.MULTILINE)
    assert printed[-2:] == told == ["(1, 45, 60, 3)", "(572, 572)"]


def test_every_model_is_named_with_its_parameters():
    # That the numbers kept are those counted, and those published, is for tests/test_zoo.py.
    facts = json.loads((ROOT / "docs/models.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([\d,]+) \|", page, re.MULTILINE))
    assert sorted(told) == segzoo.list_models()
    assert told == {name: f"{found['parameters']:,}" for name, found in facts.items()}
    families = README.partition("<!-- models:begin -->")[2].partition("<!-- models:end -->")[0]
    assert sorted(re.findall(r"`(\w+)`", families)) == segzoo.list_models()


@pytest.mark.parametrize("page", ["README.md", "docs/data.md"])
def test_every_dataset_is_named(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert [name for name in data.list_datasets() if f"`{name}`" not in text] in ([], ["folder"])


def test_every_experiment_is_named(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    for name in study.names():
        (row,) = re.findall(rf"^\| `{name}` \|.*\|(.*)\|$", text, re.MULTILINE)
        declared = study.find(name)
        assert set(re.findall(r"`(\w+)`", row)) == {"full", *declared.presets}


def test_every_command_is_named():
    text = (ROOT / "docs/command-line.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `segzoo ([\w-]+)", text, re.MULTILINE)) == set(cli.COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_architecture_names_every_file():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    tree = text.partition("## The house")[2].partition("\n## ")[0]
    named, folders = set(), []
    for line in tree.splitlines():
        if not line.startswith("    "):
            continue
        depth = (len(line) - len(line.lstrip())) // 2 - 2
        # The names come first; what they are for follows after at least two spaces.
        for name in line.strip().split("  ")[0].split():
            path = "".join(folders[:depth]) + name
            assert (ROOT / path).exists(), path
            if name.endswith("/"):
                folders = [*folders[:depth], name]
            else:
                named.add(path)
    found = {str(path.relative_to(ROOT)) for path in (ROOT / "segzoo").rglob("*.py")}
    implied = {name for name in found if name.endswith("__init__.py")} - {"segzoo/__init__.py"}
    assert {name for name in named if name.startswith("segzoo/")} == found - implied


def test_tables_are_not_stale():
    command = [sys.executable, "-m", "segzoo.cli", "report", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_constraints_are_exact_and_cover_what_is_needed():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    pinned = {pin.partition("==")[0].replace("_", "-").lower() for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    needed += [*project["optional-dependencies"]["test"], *project["optional-dependencies"]["docs"]]
    names = {re.match(r"[\w.-]+", need)[0].replace("_", "-").lower() for need in needed}
    assert names - {"segzoo"} <= pinned
