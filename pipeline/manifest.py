"""The manifest: what a stage read, how it was set, what it made. Written last, atomically; the chain is the lineage.

A stage's *key* is a fingerprint of its settings and of the manifests and files that it reads. The key is known before
any work: where a manifest with the same key lies, the work is done and is skipped; where `building.json` holds the
same key, half-done work continues; where another key lies, what was made before is kept, under `previous/`.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.errors import DataError
from pipeline.files import fingerprint, sha256_file, sync_directory, write_json
from pipeline.owner import Fence

FORMAT = 1
MANIFEST = "manifest.json"
BUILDING = "building.json"
SOFTWARE = (
    "torch",
    "deepspeed",
    "transformers",
    "tokenizers",
    "gigatoken",
    "datasets",
    "webdataset",
    "mlflow",
    "numpy",
)


@dataclass(frozen=True)
class Output:
    """A file that a stage made: path relative to the stage's folder, size in bytes, SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What one stage did. `counts` are facts about the data, `metrics` are numbers to compare between runs."""

    stage: str
    key: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    outputs: tuple[Output, ...]
    counts: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    software: dict[str, str] = field(default_factory=dict)
    finished: str = ""
    seconds: float = 0.0
    format: int = FORMAT

    @property
    def fingerprint(self) -> str:
        """Names what was made: equal settings, inputs and outputs give an equal fingerprint, whenever and wherever."""
        outputs = [asdict(output) for output in self.outputs]
        return fingerprint([self.stage, self.settings, self.inputs, outputs])

    def total_bytes(self) -> int:
        """Size of all outputs."""
        return sum(output.bytes for output in self.outputs)


def stage_key(stage: str, version: int, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The key of a stage: known before any work is done."""
    return fingerprint([stage, version, dict(settings), dict(inputs)])


def software_versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that decide what comes out (no import is made)."""
    found = {"headwater": __version__, "python": platform.python_version()}
    for name in SOFTWARE:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def describe_outputs(folder: Path, made: Iterable[Path | Output]) -> tuple[Output, ...]:
    """Sizes and checksums of finished files, in the order of their names; what is an Output already is believed."""
    found = [
        one
        if isinstance(one, Output)
        else Output(one.relative_to(folder).as_posix(), one.stat().st_size, sha256_file(one))
        for one in made
    ]
    return tuple(sorted(found, key=lambda output: Path(output.path)))


@dataclass(frozen=True)
class Work:
    """Where and how one stage works: what its `run` needs beside the recipe. The folder exists already.

    fence: says whether the stage is still ours; asked before each commit.
    """

    stage: str
    folder: Path
    key: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    started: float = field(default_factory=time.monotonic)
    fence: Fence = field(default_factory=Fence, compare=False)

    def finish(
        self,
        outputs: Iterable[Path | Output],
        counts: dict[str, Any] | None = None,
        metrics: dict[str, float] | None = None,
    ) -> Manifest:
        """Checksum the outputs (an Output states its own: terabytes are checksummed as they are written) and commit the
        manifest; nothing may be written to the folder after it."""
        made = Manifest(
            stage=self.stage,
            key=self.key,
            settings=self.settings,
            inputs=self.inputs,
            outputs=describe_outputs(self.folder, outputs),
            counts=counts or {},
            metrics=metrics or {},
            seconds=round(time.monotonic() - self.started, 3),
        )
        self.fence.check()
        return commit(self.folder, made)


def commit(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest of a finished stage: the last act, after which the stage counts as done."""
    value = asdict(manifest)
    value["software"] = software_versions()
    value["finished"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    value["fingerprint"] = manifest.fingerprint
    write_json(folder / MANIFEST, value)
    (folder / BUILDING).unlink(missing_ok=True)
    sync_directory(folder)
    return load(folder)


def load(folder: Path) -> Manifest:
    """Read a stage's manifest.

    Raises: DataError when there is none, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        value.pop("fingerprint")
        value["outputs"] = tuple(Output(**output) for output in value["outputs"])
        return Manifest(**value)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; the stage that makes {folder.name}/ has not finished") from None
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a manifest ({error}); delete {folder} and run its stage again") from None


def verify(folder: Path, manifest: Manifest, checksums: bool = False) -> None:
    """Check that the outputs are there with the sizes (and, if asked, the checksums) that the manifest states.

    Raises: DataError naming the first file that differs, and the remedy.
    """
    for output in manifest.outputs:
        path = folder / output.path
        remedy = f"it was changed after stage {manifest.stage} made it; delete {folder} and run that stage again"
        if not path.is_file():
            raise DataError(f"{path}: missing; {remedy}")
        if (size := path.stat().st_size) != output.bytes:
            raise DataError(f"{path}: {size:,} bytes, but its manifest says {output.bytes:,}; {remedy}")
        if checksums and sha256_file(path) != output.sha256:
            raise DataError(f"{path}: its checksum differs from its manifest's; {remedy}")
