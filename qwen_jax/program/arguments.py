"""How every program reads its arguments: options in groups, --version, what pip has to add.

Nothing here imports JAX, so that --help and a wrong option are answered at once.
"""

import ast
import dataclasses
import importlib.metadata
import inspect
import itertools
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_type_hints

T = TypeVar("T")
Groups = Mapping[str, str]  # title -> names of options, with blanks between


def read(
    target: Callable[..., T],
    prog: str,
    arguments: Sequence[str] | None,
    groups: Groups | None = None,
    extra: str | None = None,
    note: str = "",
) -> T:
    """Call `target` with what the command line says; its parameters are the options.

    groups: how --help arranges them; those that are in none come first. extra: what pip has to
    install for this program; where it is not there --help says so too, and all else raises
    ValueError. note: what --help says besides.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "--version" in arguments:
        print(version())
        return sys.exit(0)
    lacking = "" if extra is None else missing(extra, prog)
    if lacking and not {"-h", "--help"} & {*arguments}:
        raise ValueError(lacking)
    names = inspect.signature(target).parameters
    if "folder" in names and "model" not in names and "--model" in arguments:
        raise ValueError(f"{prog} has no --model: the model is its first word, as in {prog} demo")
    import tyro  # behind what needs no options

    description = inspect.cleandoc(target.__doc__ or "").partition("\n\n")[0]
    if note:
        description += f"\n\n{note}"
    if lacking:
        description += f"\n\n{lacking}"
    nested = tyro.cli(
        _structure(target, groups or {}),
        prog=prog,
        description=description,
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone),
    )
    return target(**dict(_flat(nested)))


def version() -> str:
    try:
        return f"qwen_jax {importlib.metadata.version('qwen_jax')}"
    except importlib.metadata.PackageNotFoundError:
        return "qwen_jax, a checkout that is not installed"


def missing(extra: str, prog: str) -> str:
    """A line about the packages of an extra that are not installed; empty if all are."""
    try:
        wanted = importlib.metadata.requires("qwen_jax") or []
    except importlib.metadata.PackageNotFoundError:
        return ""  # a checkout, whose user knows
    found = []
    for line in wanted:
        name, _, marker = line.partition(";")
        if re.search(rf"extra\s*==\s*['\"]{extra}['\"]", marker):
            package = re.split(r"[^\w.-]", name.strip())[0]
            if not installed(package):
                found.append(package)
    names = " and ".join([", ".join(found[:-1]), found[-1]] if found[1:] else found)
    are = "are" if found[1:] else "is"
    return f"{prog} needs {names}, which {are} not installed; {install(extra)}" if found else ""


def install(*extras: str) -> str:
    """The command that adds them to a qwen_jax that is installed."""
    return f'pip install "qwen_jax[{",".join(extras)}]"'


def installed(package: str) -> bool:
    """By pip, under this name: a folder of the same name here is no package."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


# --- what tyro reads: a dataclass of dataclasses, one for each group --------------------------
def _structure(target: Callable[..., Any], groups: Groups) -> Any:
    import tyro

    fields, told = dict(_fields(target)), {n for names in groups.values() for n in names.split()}
    assert told <= fields.keys(), f"there are no options {told - fields.keys()}"
    inner: list[Any] = [fields[name] for name in fields if name not in told]
    for number, (title, names) in enumerate(groups.items()):
        made = _made(title, [fields[name] for name in names.split()])
        inner.append((f"group_{number}", Annotated[made, tyro.conf.arg(name=title)]))
    return _made("options", inner)


def _made(title: str, fields: list[Any]) -> Any:
    made = dataclasses.make_dataclass(title, fields, kw_only=True)
    made.__doc__ = " "
    return made


def _fields(target: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Each parameter with its type, its help, and its default if that is worth telling."""
    import tyro

    hints, docs = get_type_hints(target, include_extras=True), _docs(target)
    for name, parameter in inspect.signature(target).parameters.items():
        required = parameter.default is inspect.Parameter.empty
        hint: Any = "" if not required and parameter.default in (None, ()) else None
        about = tyro.conf.arg(help=docs.get(name), help_behavior_hint=hint)
        kind: Any = Annotated[hints[name], about]
        default = () if required else (dataclasses.field(default=parameter.default),)
        yield name, (name, kind, *default)


def _docs(target: Callable[..., Any]) -> dict[str, str]:
    """By parameter: from the docstring's list, or from the strings below a dataclass's fields."""
    import docstring_parser  # as tyro does

    listed = docstring_parser.parse(target.__doc__ or "").params
    found = {one.arg_name: " ".join((one.description or "").split()) for one in listed}
    for one in reversed(inspect.getmro(target)) if inspect.isclass(target) else ():
        if dataclasses.is_dataclass(one):
            found |= dict(_strings(one))
    return found


def _strings(made: type) -> Iterator[tuple[str, str]]:
    """The strings below the fields of a dataclass."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(made))).body
    assert isinstance(tree, ast.ClassDef)
    for field, text in itertools.pairwise(tree.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(field.target, ast.Name)
            yield field.target.id, " ".join(ast.literal_eval(text.value).split())


def _flat(options: Any) -> Iterator[tuple[str, Any]]:
    for name, value in vars(options).items():
        if dataclasses.is_dataclass(value):
            yield from _flat(value)
        else:
            yield name, value
