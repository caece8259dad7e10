"""One source per assignment. It is the reference solution as it stands; with the marked regions taken out it is the starter.

    python -m course.build            write starter.py and hints.json of every assignment anew
    python -m course.build --check    say which are not what their source gives

A region, in course/aN/source.py, inside a function or at the top of the file:

    # blank: first line of the hint that the starter keeps
    # its second, its third
    #: a staged hint, shown by `python -m course.grade aN --only NAME --hint 1`; then 2, then 3
    #= a line that only the starter has (default: raise NotImplementedError)
    the solution
    # end
"""
import json
import re
from dataclasses import dataclass
from pathlib import Path

from runtime.config import ROOT
from runtime.errors import UserError, run_main

COURSE = ROOT / "course"


@dataclass
class Region:
    """A blank of the source: the function it is in ("" at the top of the file), what the starter keeps, and the staged hints."""
    function: str
    indent: str
    keeps: list[str]
    hints: list[str]
    stands_in: list[str]


def assignments() -> list[str]:
    """a1, a2, ..."""
    return sorted(path.parent.name for path in COURSE.glob("a*/checks.py"))


def folder_of(assignment: str) -> Path:
    """Its folder. UserError when there is no such assignment."""
    if assignment not in assignments():
        raise UserError(f"there is no assignment '{assignment}'; there are {', '.join(assignments())}.")
    return COURSE / assignment


def parts(assignment: str) -> list[str | Region]:
    """The lines of a source that all share, and its regions in their places. ValueError for a region that does not end."""
    found: list[str | Region] = []
    region, function = None, ""
    for line in (folder_of(assignment) / "source.py").read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if named := re.match(r"def (\w+)", line):
            function = named[1]
        elif line and not line.startswith((" ", ")")):
            function = ""
        if text.startswith("# blank:"):
            region = Region(function, line[:len(line) - len(line.lstrip())], [text.replace("# blank:", "#")], [], [])
            found.append(region)
        elif region is None:
            found.append(line)
        elif text == "# end":
            region = None
        elif text.startswith("#:"):
            region.hints.append(text[2:].strip())
        elif text.startswith("#="):
            region.stands_in.append(text[2:].removeprefix(" "))
        elif text.startswith("#") and not region.hints and not region.stands_in:
            region.keeps.append(text)
    if region is not None:
        raise ValueError(f"{assignment}: a region of source.py has no '# end'")
    return found


def starter(assignment: str) -> str:
    """The text of starter.py."""
    lines = []
    for part in parts(assignment):
        if isinstance(part, str):
            lines.append(part)
            continue
        missing = f'raise NotImplementedError("{part.function} is not written yet; for a nudge: python -m course.grade {assignment} --only {part.function} --hint 1")'
        lines += [part.indent + line for line in part.keeps + (part.stands_in or [missing])]
    return "\n".join(lines) + "\n"


def hints(assignment: str) -> dict[str, list[str]]:
    """function -> its staged hints, vaguest first."""
    return {part.function: part.hints for part in parts(assignment) if isinstance(part, Region) and part.function}


def made(assignment: str) -> dict[str, str]:
    """file name -> text of what a source gives."""
    return {"starter.py": starter(assignment), "hints.json": json.dumps(hints(assignment), indent=1) + "\n"}


def main(argv: list[str]) -> None:
    stale = {COURSE / name / file: text for name in assignments() for file, text in made(name).items()
             if not (COURSE / name / file).exists() or (COURSE / name / file).read_text(encoding="utf-8") != text}
    if "--check" in argv and stale:
        raise UserError(f"not what their source gives: {', '.join(str(path.relative_to(ROOT)) for path in stale)}; run `python -m course.build`.")
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")
    print(f"{len(assignments())} assignments; {len(stale)} files {'written' if stale else 'to write'}.")


if __name__ == "__main__":
    run_main(main)
