"""``slimline targets``: where a model can run."""

from __future__ import annotations

import click

from slimline.commands._invocation import table


@click.command()
def command() -> int:
    """List the runtimes, and which are installed.

    SLIMLINE_PYTHON_NAME=PATH (SLIMLINE_PYTHON_LITERT) has another Python check the finished file; the runtime must be installed here all the same.

    SLIMLINE_ONNXRUNTIME_PROVIDER=cuda or tensorrt runs ONNX Runtime on a GPU, where its build has that provider.
    """
    from slimline.core.registry import registered

    rows = [
        (name, target.version() if target.installed() else "not installed", "" if target.installed() else target.install)
        for name, target in registered("targets").items()
    ]
    table(("target", "version", "to install"), rows)
    return 0
