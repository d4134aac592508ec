"""What older releases lack: the one way in which a test says that it needs a newer one.

In: a library and the release since which it is right. Out: a mark that skips the test before that, and says why.
Usage: `@since("transformers", "5.21", "states are read from the cache in another way")`
"""

from __future__ import annotations

from importlib.metadata import version

import pytest
from packaging.version import Version


def since(library: str, release: str, why: str) -> pytest.MarkDecorator:
    installed = version(library)
    is_older = Version(Version(installed).base_version) < Version(release)
    return pytest.mark.skipif(is_older, reason=f"{library} {installed}, before {release}: {why}")
