#!/usr/bin/env python3
"""Process every page of the docs as nbdev does before Quarto, then check that every internal link resolves.

Checked: links and pictures in the pages (also those nbdev made of back-ticked names), anchors, and the relative
links of the Markdown files at the root. Also told: links within links and links within code (nbdev links names that
stand in back-ticks, also where it should not), text that would be lost from the site, and pages that are not in
its sidebar. Exit status 1 if a page
cannot be processed, or for any of these.
"""
import argparse, json, os, re, sys
from pathlib import Path
from urllib.parse import unquote

root = Path(__file__).resolve().parent.parent

FENCE = re.compile(r'^\s*(`{3,}|~{3,})')
LINK = re.compile(r'\]\(\s*(<[^>]*>|[^()\s]*(?:\([^()]*\)[^()\s]*)*)(?:\s+"[^"]*")?\s*\)')
REFERENCE = re.compile(r'^\s*\[[^\]^]+\]:\s+(\S+)')
NESTED = re.compile(r'\[[^\[\]]*\[`[^`]*`\]\([^)]*\)[^\[\]]*\]\(')
CODE_LINK = re.compile(r'\[`[^`]+`\]\(\w+:[^)]*\)')
HTML_LINK = re.compile(r'''<(?:a|img|source|video|iframe)\b[^>]*?\b(?:href|src)=["']([^"']+)''')
HTML_ID = re.compile(r'''<[a-z]\w*\b[^>]*?\b(?:id|name)=["']([^"']+)''')
HEADING = re.compile(r'^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$')
EXPLICIT_ID = re.compile(r'\{[^{}]*#([\w:.-]+)[^{}]*\}')
LABEL = re.compile(r'^#\|\s*label:\s*(\S+)', re.M)

def text(o): return ''.join(o) if isinstance(o, list) else o or ''

def slug(heading):
    "The anchor that Pandoc makes of a heading"
    s = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', re.sub(r'<[^>]*>', '', re.sub(r'\{[^{}]*\}\s*$', '', heading)))
    s = re.sub(r'[^\w\s.-]', '', s.replace('*', '').lower())
    return re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', s.strip())) or 'section'

def github_slug(heading):
    "The anchor that GitHub makes of a heading"
    s = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', re.sub(r'<[^>]*>', '', heading))
    return re.sub(r'\s', '-', re.sub(r'[^\w\s-]', '', s.lower()).strip())

class Page:
    "Links and anchors of one page"
    def __init__(self, path, pieces, slug=slug):
        self.path, self.links, self.nested, self.in_code, self.ids, count = path, [], [], [], set(), {}
        for piece in pieces:
            fence = None
            for line in piece.splitlines():
                m = FENCE.match(line)
                if fence:
                    if m and m[1].startswith(fence) and line.strip() == m[1]: fence = None
                    else: self.in_code += CODE_LINK.findall(line)
                    continue
                if m: fence = m[1]; continue
                self.nested += NESTED.findall(line)
                plain = re.sub(r'(`+)[^`].*?\1', '``', line)
                self.links += LINK.findall(plain) + REFERENCE.findall(plain) + HTML_LINK.findall(plain)
                self.ids |= set(HTML_ID.findall(plain)) | set(EXPLICIT_ID.findall(plain))
                if h := HEADING.match(line):
                    s = slug(h[1])
                    n = count[s] = count.get(s, -1) + 1
                    self.ids.add(f'{s}-{n}' if n else s)

def notebook_page(path):
    nb, pieces, labels = json.loads(path.read_text(encoding='utf-8')), [], set()
    for c in nb['cells']:
        src = text(c['source'])
        if c['cell_type'] == 'markdown': pieces.append(src)
        labels |= set(LABEL.findall(src))
        for o in c.get('outputs', []):
            data = o.get('data', {})
            pieces.append(text(data.get('text/markdown')) or text(data.get('text/html')))
    page = Page(path, pieces)
    page.ids |= labels
    raw = next((text(c['source']) for c in nb['cells'] if c['cell_type'] == 'raw'), '')
    out = re.search(r'^output-file:\s*(\S+)', raw, re.M)
    page.html = path.with_name(out[1]) if out else path.with_suffix('.html')
    return page

def lost_text(path):
    "Lines of a notebook's title cell that the site drops: nbdev keeps the title, the first `>` line and `- key: value` lines"
    for c in json.loads(path.read_text(encoding='utf-8'))['cells']:
        src = text(c['source'])
        if c['cell_type'] != 'markdown' or not re.search(r'^#\s+\S', src, re.M): continue
        lines = [o for o in src.splitlines() if o.strip() and not re.match(r'#\s+\S|-\s+\S.*:.*\S', o)]
        quote = next((o for o in lines if re.match(r'>\s+\S', o)), None)
        return [o for o in lines if o is not quote]
    return []

def not_in_sidebar(pages, sidebar):
    "Pages that sidebar.yml does not list, and those that it lists though they are not there"
    listed = re.findall(r'^\s*-\s+(\S+\.ipynb)\s*$', sidebar, re.M)
    return sorted(set(pages) ^ set(listed)) + sorted({o for o in listed if listed.count(o) > 1})

def broken(page, url, pages, site, base):
    "Why `url` on `page` does not resolve, or None"
    url = url.strip('<>')
    if site and url.startswith(site): url = url[len(site):] if url[len(site):].startswith('/') else '/'
    elif re.match(r'[a-z][\w+.-]*:|//', url, re.I): return None
    name, _, anchor = url.partition('#')
    name = unquote(name.partition('?')[0])
    if not name: target = page.path
    elif name == '/': target = base/'index.html'
    else: target = (base/name.lstrip('/') if name.startswith('/') else page.path.parent/name).resolve()
    if base not in target.parents: return 'outside what is published'
    other = page if target == page.path else pages.get(target)
    if not other: return None if target.exists() and not target.suffix == '.html' else 'no such file'
    if anchor and unquote(anchor).lower() not in {o.lower() for o in other.ids}: return 'no such anchor'

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--n_workers', type=int, default=2, help='pages processed at a time')
    parser.add_argument('--cached', action='store_true', help='process only pages changed since the last time')
    args = parser.parse_args()
    os.environ.setdefault('PYTHONWARNINGS', 'ignore:Found cells containing imports')   # nbdev's advice, of no concern to links
    from nbdev.config import get_config
    from nbdev.serve import proc_nbs
    cfg = get_config()
    cache = Path(proc_nbs(n_workers=args.n_workers, force=not args.cached)).resolve()
    source = {p.relative_to(cfg.nbs_path) for p in cfg.nbs_path.rglob('*.ipynb')}
    docs = [notebook_page(p) for p in sorted(cache.rglob('*.ipynb')) if p.relative_to(cache) in source]
    docs += [Page(p, [p.read_text(encoding='utf-8')]) for o in ('*.qmd', '*.md') for p in sorted(cache.rglob(o))]
    pages = {}
    for o in docs: pages[o.path] = pages[getattr(o, 'html', o.path.with_suffix('.html'))] = o
    site = (cfg.doc_host + cfg.doc_baseurl).rstrip('/')
    top = [Page(p, [p.read_text(encoding='utf-8')], github_slug) for p in sorted(root.glob('*.md'))]
    count, bad = 0, []
    for page, base, known in [(o, cache, pages) for o in docs] + [(o, root, {o.path: o for o in top}) for o in top]:
        for url in page.links:
            count += 1
            why = broken(page, url, known, site if base == cache else None, base)
            if why: bad.append(f'{page.path.relative_to(base)}: {url}: {why}')
    bad += [f'{o.path.relative_to(cache)}: {l}…: a link within a link; nbdev links back-ticked names itself, so leave the outer one out' for o in docs for l in o.nested]
    bad += [f'{o.path.relative_to(cache)}: {l}: a link within code, where it shows as it stands; write the name in that docment without back-ticks' for o in docs for l in o.in_code]
    for p in sorted(source):
        if not any(o[0] in '._' for o in p.parts) and (lost := lost_text(cfg.nbs_path/p)):
            bad.append(f'{p}: the title cell holds more than title and summary, which the site drops: {lost[0][:60]!r}; move it to a cell of its own')
    shown = [p.as_posix() for p in source if not any(o[0] in '._' for o in p.parts)]
    bad += [f'{p}: once in nbs/ and once in nbs/sidebar.yml is how it should be' for p in not_in_sidebar(shown, (cfg.nbs_path/'sidebar.yml').read_text(encoding='utf-8'))]
    for o in bad: print(o)
    print(f'{len(docs)} pages processed, {count} links checked, {len(bad)} problems')
    return 1 if bad else 0

if __name__ == '__main__': sys.exit(main())
