"""What the notebooks need to show things: a script run beside a live picture, coloured tokens, one attention mask, parts of a report.

Nothing is computed here. Curves are eval/plots.py's, the mask is batching.show_mask's, figures are read from files of a run.
"""
import html
import inspect
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from IPython.display import HTML, DisplayHandle, Image, Markdown, display  # every notebook has it
from torch import Tensor

from batching import Batch, show_mask
from eval import plots
from eval.render import to_markdown
from model import tree_mask
from runtime.config import ROOT
from runtime.errors import UserError
from tokenizer import Tokenizer

PROMPT, CHOSEN, REJECTED, HIDDEN = "#bfdbf2", "#bfe8cf", "#f6c6ad", "#eeeeee"  # light enough for dark text
TEXT = "font: 13px/1.7 monospace; white-space: pre-wrap; color: #111; background: #fff; padding: 8px"


# ---- scripts --------------------------------------------------------------------------------------------------------

def run(words: Sequence[str], curves: Path | None = None, brief: bool = False) -> None:
    """Run `python WORDS` from the repository root and print what it says; with `curves`, the run folder, redraw its metrics.jsonl meanwhile.

    brief: print only what comes before the first blank line; after it eval.run gives all answers at once. An interrupt stops the script,
    and the same call continues it. UserError with the script's last words when it fails.
    """
    print("$ python " + " ".join(words), flush=True)
    with TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        with out.open("w") as said, err.open("w") as bars:
            child = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=said, stderr=bars, env=os.environ | {"PYTHONUNBUFFERED": "1"})
        try:
            _follow(child, out, curves, brief)
        finally:
            _stop(child)
        if child.returncode:
            last = err.read_text(errors="replace").strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
            raise UserError(f"{words[0]}: {last[0]}")


def _follow(child: subprocess.Popen, out: Path, curves: Path | None, brief: bool) -> None:
    picture, size, next_drawing = DisplayHandle(), 0, 0.0
    heard, printed = "", 0
    with out.open(errors="replace") as said:
        while True:
            ended = child.poll() is not None  # asked before the last look, so that nothing is missed
            heard += said.read()
            shown = heard.split("\n\n", 1)[0] if brief else heard
            print(shown[printed:], end="", flush=True)
            printed = len(shown)
            now = sum(path.stat().st_size for path in curves.glob("*/metrics.jsonl")) if curves else 0
            if now != size and (ended or time.time() > next_drawing):
                started = time.time()
                show = picture.update if size else picture.display
                show(_curves(curves))
                size, next_drawing = now, time.time() + 10 * (time.time() - started)  # drawing may take a tenth of the training's time
            if ended:
                return
            time.sleep(0.3)


def _curves(run_dir: Path) -> Image:
    with TemporaryDirectory() as folder:
        plots.training_curves(run_dir, Path(folder, "curves.png"))
        return Image(Path(folder, "curves.png").read_bytes())


def _stop(child: subprocess.Popen) -> None:
    """End a script that still runs: Jupyter's interrupt reaches it as well, so it gets a moment to end by itself first."""
    for ask in (lambda: None, lambda: child.send_signal(signal.SIGINT), child.kill):
        try:
            if child.poll() is None:
                ask()
            child.wait(timeout=5)
            return
        except subprocess.TimeoutExpired:
            continue


# ---- things to look at ----------------------------------------------------------------------------------------------

def source(*functions: Callable) -> None:
    """Show the source of functions or classes, each with its file."""
    for function in functions:
        file = Path(inspect.getsourcefile(function)).resolve().relative_to(ROOT)
        display(Markdown(f"`{file}`\n```python\n{inspect.getsource(function)}```"))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Show a table; every cell is text, nothing in it is interpreted."""
    display(Markdown(to_markdown([("table", list(header), [[str(cell) for cell in row] for row in rows])])))


def mask(batch: Batch, tok: Tokenizer) -> HTML:
    """batching.show_mask in HTML: scored chosen tokens green, scored rejected tokens red."""
    class Terminal(io.StringIO):
        def isatty(self) -> bool:  # show_mask colours only what goes to a terminal
            return True
    show_mask(batch, tok, stream=(stream := Terminal()))
    text = html.escape(stream.getvalue().split("\n", 1)[1])
    for code, colour in (("\x1b[32m", CHOSEN), ("\x1b[31m", REJECTED)):
        text = text.replace(code, f'<span style="background: {colour}">')
    text = text.replace("\x1b[0m", "</span>")
    return HTML(f'<div style="{TEXT}">{text}</div>')


def tokens(pieces: Sequence[str], colours: Sequence[str], outlined: int = -1) -> HTML:
    """Tokens as boxes of their colours; spaces and newlines are made visible, the token at `outlined` has a border."""
    boxes = []
    for i, (piece, colour) in enumerate(zip(pieces, colours, strict=True)):
        border = "outline: 2px solid #000; " if i == outlined else ""
        shown = html.escape(piece).replace(" ", "·").replace("\n", "⏎")
        boxes.append(f'<span style="{border}background: {colour}; margin: 1px; display: inline-block">{shown}</span>')
    return HTML(f'<div style="{TEXT}">{"".join(boxes)}</div>')


def seen_from(segments: Tensor, query: int) -> list[str]:
    """Colours of a row's tokens as the token at `query` sees them: hidden ones grey. segments [T]."""
    visible = tree_mask(segments[None])[0, 0, query]
    return [(PROMPT, CHOSEN, REJECTED)[int(s) % 3] if v else HIDDEN for s, v in zip(segments, visible)]


def attention(segments: Tensor, query: int) -> Image:
    """model.tree_mask of one row as a picture, keys in the colours of their part, with the row of one query framed. segments [T], one pair."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch, Rectangle
    plt, visible, T = plots.pyplot(), tree_mask(segments[None])[0, 0], len(segments)
    figure, axes = plt.subplots(2, 1, figsize=(6.4, 6.6), height_ratios=[14, 1], layout="constrained")
    colours = ListedColormap(["#ffffff", PROMPT, CHOSEN, REJECTED])
    part = torch.where(visible, segments % 3 + 1, 0)
    for axis, rows in zip(axes, (part, part[query:query + 1])):
        axis.imshow(rows, cmap=colours, vmin=0, vmax=3, aspect="auto", interpolation="nearest", extent=(0, T, len(rows), 0))
        axis.grid(False)
    axes[0].add_patch(Rectangle((0, query), T, 1, fill=False, linewidth=1.5))
    axes[0].set(title="Who sees whom", xlabel="key (the token looked at)", ylabel="query (the token that looks)")
    axes[1].set(title=f"The framed row: query {query} sees {int(visible[query].sum())} of {T} tokens", yticks=[], xlabel="key")
    names = zip(("prompt", "chosen", "rejected", "not seen"), (PROMPT, CHOSEN, REJECTED, "#ffffff"))
    axes[0].legend(handles=[Patch(facecolor=colour, edgecolor="#777", label=name) for name, colour in names], loc="upper right")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=100)
    plt.close(figure)
    return Image(picture.getvalue())


# ---- files of a run -------------------------------------------------------------------------------------------------

def section(evaluation: Path, heading: str, keep: Sequence[str] = ()) -> None:
    """Show the part of report.md whose heading begins so, with its pictures; with `keep`, only the table rows that begin with one of these labels.

    UserError when the report has no such part.
    """
    parts = (evaluation / "report.md").read_text(encoding="utf-8").split("\n## ")
    body = next((part.split("\n", 1)[1] for part in parts[1:] if part.startswith(heading)), None)
    if body is None:
        raise UserError(f"the report has no part '{heading}'; it has: {', '.join(part.splitlines()[0] for part in parts[1:])}.")
    lines = body.strip().splitlines()
    if keep:
        lines = [line for line in lines if line.startswith(("|  |", "| ---", *(f"| {label}" for label in keep)))]
    if text := [line for line in lines if not line.startswith("![")]:
        display(Markdown("\n".join(text)))
    for line in lines:
        if line.startswith("!["):
            display(Image((evaluation / line[line.rindex("(") + 1:-1]).read_bytes()))


def times() -> None:
    """Show how long each setting of the walkthrough takes, and how that is known: measured in results/, counted, or estimated."""
    rows = []
    for name in ("toy", "hh_30m", "hh_small"):
        folder = next((f for f in (ROOT / "results" / name / "seed0", ROOT / "results" / name) if (f / "dpo_run.json").exists()), None)
        if folder:
            runs = [json.loads(path.read_text()) for path in (folder / f"{stage}_run.json" for stage in ("base", "sft", "dpo")) if path.exists()]
            seconds = sum(run["seconds"] for run in runs) + json.loads((folder / "results_summary.json").read_text())["facts"]["seconds"]
            rows.append([name, f"{seconds / 60:.0f} min", f"measured: {runs[-1]['device']}, {runs[-1]['threads']} threads, training and evaluation"])
        else:
            plan = json.loads((ROOT / "results" / "speed" / ("t4_plan.json" if name == "hh_small" else f"t4_plan_{name}.json")).read_text())
            rows.append([name, f"{plan['hours']:.1f} h" if plan["hours"] > 1.5 else f"{60 * plan['hours']:.0f} min", "estimated: training on a T4, counted in operations (docs/speed.md)"])
    table(["RUN", "time", "how we know"], rows)
