"""The adapter suites run twice: with a scorer in this process, and with a server."""

from __future__ import annotations

import pytest

from engines import behind_http


@pytest.fixture(scope="module", params=["local", "remote"])
def engine(request):
    """What `engines.word_overlap` returns in this module."""
    if request.param == "local":
        yield
    else:
        with behind_http():
            yield
