"""`--help` of each subcommand: an example that can be typed, shipped checkpoints by name, a sentence on each option."""
import functools
import inspect
import re
import shlex

import pytest

from gslrm_mouse import cli
from gslrm_mouse.evaluation.sensitivity import sensitivity_file
from gslrm_mouse.models.checkpoint import SHIPPED

TAKES_WEIGHTS = "checkpoint", "init" # names of options


def help_of(name, capsys) -> str:
    with pytest.raises(SystemExit) as end: cli.main([name, "--help"])
    assert end.value.code == 0
    return re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out) # the frames that terminals get


def entries_of(text) -> dict: # how an option or a positional argument is typed: what is said of it
    "Entries begin two columns from the margin; their text follows on that line after two blanks, or below."
    entries, head = {}, None
    for line in text.splitlines():
        if re.match(r" {2}[-A-Z[]", line):
            head, _, beside = line.strip().partition("  ")
            while head in entries: head += "'" # positional arguments have names of types
            entries[head] = beside
        elif head and line.startswith(" "*3): entries[head] += " " + line.strip()
        else: head = None
    return entries


@pytest.fixture(params=cli.COMMANDS)
def command(request): return request.param


def test_every_option_is_explained(command, capsys):
    entries = entries_of(help_of(command, capsys))
    parameters = inspect.signature(cli.COMMANDS[command]).parameters
    assert len(entries) == 1 + len(parameters) # and --help
    for head, text in entries.items():
        explained = re.sub(r"\((default: [^)]*|required|repeatable)\)", "", text)
        assert len(re.findall("[A-Za-z]{2,}", explained)) >= 1, f"{command} {head}: {text!r}"


def test_shipped_checkpoints_are_named(command, capsys):
    entries = entries_of(help_of(command, capsys))
    options = [head for head in entries if head.split()[0][2:] in TAKES_WEIGHTS]
    parameters = inspect.signature(cli.COMMANDS[command]).parameters
    assert len(options) == sum(name in parameters for name in TAKES_WEIGHTS)
    for head in options:
        assert all(re.search(rf"\b{name}\b", entries[head]) for name in SHIPPED), f"{command} {head}: {entries[head]!r}"


def test_the_example_can_be_typed(command, capsys, monkeypatch):
    text = " ".join(help_of(command, capsys).split())
    example = re.search(rf"For example: gslrm_mouse ({command} .*?)(, | +(positional arguments|options) )", text)
    assert example, text
    calls = []

    @functools.wraps(cli.COMMANDS[command])
    def called(*args, **kwargs): calls.append(kwargs)

    monkeypatch.setitem(cli.COMMANDS, command, called)
    cli.main(shlex.split(example[1]))
    assert len(calls) == 1


def test_the_sensitivity_table_has_the_name_that_the_help_says(capsys):
    entries = entries_of(help_of("sensitivity", capsys))
    of_out = next(text for head, text in entries.items() if head.startswith("--out"))
    assert f" {sensitivity_file('CHECKPOINT.safetensors')} " in f" {of_out} "
