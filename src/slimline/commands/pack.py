"""``slimline pack``: the artefact of a finished run, entropy-coded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimline.core.whole import write_whole
from slimline.errors import UsageError

if TYPE_CHECKING:
    from slimline.archive.container import Packed


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(directory: Path, as_json: bool) -> int:
    """Write DIR/model.slim, the smallest file that `slimline unpack` makes DIR's artefact from again, bit for bit.

    DIR is the --out folder of `slimline compress`, or a model file, beside which the archive is written.
    """
    from slimline.archive.container import pack, unpack

    file = _artefact(directory)
    payload = file.read_bytes()
    packed = pack(payload, file.suffix)
    if unpack(packed.data) != (payload, file.suffix):  # never leave somebody with an archive that does not open
        raise AssertionError(f"the archive of {file} does not give the file back")
    out = file.with_suffix(".slim")
    write_whole(out, packed.data)
    click.echo(_as_json(out, packed) if as_json else _as_text(out, file, packed))
    return 0


def _artefact(path: Path) -> Path:
    """The model file that is meant."""
    from slimline.core.registry import registered
    from slimline.report.finished import read_report

    if path.is_file():
        return path
    found = [file for target in registered("targets").values() if (file := path / f"model{target.suffix}").is_file()]
    if any(getattr(target, "beside", ()) and path / f"model{target.suffix}" in found for target in registered("targets").values()):
        raise UsageError(f"The model in {path} is several files, and an archive holds one.", hint="Give each of them: slimline pack DIR/model.bin.")
    if not found:
        if (path / "report.json").is_file():
            read_report(path)  # which names the folders of a run for several targets
        raise UsageError(f"There is no model in {path}.", hint="Give the --out folder of `slimline compress`, or a model file.")
    return found[0]


def _as_json(out: Path, packed: Packed) -> str:
    import json

    figures = {
        "file": str(out), "codec": packed.codec, "original_bytes": packed.original_bytes, "archive_bytes": len(packed.data),
        "header_bytes": packed.header_bytes, "sections": {k: round(v, 1) for k, v in packed.sections.items()}, "above_entropy": packed.above_entropy,
    }  # fmt: skip
    return json.dumps(figures, indent=2)


def _as_text(out: Path, file: Path, packed: Packed) -> str:
    size, original = len(packed.data), packed.original_bytes
    lines = [f"{out}: {size:,} bytes, {original / size:.2f}x smaller than {file.name} ({size / original:.0%} of {original:,} bytes), by {packed.codec}"]
    if packed.above_entropy is not None:
        lines += [f"  {'header':10} {packed.header_bytes:>10,} bytes", *(f"  {name:10} {round(n):>10,} bytes" for name, n in packed.sections.items())]
        lines.append(f"  tables              0 bytes: the models adapt as they read; the whole file is {packed.above_entropy:.2%} above the entropy under them")
    return "\n".join(lines)
