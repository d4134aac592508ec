"""Load a page in headless Chromium, do something on it, and read what came out.

In: an HTML file, JavaScript that gives a value. Out: that value. Nothing but a Chromium on the PATH is needed; without
one, tests that use it are skipped and say so. Usage: `value = run_in_page(path, "return document.title", width=390)`
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_chromium = pytest.mark.skipif(
    BROWSER is None, reason="NOT CHECKED: no chromium on the PATH, so no page was looked at (apt-get install chromium)"
)
ERRORS = "<script>window.failures = []; addEventListener('error', e => failures.push(e.message));</script>"
RUN = """<script>addEventListener("load", async () => {
  const waited = () => new Promise(done => setTimeout(done, 50));
  await Promise.all(Object.values(window.charts ?? {}));
  let value;
  try { value = await (async () => { %s })(); } catch (error) { value = { failed: String(error) }; }
  parent.postMessage(JSON.stringify({ value, failures: window.failures }), "*");
});</script></body>"""
# A frame is as narrow as a phone; a window of headless Chromium is never below 500 pixels.
FRAME = """<!doctype html><pre id="came-out"></pre><script>addEventListener("message", event => {
  document.getElementById("came-out").textContent = event.data;
});</script><iframe src="%s" style="border: 0; width: %dpx; height: 900px"></iframe>"""


def run_in_page(page: Path, script: str, *, width: int = 1280) -> Any:
    """Run an async function's body once all charts are drawn; errors on the page, whichever, are failures."""
    text = page.read_text(encoding="utf-8").replace("<head>", f"<head>{ERRORS}", 1)
    before, _, after = text.rpartition("</body>")
    copy = page.with_name(f"{page.stem}-in-browser.html")
    copy.write_text(before + RUN % script + after, encoding="utf-8")
    frame = page.with_name(f"{page.stem}-frame.html")
    frame.write_text(FRAME % (copy.as_uri(), width), encoding="utf-8")
    profile = page.with_name("profile")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--disable-component-update", "--no-first-run", f"--user-data-dir={profile}"]
    command += ["--window-size=1400,1000", "--virtual-time-budget=20000", "--dump-dom", frame.as_uri()]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, check=True)
    shutil.rmtree(profile, ignore_errors=True)
    found = re.search(r'<pre id="came-out">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the page's script never ended: {done.stderr[-2000:]}"
    result = json.loads(html.unescape(found[1]))
    assert result["failures"] == []
    assert not (isinstance(result["value"], dict) and "failed" in result["value"]), result["value"]
    return result["value"]
