"""A process of the warm Python is what a process of `python` is: arguments, folder, environment, pipes, end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.warm_python import warm_python

pytestmark = pytest.mark.slow
SAY = """
import json, os, sys
print(json.dumps([sys.argv, os.getcwd(), os.environ["WHO"], sys.path[0], __name__]))
print("visgraft" in sys.modules, "torch" in sys.modules, file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("kind", ["code", "module", "script"])
def test_arguments_folder_environment_pipes_and_status_are_those_of_python(tmp_path: Path, kind: str) -> None:
    (tmp_path / "saying.py").write_text(SAY)
    what = {"code": ["-c", SAY], "module": ["-m", "saying"], "script": ["saying.py"]}[kind]
    settings = {"cwd": tmp_path, "env": {**os.environ, "WHO": "me"}, "capture_output": True, "text": True}
    warm, plain = (
        subprocess.run([*python, *what, "7", "b c"], check=False, **settings)  # type: ignore[call-overload]
        for python in (warm_python(), [sys.executable])
    )
    assert warm.returncode == plain.returncode == 7
    [given, *others], [expected, *same] = json.loads(warm.stdout), json.loads(plain.stdout)
    assert given[1:] == expected[1:] == ["7", "b c"]
    assert [*others[:2], others[3]] == [*same[:2], same[3]]
    assert (tmp_path / others[2]).samefile(tmp_path / same[2])
    assert (warm.stderr, plain.stderr) == ("False True\n", "False False\n")


def test_signals_reach_it_and_its_end_is_the_end_of_the_command(tmp_path: Path) -> None:
    assert subprocess.run([*warm_python(), "-c", "import os; os.kill(os.getpid(), 9)"], check=False).returncode == -9
    sleep = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    for number, status in ((signal.SIGINT, -signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)):
        with subprocess.Popen(
            [*warm_python(), "-c", sleep], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            pid = int(process.stdout.readline())
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
        assert process.returncode == status
        assert ("KeyboardInterrupt" in err) is (number == signal.SIGINT)
        deadline = time.monotonic() + 60
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not Path(f"/proc/{pid}").exists()
