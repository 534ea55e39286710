"""The documents: every command parses, and every link leads somewhere."""

import importlib.util
import os
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
import tyro

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("checkpoints/*/README.md")]
DOCUMENTS = sorted(str(path.relative_to(ROOT)) for path in PAGES)


@cache
def text_of(document: str) -> str:
    return (ROOT / document).read_text("utf-8")


def commands(text: str) -> list[list[str]]:
    """Words of every command of a text that runs one of our scripts, from the script's name on."""
    found = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in found for line in block.replace("\\\n", " ").splitlines()]
    # Between sentences, a name with a few options is no whole command.
    lines += re.findall(r"`((?:python|torchrun) [^`\n]*|\w+\.py [^`\n]*--out [^`\n]*)`", text)
    listed = []
    for line in lines:
        for part in re.split(r"&&|;", line):
            words = shlex.split(part, comments=True) if "(" not in part else []
            scripts = [k for k, word in enumerate(words) if word.endswith(".py")]
            if scripts and "..." not in words and "FOLDER" not in part:
                listed.append(words[scripts[0] :])
    return listed


@cache
def config_of(script: str) -> type:
    """Class that holds the options of a script, which is not run."""
    name = "documented_" + script.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # tyro looks there for the comments behind the options
    with (
        patch.dict(os.environ),
        patch.object(sys, "path", [str((ROOT / script).parent), *sys.path]),
    ):
        spec.loader.exec_module(module)  # some benchmarks set threads in os.environ
    return module.Config


def fault_of(words: list[str], capsys: pytest.CaptureFixture) -> str:
    """What the script says about its options, or nothing."""
    script, *arguments = words
    if not (ROOT / script).is_file():
        return f"{script} does not exist"
    try:
        tyro.cli(config_of(script), args=arguments)
    except SystemExit as end:
        return capsys.readouterr().err if end.code else ""
    return ""


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_parse(document, capsys):
    faults = [
        f"{shlex.join(words)}\n{fault}"
        for words in commands(text_of(document))
        if (fault := fault_of(words, capsys))
    ]
    assert not faults, f"{document}:\n" + "\n".join(faults)


def test_commands_are_found_and_judged(capsys):
    text = "```\npip install x && python train.py --data a --out b --no-such-option 3  # so\n```\n"
    text += "| `torchrun --nproc-per-node 2 train.py --data a --out b` | `python nothing.py` |"
    found = commands(text)
    assert found[0] == ["train.py", *"--data a --out b --no-such-option 3".split()]
    assert found[1] == ["train.py", "--data", "a", "--out", "b"]
    faults = [fault_of(words, capsys) for words in found]
    assert "no-such-option" in faults[0] and faults[1] == "" and "exist" in faults[2]
    assert len(commands(text_of("README.md"))) > 8


def anchors(text: str) -> set[str]:
    """Names that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#{1,6} (.*)$", text, flags=re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def broken_links(document: str) -> list[str]:
    """Links and images of a document that lead to no file or heading."""
    text = re.sub(r"^```.*?^```", "", text_of(document), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    broken = []
    for target in targets:
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        if not path.exists() or (anchor and anchor not in anchors(path.read_text("utf-8"))):
            broken.append(target)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    assert broken_links(document) == []


def test_broken_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b` & c\n[x](#a-b--c) [y](#d) ![z](no.png) [w](page.md#a-b--c)\n", "utf-8")
    assert broken_links(str(page)) == ["#d", "no.png"]
