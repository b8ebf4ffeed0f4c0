"""README.md from nbs/index.ipynb: its markdown, and the stored Markdown or text outputs of its visible code cells."""
import re
from pathlib import Path
import nbformat

root = Path(__file__).parent.parent
parts = []
for cell in nbformat.read(root/"nbs/index.ipynb", 4).cells:
    if cell.cell_type == "markdown":
        parts.append(cell.source)
        continue
    directives = set(re.findall(r"^#\|\s*(\w+)", cell.source, re.M))
    if "hide" in directives: continue
    if "echo" not in directives: parts.append(f"```python\n{cell.source}\n```")
    for out in cell.outputs:
        data = out.get("data", {})
        if "text/markdown" in data: parts.append("".join(data["text/markdown"]))
        elif "text" in out: parts.append("```\n" + "".join(out["text"]).rstrip() + "\n```")
text = "\n\n".join(p.strip() for p in parts) + "\n"
text = re.sub(r"\]\((?!https?://|#|nbs/)([^)]+\.(?:png|jpg|ipynb|svg))", r"](nbs/\1", text)
(root/"README.md").write_text("<!-- made from nbs/index.ipynb by make readme -->\n\n" + text, encoding="utf-8")
