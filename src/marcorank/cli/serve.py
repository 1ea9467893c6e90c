"""`marcorank serve`: a rerank server."""

from __future__ import annotations

import argparse
import os
from typing import Any, NoReturn

from marcorank.cli.options import add_settings, new_parser, settings_of
from marcorank.errors import MissingExtraError
from marcorank.serving.settings import ProcessSettings
from marcorank.settings import ModelSettings, defaults, descriptions

_FOLDER_OF_METRICS = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
_FIRST = ("model", "host", "port", "workers")
_EXAMPLES = """\
Speaks the HTTP APIs of text-embeddings-inference (POST /rerank) and of Cohere
(POST /v1/rerank and /v2/rerank), with GET /health, /ready, /info and /metrics.

Each option is also an environment variable, its name in capitals, such as
MARCORANK_MAX_BATCH; options take precedence. MARCORANK_SERVE_API_KEY is the key
that clients must send; without it none is needed.

examples:
  marcorank serve
  marcorank serve --model ms-marco-MiniLM-L6-v2 --host 0.0.0.0 --workers 4
  MARCORANK_SERVE_API_KEY=secret marcorank serve --max-batch 200
"""


def add_command(commands: Any) -> None:
    """Add this command to the command line."""
    parser = new_parser(commands, "serve", summary="serve a reranker over HTTP", run=run, epilog=_EXAMPLES)
    # Its log has lines of its own form, with time and process.
    parser.set_defaults(notes=False)
    parser.add_argument("--api-key", nargs="?", action=_RefuseKey, help=argparse.SUPPRESS)
    of_model = defaults(ModelSettings)
    own = [name for name in descriptions(ProcessSettings) if name not in of_model]
    own.sort(key=lambda name: name not in _FIRST)
    for title, names in (("server", own), ("model", of_model)):
        add_settings(parser.add_argument_group(title), names, record=ProcessSettings, keep_defaults=False)


class _RefuseKey(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.error(
            "the key is not an option, because everyone on the machine can see it: set MARCORANK_SERVE_API_KEY"
        )


def run(args: argparse.Namespace) -> int:
    """Serve until a signal stops it."""
    # Metrics are those of this server alone, also if the environment was made for another program. prometheus_client
    # reads it when it is imported; several processes get a folder of their own.
    for name in _FOLDER_OF_METRICS:
        os.environ.pop(name, None)
    try:
        from marcorank.serving.running import log_to_stderr, serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"starlette", "uvicorn", "prometheus_client"}:
            raise
        raise MissingExtraError(
            "`marcorank serve` needs starlette, uvicorn and prometheus-client: pip install 'marcorank[serve]'"
        ) from error

    with log_to_stderr():
        serve(ProcessSettings.of(settings_of(args, ProcessSettings), os.environ))
    return 0
