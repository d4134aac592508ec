"""The program as a whole: its help, its errors, its exit statuses."""

import json
import os
import resource
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from pickle import UnpicklingError

import pytest
from rich.table import Table
from rich.text import Text

from tests.cli.conftest import Visgraft
from visgraft.cli import main, program
from visgraft.cli.terminal import logging_as, print_error, print_json, print_line, print_rich, tell
from visgraft.errors import ModelError
from visgraft.reporting.progress import working

COMMANDS = ["init", "train", "demo", "show", "ask", "caption", "chat"]


def test_help_groups_the_commands(visgraft: Visgraft) -> None:
    help_ = visgraft("--help")
    assert help_.status == 0
    words = ("─ Build", "│ init", "─ Train", "│ train", "│ demo", "─ Look", "│ show", "─ Use", "│ ask", "│ caption")
    places = [help_.out.index(word) for word in words]
    assert places == sorted(places)
    assert visgraft().out == help_.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_in_its_help(visgraft: Visgraft, command: str) -> None:
    help_ = visgraft(command, "--help")
    assert help_.status == 0
    assert f"visgraft {command}" in help_.out.split("Example")[1]


def test_help_comes_fast_and_without_torch() -> None:
    code = (
        "import sys; from visgraft.cli import main; status = main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy', 'PIL'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else status)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of the processor, not of the clock: other work on the machine is no fault of ours.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.2


def test_the_version_is_printed(visgraft: Visgraft) -> None:
    assert visgraft("--version").out == "visgraft 0.1.0\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "error: No such command 'trian'. Did you mean 'train'? See `visgraft --help`.\n"),
        (["fit", "a.yaml"], "error: No such command 'fit': it is called 'estimate' today. See `visgraft --help`.\n"),
        (["words"], "error: No such command 'words': it is called 'inspect' today. See `visgraft --help`.\n"),
        (["ask", "run"], "error: Missing argument 'IMAGE'. See `visgraft ask --help`.\n"),
        (["ask", "--jsno"], "error: No such option: --jsno (Possible options: --json). See `visgraft ask --help`.\n"),
        (["init"], "error: Missing option '--data'. See `visgraft init --help`.\n"),
        (
            ["train"],
            "error: train: got neither a recipe nor --resume; name a recipe, such as easy_vqa (`visgraft recipes`)\n",
        ),
    ],
)
def test_wrong_arguments_get_one_line_and_status_2(visgraft: Visgraft, args: list[str], message: str) -> None:
    outcome = visgraft(*args)
    assert (outcome.status, outcome.out, outcome.err) == (2, "", message)


def test_an_error_has_a_traceback_only_with_debug(visgraft: Visgraft, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.yaml"
    line = (
        f"error: {missing}: no such recipe; need a YAML file, a run folder that holds recipe.yaml, "
        "or a name that `visgraft recipes` lists\n"
    )
    assert visgraft("show", missing).err == line
    outcome = visgraft("show", missing, "--debug")
    assert outcome.status == 2
    assert "Traceback" in outcome.err
    assert outcome.err.endswith(line)


def test_a_file_that_cannot_be_written_is_one_line_too(visgraft: Visgraft, folder: Path) -> None:
    outcome = visgraft("init", "--data", folder / "photos", "-o", folder / "photos" / "0.png" / "recipe.yaml")
    assert outcome.status == 2
    assert outcome.err == f"error: {folder / 'photos' / '0.png'}: File exists\n"


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(program, "command", lambda: fail)
    with pytest.raises(ZeroDivisionError):
        main(["show"])


def test_interrupts_are_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "command", lambda: interrupt)
    assert main(["show"]) == 130


def test_debug_may_stand_anywhere_but_behind_two_dashes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def note(args: list[str], **_: object) -> None:
        seen.append(args)

    monkeypatch.setattr(program, "command", lambda: note)
    main(["ask", "run", "--debug", "a.png", "why"])
    main(["ask", "run", "a.png", "--", "--debug"])
    assert seen == [["--debug", "ask", "run", "a.png", "why"], ["ask", "run", "a.png", "--", "--debug"]]


@pytest.mark.slow
def test_errors_reach_the_status_of_a_real_process(folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "visgraft", "ask", str(folder / "run"), "nowhere.png", "What is it?"],
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: nowhere.png: image file is missing\n"


def test_an_error_of_several_lines_stays_readable(visgraft: Visgraft, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ModelError("a [bold]name[/bold] in brackets\nand what to do")

    monkeypatch.setattr(program, "command", lambda: fail)
    assert visgraft("show").err == "error: a [bold]name[/bold] in brackets\nand what to do\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            EOFError("Ran out of input"),
            "a file or a pipe ended where more was to come (Ran out of input); with --debug",
        ),
        (EOFError(), "a file or a pipe ended where more was to come; with --debug you see where"),
        (RecursionError("maximum recursion depth"), "something is nested too deeply to be read or worked on; with"),
        (UnpicklingError("persistent_load"), "a file holds something else than plain tensors, which is not run; with"),
    ],
)
def test_an_error_of_a_file_is_one_line_and_no_interrupt(
    visgraft: Visgraft, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("visgraft.cli.recipes.shipped_recipe", fail)
    outcome = visgraft("recipes", "easy_vqa")
    assert outcome.status == 2
    assert outcome.err.strip().startswith(f"error: {message}")
    assert outcome.err.strip().count("\n") == 0
    assert "Traceback" in visgraft("recipes", "easy_vqa", "--debug").err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_steps=" + "9" * 5000, "the value cannot be read: Exceeds the limit"),
        ("train.max_steps=" + "[" * 5000, "the value cannot be read: nested too deeply"),
        ("train.max_steps=2026-13-45", "the value cannot be read: month must be in 1..12"),
    ],
)
def test_a_value_that_breaks_the_parser_is_one_line(visgraft: Visgraft, override: str, message: str) -> None:
    outcome = visgraft("show", "easy_vqa", "--set", override)
    assert outcome.status == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def test_a_recipe_that_is_nested_too_deeply_is_one_line(visgraft: Visgraft, tmp_path: Path) -> None:
    (tmp_path / "deep.yaml").write_text("model: " + "[" * 5000)
    outcome = visgraft("show", tmp_path / "deep.yaml")
    assert (outcome.status, outcome.err) == (2, f"error: {tmp_path / 'deep.yaml'}: cannot be read: nested too deeply\n")


def test_what_would_steer_the_terminal_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    text = "a\x1b[2J cat\x07 \x9b31m 犬\r\n"
    print_line(text)
    print_error(text)
    out, err = capsys.readouterr()
    shown = "a\\x1b[2J cat\\x07 \\x9b31m 犬\\x0d\n\n"
    assert (out, err) == (shown, f"error: {shown}")
    print_json({"answer": text})
    out = capsys.readouterr().out
    assert json.loads(out) == {"answer": text}
    assert not [char for char in out if (ord(char) < 32 and char != "\n") or 127 <= ord(char) < 160]


def test_what_would_steer_the_terminal_is_shown_in_tables_too(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name")
    table.add_row(Text("a \x1b[2J cat\x07"))
    print_rich(table)
    out = capsys.readouterr().out
    assert "a \\x1b[2J cat" in out
    assert not set(out) & {"\x1b", "\x07"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
@pytest.mark.parametrize("args", [["recipes"], ["recipes", "easy_vqa"], ["recipes", "--json"]])
def test_standard_output_without_room_is_one_line(args: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run([sys.executable, "-m", "visgraft", *args], stdout=full, stderr=subprocess.PIPE, text=True)
    line = "error: standard output: cannot be written: the disk is full; make room, then run it again\n"
    assert (ran.returncode, ran.stderr) == (2, line)


def test_a_shell_completes_commands_options_and_shipped_names(
    visgraft: Visgraft, monkeypatch: pytest.MonkeyPatch
) -> None:
    def completed(words: str) -> list[str]:
        result = subprocess.run(
            [sys.executable, "-m", "visgraft"],
            env={
                **os.environ,
                "_VISGRAFT_COMPLETE": "complete_bash",
                "COMP_WORDS": words,
                "COMP_CWORD": str(len(words.split()) - 1),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return result.stdout.split()

    assert completed("visgraft tra") == ["train"]
    assert completed("visgraft train --resume-") == ["--resume-or-start"]
    assert "easy_vqa" in completed("visgraft train easy")
    assert completed("visgraft train ./own") == []  # the shell's own completion of files takes over
    assert "--install-completion" in visgraft("--help").out


@pytest.mark.parametrize("command", ["train", "ask", "evaluate", "data"])
def test_a_flag_names_no_type(visgraft: Visgraft, command: str) -> None:
    assert "bool" not in visgraft("--help").out + visgraft(command, "--help").out


def test_errors_are_objects_in_a_log_and_stay_when_it_is_quiet(visgraft: Visgraft) -> None:
    log = visgraft("ask", "nowhere", "gone.jpg", "What?", "--log-json")
    [line] = log.err.splitlines()
    record = json.loads(line)
    assert (log.status, record["level"], record["message"]) == (2, "error", "gone.jpg: image file is missing")
    assert datetime.fromisoformat(record["time"]).tzinfo is not None
    quiet = visgraft("--quiet", "ask", "nowhere", "gone.jpg", "What?")
    assert (quiet.status, quiet.err) == (2, "error: gone.jpg: image file is missing\n")


def test_what_is_said_of_long_work_is_quiet_or_an_object_as_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visgraft.reporting.progress.LINE_EVERY_S", 0.0)
    for form in ("quiet", "json", None):
        with logging_as(form):
            with working("reading", total=2, unit="rows") as advance:
                advance(2)
            tell("done: [1, 2]")
    lines = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["message"] for line in lines[:2]] == ["reading: 2 of 2 rows", "done: [1, 2]"]
    assert lines[2:] == ["reading: 2 of 2 rows", "done: [1, 2]"]
    assert "VISGRAFT_LOG" not in os.environ


def test_a_flag_of_the_program_behind_two_dashes_is_a_text(visgraft: Visgraft) -> None:
    outcome = visgraft("ask", "nowhere", "gone.jpg", "--", "--quiet")
    assert outcome.err == "error: gone.jpg: image file is missing\n"
