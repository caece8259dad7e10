"""A report as a list of blocks, each a tuple that begins with its kind, and two renderers: Markdown, and one HTML file with its
pictures inside. Everything a model wrote is escaped: a reply cannot become part of the page."""
import base64
import html
from pathlib import Path

Block = tuple  # ("title" | "heading" | "text", str), ("table", header, rows), ("picture", file, caption), ("code", str), ("sample", dict)


def to_markdown(blocks: list[Block]) -> str:
    """The blocks as Markdown; pictures by file name, replies as indented code, so that nothing in them is interpreted."""
    def cell(text: str) -> str:
        return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")

    def indented(text: str) -> str:
        return "\n".join("    " + line for line in (text or "(empty)").splitlines())

    parts = []
    for kind, *content in blocks:
        if kind in ("title", "heading"):
            parts.append(("# " if kind == "title" else "## ") + content[0])
        elif kind == "text":
            parts.append(html.escape(content[0], quote=False))
        elif kind == "table":
            header, rows = content
            lines = [header, ["---"] * len(header), *rows]
            parts.append("\n".join("| " + " | ".join(cell(text) for text in line) + " |" for line in lines))
        elif kind == "picture":
            parts.append(f"![{content[1]}]({content[0]})")
        elif kind == "code":
            parts.append(indented(content[0]))
        else:
            sample = content[0]
            parts += [f"**{sample['id']}**", indented(sample["prompt"])]
            for label, reply in sample["replies"].items():
                parts += [f"{label}:", indented(reply)]
    return "\n\n".join(parts) + "\n"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #1a1a1a }
h1 { font-size: 1.6em } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ddd }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: 3px 10px; border-bottom: 1px solid #e4e4e4; vertical-align: top }
td:not(:first-child), th { white-space: nowrap } table.facts td, table.sample td { white-space: normal } img { max-width: 100% }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: inherit } details pre { font: 12px monospace }
table.sample { width: 100%; margin: 1em 0; table-layout: fixed; background: #f7f7f7 }
"""


def to_html(blocks: list[Block], folder: Path) -> str:
    """The blocks as one HTML page; pictures are read from `folder` and embedded, all text is escaped."""
    def row(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    def said(who: str, text: str, attributes: str = "") -> str:
        return f"<td{attributes}><b>{html.escape(who)}</b><pre>{html.escape(text or '(empty)')}</pre></td>"

    parts = []
    for kind, *content in blocks:
        if kind in ("title", "heading"):
            tag = "h1" if kind == "title" else "h2"
            parts.append(f"<{tag}>{html.escape(content[0])}</{tag}>")
        elif kind == "text":
            parts.append(f"<p>{html.escape(content[0])}</p>")
        elif kind == "table":
            header, rows = content
            style = ' class="facts"' if len(header) == 2 else ""
            lines = "\n".join([row(header, "th"), *(row(cells, "td") for cells in rows)])
            parts.append(f'<div class="scroll"><table{style}>{lines}</table></div>')
        elif kind == "picture":
            data = base64.b64encode((folder / content[0]).read_bytes()).decode()
            parts.append(f'<img alt="{html.escape(content[1])}" src="data:image/png;base64,{data}">')
        elif kind == "code":
            parts.append(f"<details><summary>show</summary><pre>{html.escape(content[0])}</pre></details>")
        else:
            sample = content[0]
            replies = "".join(said(label, reply) for label, reply in sample["replies"].items())
            prompt = said(sample["id"], sample["prompt"], f' colspan="{len(sample["replies"])}"')
            parts.append(f'<table class="sample"><tr>{prompt}</tr><tr>{replies}</tr></table>')
    title = html.escape(blocks[0][1])
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title><style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n")
