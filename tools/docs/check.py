"""Is every link and anchor of the built site there, does it stay on this machine, has every picture a text?

    python tools/docs/check.py [SITE]        exit 1 and name what is wrong"""
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

class Links(HTMLParser):
    "What one page defines and asks for."
    def __init__(self, text:str):
        super().__init__()
        self.ids, self.links, self.loads, self.pictures, self.twice = set(), [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        name = a.get("id")
        if name in self.ids: self.twice.append(name)
        elif name is not None: self.ids.add(name)
        if tag == "a" and a.get("href"): self.links.append(a["href"])
        if tag == "img": self.pictures.append((a.get("src"), a.get("alt")))
        is_media = tag in ("img", "script", "iframe", "source", "video", "audio", "embed")
        if is_media and a.get("src"): self.loads.append(a["src"])
        if tag == "link" and a.get("href"): self.loads.append(a["href"])

@cache
def links_in(text:str) -> Links: # of a page; the same text is taken apart once
    return Links(text)

def links_of(page:Path) -> Links:
    return links_in(page.read_text(encoding="utf-8"))

def is_elsewhere(address:str) -> bool:
    parts = urlsplit(address)
    return parts.scheme not in ("", "data") or bool(parts.netloc)

def faults(site:Path) -> list[str]:
    "One sentence for everything that is wrong."
    pages = {p.resolve(): links_of(p) for p in sorted(site.rglob("*.html"))}
    files = {p for p in site.resolve().rglob("*") if p.is_file()}
    @cache
    def target_of(folder, address):
        return (folder/unquote(address)).resolve()

    said = [] if pages else [f"{site}: no page is there"]
    for path, page in pages.items():
        name = path.relative_to(site.resolve()).as_posix()
        said += [f"{name}: the id {i!r} is there twice" for i in page.twice]
        without_text = [src for src, alt in page.pictures if not (alt or "").strip()]
        said += [f"{name}: the picture {src} has no alternative text" for src in without_text]
        said += [f"{name}: loads {address} from elsewhere" for address in page.loads if is_elsewhere(address)]
        for x in [*page.links, *page.loads]:
            u = urlsplit(x)
            if u.scheme or u.netloc: continue
            target = target_of(path.parent, u.path) if u.path else path
            if target not in files:
                said.append(f"{name}: links to {x}, which is not there")
            elif u.fragment and target in pages and unquote(u.fragment) not in pages[target].ids:
                said.append(f"{name}: links to {x}, the page is there but not the anchor")
    return said

if __name__ == "__main__":
    found = faults(Path(sys.argv[1] if sys.argv[1:] else "_docs"))
    if found: sys.exit("\n".join(found))
    print("every link, anchor and picture is in order")
