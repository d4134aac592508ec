"""Make the pictures that the README and the docs show, with headless Chromium.

    python docs/make_screenshots.py runs/DATE-easy-vqa              # writes docs/demo-report.png
    python docs/make_screenshots.py runs/modules                    # an experiment: writes docs/compare-report.png

Light at 1280 px wide; `--width` and `--dark` show how it looks elsewhere, `--output` keeps that from the docs.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OFFLINE = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")


def main() -> int:
    """Take one screenshot, of a page that is there or of a comparison that is made first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run",
        type=Path,
        help="run folder with report.html, an HTML file, or an experiment, whose runs are compared first",
    )
    parser.add_argument("--output", type=Path, help="picture to write; none: the one that the docs show")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1500)
    parser.add_argument("--dark", action="store_true")
    arguments = parser.parse_args()
    is_experiment = (arguments.run / "experiment.yaml").is_file()
    name = "compare-report.png" if is_experiment or arguments.run.suffix == ".html" else "demo-report.png"
    output = arguments.output or Path(__file__).parent / name
    page = arguments.run if arguments.run.suffix == ".html" else arguments.run / "report.html"
    if is_experiment:
        subprocess.run([sys.executable, "-m", "visgraft", "compare", arguments.run, "-o", page], check=True)
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None or not page.is_file():
        missing = f"{page} is missing" if browser else f"none of {', '.join(BROWSERS)} is installed"
        sys.stderr.write(f"{missing}\n")
        return 2
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *OFFLINE]
        command += [f"--user-data-dir={profile}", f"--window-size={arguments.width},{arguments.height}"]
        dark = ["--blink-settings=preferredColorScheme=0"] if arguments.dark else []
        command += ["--virtual-time-budget=5000", *dark]
        command += [f"--screenshot={output.resolve()}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
