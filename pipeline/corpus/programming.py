"""Programming languages by the names of files, and the names of files and folders that hold nobody's own code.

After GitHub's linguist, which names thousands; here stand those of corpora such as The Stack (Kocetkov et al. 2022).
"""

from __future__ import annotations

import re

_LANGUAGES: dict[str, str] = {
    "ada": ".adb .ads",
    "assembly": ".asm .s",
    "awk": ".awk",
    "c": ".c .h",
    "c++": ".cc .cpp .cxx .hh .hpp .hxx .ipp .tpp",
    "c#": ".cs .csx",
    "clojure": ".clj .cljs .cljc .edn",
    "cmake": ".cmake",
    "coffeescript": ".coffee",
    "common lisp": ".lisp .lsp .cl",
    "crystal": ".cr",
    "css": ".css .scss .sass .less",
    "cuda": ".cu .cuh",
    "cython": ".pyx .pxd .pxi",
    "d": ".d",
    "dart": ".dart",
    "elixir": ".ex .exs",
    "elm": ".elm",
    "emacs lisp": ".el",
    "erlang": ".erl .hrl",
    "f#": ".fs .fsi .fsx",
    "fortran": ".f .f77 .f90 .f95 .f03 .f08 .for",
    "glsl": ".glsl .vert .frag .comp",
    "go": ".go",
    "graphql": ".graphql .gql",
    "groovy": ".groovy .gradle",
    "haskell": ".hs .lhs",
    "hcl": ".tf .hcl",
    "java": ".java",
    "javascript": ".js .cjs .mjs .jsx",
    "julia": ".jl",
    "kotlin": ".kt .kts",
    "lean": ".lean",
    "lua": ".lua",
    "makefile": ".mk",
    "nim": ".nim",
    "nix": ".nix",
    "objective-c": ".m .mm",
    "ocaml": ".ml .mli",
    "pascal": ".pas .pp .dpr",
    "perl": ".pl .pm .t",
    "php": ".php .phtml",
    "powershell": ".ps1 .psm1 .psd1",
    "prolog": ".pro .prolog",
    "protobuf": ".proto",
    "python": ".py .pyi .pyw",
    "r": ".r",
    "racket": ".rkt",
    "ruby": ".rb .rake .gemspec",
    "rust": ".rs",
    "scala": ".scala .sc .sbt",
    "scheme": ".scm .ss",
    "shell": ".sh .bash .zsh .fish .ksh",
    "sql": ".sql",
    "swift": ".swift",
    "tcl": ".tcl",
    "tex": ".tex .sty .cls",
    "thrift": ".thrift",
    "typescript": ".ts .tsx .mts .cts",
    "vala": ".vala .vapi",
    "verilog": ".v .sv .svh .vh",
    "vhdl": ".vhd .vhdl",
    "vim script": ".vim",
    "visual basic": ".vb .bas",
    "vue": ".vue",
    "zig": ".zig",
}
SUFFIXES: dict[str, str] = {end: language for language, ends in _LANGUAGES.items() for end in ends.split()}
NAMES: dict[str, str] = {
    "BUILD": "starlark",
    "BUILD.bazel": "starlark",
    "CMakeLists.txt": "cmake",
    "Dockerfile": "dockerfile",
    "GNUmakefile": "makefile",
    "Gemfile": "ruby",
    "Makefile": "makefile",
    "Rakefile": "ruby",
    "makefile": "makefile",
}
# Folders of other people's code, or of what was built: the same files lie in thousands of repositories.
_VENDORED = re.compile(
    r"(?:^|/)(node_modules|bower_components|jspm_packages|vendors?|vendored|_vendor|third[_-]?party|3rdparty|externals?|"
    r"extern|Pods|Carthage|Godeps|site-packages|dist-packages|__pycache__|dist)/",
    re.IGNORECASE,
)
_MINIFIED = re.compile(r"[.-](min|bundle|pack)\.(js|mjs|cjs|css)$", re.IGNORECASE)


def language_of(name: str) -> str | None:
    """The programming language of a file by its name; None where it is not known."""
    base = name.rpartition("/")[2]
    if base in NAMES:
        return NAMES[base]
    dot = base.rfind(".")
    return SUFFIXES.get(base[dot:].lower()) if dot >= 0 else None


def vendored(name: str) -> str | None:
    """The folder in a file's name that holds other people's code, if there is one."""
    found = _VENDORED.search(name)
    return found[1] if found else None


def minified(name: str) -> bool:
    """Whether a file's name says that it was made small for browsers."""
    return bool(_MINIFIED.search(name))
