"""From a recipe's name or path, and `key=value` words, to a checked `Recipe`.

Later wins: the defaults in settings/ < the recipe named by `base` < the YAML file < the command line. Mappings are
merged key by key; lists, single values and the empty mapping `{}` replace what was there. Whatever is wrong is refused
here, before any work starts, with the file, the line, the key, the value and the nearest right spelling.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import RecipeError
from pipeline.printable import without_secrets
from pipeline.recipe import Recipe

PACKAGE = Path(str(resources.files("pipeline")))
SHIPPED = PACKAGE / "recipes"


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The file of a recipe: an existing path, or the name of a shipped one.

    Raises: RecipeError naming what was looked for and what there is.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or "/" in name:
        if path.is_file():
            return path
        raise RecipeError(f"recipe {name}: no such file; `pipeline recipes` lists those that come with the package")
    if (shipped := SHIPPED / f"{name}.yaml").is_file():
        return shipped
    raise RecipeError(
        f"recipe {name}: not one of {', '.join(shipped_recipes())}{_nearest(name, shipped_recipes())}; "
        "your own is given by its path, ending in .yaml"
    )


def find_deepspeed_config(name: str) -> Path:
    """The DeepSpeed JSON that `deepspeed:` names: a path, or a file in ds_configs/ (checkout or installed wheel).

    Raises: RecipeError naming what was looked for and what there is.
    """
    folders = [PACKAGE.parent / "ds_configs", PACKAGE / "ds_configs"]
    folder = next((candidate for candidate in folders if candidate.is_dir()), folders[0])
    for path in (Path(name), folder / f"{name}.json"):
        if path.is_file():
            return path
    known = sorted(path.stem for path in folder.glob("*.json"))
    raise RecipeError(f"deepspeed: {name} is no file and not one of {', '.join(known)}{_nearest(name, known)}")


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, merge and check a recipe.

    Args: name, a shipped recipe or a path; overrides, words such as `pretrain.tokens=1e9`.
    Raises: RecipeError, one line.
    """
    values, places = _read(find_recipe(name), ())
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise RecipeError(f"'{word}' is not of the form key=value, such as pretrain.tokens=2000000")
        _merge(values, _nested(key.split("."), _value(word, text)), (), places, f"the command line ({word})")
    _refuse_passwords(values, (), places)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(_explain(error, places)) from None
    for settings in (recipe.pretrain, *recipe.finetune.values()):
        find_deepspeed_config(settings.deepspeed)
    for folder in (recipe.workdir, *recipe.workdir.parents):
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise RecipeError(f"workdir {recipe.workdir}: {folder} is a file; set workdir=… to a folder")
    return recipe


def save_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML; reading it back gives an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


# --- reading -------------------------------------------------------------------------------------------------------

Key = tuple[str | int, ...]
Places = dict[Key, str]  # where each key was set: "demo.yaml:12", or the command line


class _NumberLoader(yaml.SafeLoader):
    """As in YAML 1.2, `1e9` is a number; `yes`, `no`, `on` and `off` are words (`compile: no`; Norwegian), and so are
    dates (`name: 2026-01-01`)."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own way)
        letter: [
            (tag, pattern)
            for tag, pattern in found
            if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
        ]
        for letter, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """At once to its depth: PyYAML then refuses a value that holds itself (`&a [*a]`), which has no end to walk."""
        return super().construct_object(node, deep=True)


_NumberLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_NumberLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


# Besides its own errors, PyYAML raises these for a number of 5,000 digits, `!!timestamp 2024-13-45` or `!!bool x`, and
# for what is nested too deeply.
_UNREADABLE = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)


def _read(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], Places]:
    if path.resolve() in seen:
        raise RecipeError(f"{path}: `base` leads back to the same file")
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_NumberLoader)
        content = yaml.load(text, Loader=_NumberLoader)  # a SafeLoader: plain values only
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path}: cannot be read: {error}") from None
    except _UNREADABLE as error:
        raise RecipeError(f"recipe {path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise RecipeError(f"recipe {path}: must be a mapping of keys to values, not a {type(content).__name__}")
    places: Places = dict(_places(node, path, ()))
    base = content.pop("base", None)
    if base is None:
        return content, places
    if not isinstance(base, str):
        raise RecipeError(f"{places[('base',)]}: base must be the name or path of a recipe, not {base!r}")
    beside = path.parent / base
    parent, parent_places = _read(beside if beside.is_file() else find_recipe(base), (*seen, path.resolve()))
    for own in ("name", "workdir"):  # two runs never share a folder by inheritance
        parent.pop(own, None)
    _merge(parent, content, (), parent_places, None)
    return parent, {**parent_places, **places}


def _places(node: yaml.Node | None, path: Path, key: Key) -> Iterator[tuple[Key, str]]:
    """Each key of a YAML document with its file and line. Raises RecipeError for a key that is given twice."""
    if isinstance(node, yaml.MappingNode):
        found: set[str] = set()
        for name, value in node.value:
            place = f"{path}:{name.start_mark.line + 1}"
            if name.value in found:
                raise RecipeError(f"{place}: key '{name.value}' is given twice; keep one")
            found.add(name.value)
            yield (*key, name.value), place
            yield from _places(value, path, (*key, name.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*key, index), f"{path}:{value.start_mark.line + 1}"
            yield from _places(value, path, (*key, index))


def _value(word: str, text: str) -> Any:
    try:
        return yaml.load(text, Loader=_NumberLoader)
    except _UNREADABLE:
        word = word if len(word) <= 200 else word[:200] + "…"
        raise RecipeError(f"'{word}': the value is not valid YAML; quote it, as in 'key=\"…\"'") from None


def _nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    return {keys[0]: value if len(keys) == 1 else _nested(keys[1:], value)}


def _merge(into: dict[str, Any], new: dict[str, Any], key: Key, places: Places, place: str | None) -> None:
    for name, value in new.items():
        old = into.get(name)
        if place:
            places[(*key, name)] = place
        if isinstance(old, dict) and isinstance(value, dict) and value:
            _merge(old, value, (*key, name), places, place)
        elif isinstance(old, list) and isinstance(value, dict) and value and all(str(k).isdigit() for k in value):
            for index, item in value.items():  # corpus.sources.0.path=… on the command line
                if int(index) >= len(old):
                    dotted = ".".join(map(str, (*key, name, index)))
                    raise RecipeError(f"{place}: {dotted}: the list has {len(old)} entries, counted from 0")
                if isinstance(old[int(index)], dict) and isinstance(item, dict):
                    _merge(old[int(index)], item, (*key, name, int(index)), places, place)
                else:
                    old[int(index)] = item
        else:
            into[name] = value
            for inner in [
                inner for inner in places if len(inner) > len(key) + 1 and inner[: len(key) + 1] == (*key, name)
            ]:
                del places[inner]  # they were set in what is now replaced


# --- explaining ----------------------------------------------------------------------------------------------------


def _nearest(word: str, choices: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def _explain(error: ValidationError, places: Places) -> str:
    """The first error of a validation, as one line."""
    details = error.errors(include_url=False)
    # An unknown key explains most other errors (a misspelt required key is "missing" too): name it first.
    detail = next((item for item in details if item["type"] == "extra_forbidden"), details[0])
    key, _ = _known(detail["loc"])
    place = _place(key, places)
    dotted = ".".join(map(str, key))
    if detail["type"] == "extra_forbidden":
        _, choices = _known(detail["loc"][:-1])
        hint = _nearest(str(key[-1]), choices)
        return f"{place}: unknown key '{dotted}'{hint or '; known here: ' + ', '.join(sorted(choices))}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "missing":
        return f"{place}: {dotted} is missing; it must be given"
    if detail["type"] in ("union_tag_not_found", "union_tag_invalid"):
        return f"{place}: {dotted}: {message}"
    given = detail.get("input")
    shown = "" if isinstance(given, (dict, list, BaseModel)) else f" = {given!r}"
    hint = ""
    if detail["type"] == "literal_error" and isinstance(given, str):
        expected = str(detail["ctx"]["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
        hint = _nearest(given, expected)
    return f"{place}: {dotted}{shown}: {message}{hint}" if key else f"{place}: {message}"


_PASSWORD = re.compile(r"\S*\w://[^/\s:@]*:[^/\s]+@\S*")  # a URL with one


def _refuse_passwords(value: Any, key: Key, places: Places) -> None:
    """What a recipe says is kept in the run's folder and its manifests. Raises: RecipeError, without the password."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_passwords(inner, (*key, name), places)
    elif isinstance(value, str) and _PASSWORD.fullmatch(value):
        where = f"{without_secrets(_place(key, places))}: {'.'.join(map(str, key))}"
        raise RecipeError(
            f"{where}: a recipe is kept with all that is made of it, and must hold no password; "
            "give the URL alone, and the password as fsspec reads it: in the environment, such as "
            "FSSPEC_FTP_PASSWORD=…, or in a file in ~/.config/fsspec"
        )


def _place(key: Key, places: Places) -> str:
    """Where a key was set, or the part of the recipe that it is in."""
    return next((places[key[:n]] for n in range(len(key), 0, -1) if key[:n] in places), "the recipe")


def _known(loc: tuple[str | int, ...]) -> tuple[Key, list[str]]:
    """A place as the recipe writes it, and the names of the keys that are known there.

    pydantic puts a union's tag (`csv`) into the path of an error too, which is no key; the schema tells them apart.
    """
    schema = Recipe.model_json_schema()
    node: dict[str, Any] = schema
    key: list[str | int] = []
    for part in loc:
        node = _resolve(schema, node)
        tags = node.get("discriminator", {}).get("mapping", {})
        if part in tags:
            node = {"$ref": tags[part]}
            continue
        key.append(part)
        if isinstance(part, int):
            node = node.get("items", {})
        else:
            node = node.get("properties", {}).get(part) or _additional(node)
    return tuple(key), list(_resolve(schema, node).get("properties", {}))


def _additional(node: dict[str, Any]) -> dict[str, Any]:
    patterns = node.get("patternProperties")
    found = next(iter(patterns.values())) if patterns else node.get("additionalProperties", {})
    return found if isinstance(found, dict) else {}


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """The node itself: behind references, and behind `section | None`."""
    while "$ref" in node or "anyOf" in node:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        else:
            node = next((choice for choice in node["anyOf"] if "$ref" in choice), {})
    return node
