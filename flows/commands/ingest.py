"""``python -m flows ingest``: run ``sda-ingest`` in this process."""

from __future__ import annotations

from functools import partial

from flows.commands.options import EXIT_CODES
from flows.commands.running import add_run_arguments, run_here
from flows.pipelines import INGEST

EPILOG = EXIT_CODES
add_arguments = partial(add_run_arguments, INGEST)
run = partial(run_here, INGEST)
