"""An installed wheel holds what a checkout holds: recipes, DeepSpeed configs, the report's template."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from command import PROJECT


def test_the_wheel_holds_recipes_and_configs(tmp_path: Path) -> None:
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(PROJECT)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")  # our own build
    data = [path for path in (PROJECT / "pipeline").rglob("*") if path.is_file() and path.suffix != ".py"]
    data = [path for path in data if path.parent.name != "__pycache__"]  # compiled functions too are kept there
    for path in [*data, *(PROJECT / "pipeline").rglob("*.py")]:
        assert path.relative_to(PROJECT).as_posix() in names
    for path in (PROJECT / "ds_configs").glob("*.json"):
        assert f"pipeline/ds_configs/{path.name}" in names
    program = (
        "from pipeline.config import PACKAGE, find_deepspeed_config, load_recipe\n"
        "print(PACKAGE, load_recipe('demo').name, find_deepspeed_config('zero1'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "installed", capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[0].startswith(str(tmp_path))
    assert done.stdout.split()[2] == str(tmp_path / "installed" / "pipeline" / "ds_configs" / "zero1.json")
