"""Command-line flags out of dataclass fields: one list serves keywords, flags and YAML files."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
LAST_GROUPS = ("Refused", "No effect")  # what nobody looks for
Args = TypeVar("Args", bound="Flags")


def flag(
    default: Any,
    group: str,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    size: bool = False,
    short: str | None = None,
    many: bool = False,
) -> Any:
    """A dataclass field that is also a command-line flag.

    size: takes human sizes. many: takes several values. A mutable default is spelled None.
    """
    metadata = {
        "group": group,
        "help": help,
        "choices": choices,
        "size": size,
        "short": short,
        "many": many,
    }
    return dataclasses.field(default=default, metadata=metadata)


class Flags:
    """What a dataclass of flags can be made from besides keywords."""

    @classmethod
    def from_mapping(cls: type[Args], values: Any) -> Args:
        """From a namespace or mapping that may hold other things too."""
        values = values if isinstance(values, dict) else vars(values)
        names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        return cls(**{name: values[name] for name in names if name in values})


def human_size(text: str) -> int:
    """An integer with an optional unit: 4k is 4,000, 4K and 4Ki are 4,096; likewise m, g, t.

    Raises argparse.ArgumentTypeError.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:([kmgtKMGT])(i?))?[bB]?", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 4096, 4k or 4K")
    number, unit, binary = match.groups()
    scale = _BINARY[unit.upper()] if unit and binary else (_UNITS | _BINARY).get(unit, 1)
    value = float(number) * scale
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(value)


def _size_or_auto(text: str) -> int | None:
    return None if text.strip() == "auto" else human_size(text)


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


class FlexibleArgumentParser(argparse.ArgumentParser):
    """argparse, with underscores for dashes, a YAML file, and a suggestion for a misspelt flag.

    `--config FILE.yaml` stands for the flags in the file; what is on the command line wins.
    """

    def __init__(self, *args: Any, **given: Any) -> None:
        """As argparse's, but a flag's beginning does not stand for the flag."""
        super().__init__(*args, **{"allow_abbrev": False, **given})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = self._with_config([_dashed(w) for w in (sys.argv[1:] if args is None else args)])
        words = self._without_dots(words)
        parsed, unknown = self.parse_known_args(words, namespace)
        if unknown:
            known = [o for action in self._actions for o in action.option_strings]
            hints = {
                u: difflib.get_close_matches(u.split("=")[0], known, 1)
                for u in unknown
                if u.startswith("-")
            }
            said = [f"{u} (did you mean {h[0]}?)" if h else u for u, h in hints.items()]
            self.error(f"unrecognized arguments: {', '.join(said) or ' '.join(unknown)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(2)

    def _with_config(self, words: list[str]) -> list[str]:
        for i, word in enumerate(words):
            if word == "--config" and i + 1 < len(words):
                return self._read_config(words[i + 1], words[:i] + words[i + 2 :])
            if word.startswith("--config="):
                return self._read_config(word.removeprefix("--config="), words[:i] + words[i + 1 :])
        return words

    def _read_config(self, path: str, words: list[str]) -> list[str]:
        """The file's flags first, so that those on the command line have the last word."""
        import yaml

        try:
            with open(path, encoding="utf-8") as file:
                values = yaml.safe_load(file) or {}
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            self.error(f"--config {path}: {error}")
        if not isinstance(values, dict):
            self.error(f"--config {path}: must hold names and values")
        known = {o: a for a in self._actions for o in a.option_strings}
        before: list[str] = []
        positional: list[str] = []
        for name, value in values.items():
            option = "--" + str(name).replace("_", "-")
            if name == "model" and self._has_positional(words):
                continue  # a model on the command line beats the file's
            if name == "model" and "--model" not in known:
                positional = [str(value)]
                continue
            if option not in known:
                near = difflib.get_close_matches(option, known, 1)
                hint = f" (did you mean {near[0][2:]}?)" if near else ""
                self.error(f"--config {path}: unknown key {name!r}{hint}")
            if isinstance(value, bool):
                if not value and isinstance(known[option], argparse._StoreTrueAction):
                    continue  # a plain switch that is off
                before.append(option if value else "--no-" + option[2:])
            elif isinstance(value, dict):
                before += [option, json.dumps(value)]
            elif isinstance(value, list):
                if known[option].nargs not in ("+", "*"):
                    self.error(f"--config {path}: {name} takes one value, not a list")
                before += [option, *map(str, value)] if value else []
            elif value is not None:
                before.append(f"{option}={value}")
        # A positional word behind a flag of several values would be one more of those.
        while words and not words[0].startswith("-"):
            positional.append(words.pop(0))
        return positional + before + words

    def _without_dots(self, words: list[str]) -> list[str]:
        """`--name.key.deeper VALUE`, as often as wished, becomes one `--name JSON`.

        A value is read as JSON where it is that, else as text. Where `--name JSON` is given too,
        the keys are laid over it.
        """
        takers = {o for a in self._actions if a.type is json_object for o in a.option_strings}
        kept: list[str] = []
        given: dict[str, dict[str, Any]] = {}
        left = iter(words)
        for word in left:
            option, equals, value = word.partition("=")
            name, dot, path = option.partition(".")
            if name not in takers:
                kept.append(word)
                continue
            if not equals:
                value = next(left, "")
            whole = given.setdefault(name, {})
            if not dot:
                try:
                    whole.update(json_object(value))
                except argparse.ArgumentTypeError as error:
                    self.error(f"argument {name}: {error}")
                continue
            *above, last = path.split(".")
            for key in above:
                whole = whole.setdefault(key, {})
                if not isinstance(whole, dict):
                    self.error(f"argument {option}: {key!r} is not an object")
            try:
                whole[last] = json.loads(value)
            except json.JSONDecodeError:
                whole[last] = value
        return kept + [f"{name}={json.dumps(value)}" for name, value in given.items()]

    def _has_positional(self, words: list[str]) -> bool:
        alone, _ = self.parse_known_args(words)
        given = [getattr(alone, a.dest, None) for a in self._actions if not a.option_strings]
        return any(value is not None for value in given)


def _dashed(word: str) -> str:
    """Underscores of a flag's name as dashes; keys behind a dot are the user's own."""
    if not word.startswith("--"):
        return word
    name, rest = re.fullmatch(r"([^=.]*)(.*)", word, re.DOTALL).groups()  # type: ignore[union-attr]
    return str(name).replace("_", "-") + str(rest)


def add_flags(parser: argparse.ArgumentParser, cls: type, *, skip: Sequence[str] = ()) -> None:
    """Add a flag for each `flag()` field of a dataclass, in the field's group."""
    hints = get_type_hints(cls)
    groups: dict[str, Any] = {g.title: g for g in parser._action_groups if isinstance(g.title, str)}
    for f in dataclasses.fields(cls):
        if f.name in skip or "group" not in f.metadata:
            continue
        title = f.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        names = ["--" + f.name.replace("_", "-")]
        if f.metadata["short"]:
            names.insert(0, f.metadata["short"])
        options: dict[str, Any] = {"dest": f.name, "default": f.default}
        shown = "" if f.default in (None, False, True) else f" Default: {f.default}."
        options["help"] = (f.metadata["help"] + shown).replace("%", "%%")
        kind = _scalar(hints[f.name])
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif f.metadata["size"]:
            options["type"] = human_size if f.default is not None else _size_or_auto
            options["metavar"] = "N"
        elif kind is dict:
            options["type"] = json_object
            options["metavar"] = "JSON"
        else:
            options["type"] = kind
            options["metavar"] = None if f.metadata["choices"] else kind.__name__.upper()
            options["choices"] = f.metadata["choices"]
        if f.metadata["many"]:
            options["nargs"] = "+"
        groups[title].add_argument(*names, **options)
    parser._action_groups.sort(key=lambda group: group.title in LAST_GROUPS)


def check_types(args: Any) -> None:
    """Raise ValueError, naming the field, for a value that its flag could not have given.

    Keyword arguments come unchecked, where the parser checks flags.
    """
    hints = get_type_hints(type(args))
    for f in dataclasses.fields(args):
        value = getattr(args, f.name)
        if "group" not in f.metadata or (value is None and f.default is None):
            continue
        kind, choices = _scalar(hints[f.name]), f.metadata["choices"]
        if f.metadata["many"] and not isinstance(value, (list, tuple)):
            raise ValueError(f"{f.name} must be a list of {kind.__name__}, not {value!r}")
        for one in value if f.metadata["many"] else [value]:
            right = isinstance(one, (int, float) if kind is float else kind)
            if not right or (isinstance(one, bool) and kind is not bool):
                raise ValueError(f"{f.name} must be of type {kind.__name__}, not {one!r}")
            if choices is not None and one not in choices:
                raise ValueError(f"{f.name} must be one of {', '.join(choices)}, not {one!r}")


def at_least(args: Any, low: float, *names: str) -> None:
    """Raise ValueError, naming the field, for a number that is given and below `low`."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < low:
            raise ValueError(f"{name} must be at least {low}, not {value}")


def _scalar(hint: Any) -> type:
    """The type of one value: of `list[str] | None` it is str."""
    options = [a for a in get_args(hint) if a is not type(None)]
    origin = getattr(hint, "__origin__", None)
    if origin is dict:
        return dict
    if origin is list:
        return _scalar(get_args(hint)[0])
    if options and origin is None:
        return _scalar(options[0])
    assert isinstance(hint, type)
    return hint
