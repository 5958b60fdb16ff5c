#!/usr/bin/env python3
"""Write README.md from nbs/index.ipynb, without Quarto and with the standard library alone.

Hidden and exported cells are dropped, as are directives and Quarto's own syntax; links are turned to where the
file lies in the repository. With --check nothing is written: a difference is printed and the exit status is 1.
"""
import argparse, base64, difflib, json, posixpath, re, sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
nbs = 'nbs'
images = 'README_files'
banner = '<!-- Made from nbs/index.ipynb by tools/readme.py: edit the notebook, not this file. -->'

DIRECTIVE = re.compile(r'^\s*#\s*\|\s*([\w-]+)\s*:?\s*(.*?)\s*$')
HIDDEN = {'hide', 'export', 'exporti', 'default_exp'}
FENCE = re.compile(r'^\s*(```+|~~~+)')
DIV = re.compile(r'^\s*(:{3,})\s*(.*?)\s*$')
LINK = re.compile(r'(\]\()\s*(<[^>]*>|[^)\s]+)((?:\s+"[^"]*")?\s*\))')
REFERENCE = re.compile(r'^(\s*\[[^\]^]+\]:\s+)(\S+)')
HTML_LINK = re.compile(r'''(<(?:a|img)\b[^>]*?\b(?:href|src)=["'])([^"']+)''')
ATTRIBUTES = re.compile(r'(\]\([^()\s]*(?:\s+"[^"]*")?\))\{[^{}]*\}|(\])\{[.#][^{}]*\}|^(#+\s.*?)\s*\{[.#][^{}]*\}\s*$')
ANSI = re.compile(r'\x1b\[[0-9;?]*[ -/]*[@-~]')

def text(o): return ''.join(o) if isinstance(o, list) else o or ''

def page_sources():
    "Rendered page → notebook: a number in front of a notebook's name is not in its page's name."
    pages = {}
    for p in (root/nbs).rglob('*.ipynb'):
        rel = p.relative_to(root/nbs)
        if not any(o[0] in '._' for o in rel.parts):
            pages[(rel.parent/re.sub(r'^\d+[a-zA-Z0-9]*_', '', rel.name.lower())).with_suffix('.html').as_posix()] = rel.as_posix()
    return pages

def relink(url, pages):
    "A link as it stands in nbs/index.ipynb → as it must stand in README.md"
    url = url.strip('<>')
    if re.match(r'[a-z][\w+.-]*:|//|#', url, re.I): return url
    path, mark, anchor = url.partition('#')
    path = posixpath.normpath(path.lstrip('/'))
    res = posixpath.normpath(posixpath.join(nbs, pages.get(path, path)))
    if res.startswith('../'): raise SystemExit(f'nbs/index.ipynb links to {url}, which is outside the repository')
    return res + mark + anchor

def fix_line(line, pages):
    "Plain Markdown of one line outside code fences: inline code is left alone"
    if re.match(r'#+\s.*\s-\s*$', line): return None
    parts = re.split(r'(`+[^`]*`+)', line)
    for i in range(0, len(parts), 2):
        s = ATTRIBUTES.sub(lambda m: m[1] or m[2] or m[3], parts[i])
        s = HTML_LINK.sub(lambda m: m[1] + relink(m[2], pages), s)
        parts[i] = LINK.sub(lambda m: m[1] + relink(m[2], pages) + m[3], s)
    return REFERENCE.sub(lambda m: m[1] + relink(m[2], pages), ''.join(parts))

def markdown(src, pages):
    "Quarto's Markdown → GitHub's: callouts become block quotes, other fenced divs lose their fences"
    out, divs, fence, kind = [], [], None, ''   # `kind`: of a callout whose first line is still to come
    def put(line): out.append(('> ' * sum(divs) + line).rstrip())
    for line in src.splitlines():
        code, div = FENCE.match(line), DIV.match(line)
        if fence:
            put(line)
            if code and line.strip() == code[1] and code[1].startswith(fence): fence = None
        elif div and div[2]:
            callout = re.search(r'\.callout-(\w+)', div[2])
            divs.append(bool(callout))
            if not callout: continue
            kind = callout[1].capitalize()
            if title := re.search(r'title="([^"]*)"', div[2]):
                put(f'**{title[1]}**')
                put('')
                kind = ''
        elif div: divs, kind = divs[:-1], ''
        elif kind and not line.strip(): continue
        elif code:
            if kind:
                put(f'**{kind}**')
                put('')
                kind = ''
            fence = code[1]
            put(re.sub(r'\{\.?(\w+)[^}]*\}', r'\1', line))
        elif (line := fix_line(line, pages)) is None: continue
        elif kind:   # a heading that opens a callout is its title
            head = re.match(r'#+\s+(.*)', line)
            put(f'**{head[1]}**' if head else f'**{kind}:** {line}')
            if head: put('')
            kind = ''
        else: put(line)
    return re.sub(r'\n>\n>(?=\n)', '\n>', '\n'.join(out)).strip('\n')

def directives(src):
    "Leading `#|` lines as a dict, and the code that follows them"
    lines, found = src.splitlines(), {}
    while lines and (m := DIRECTIVE.match(lines[0])):
        found[m[1]] = m[2].strip('"\'')
        lines.pop(0)
    return found, '\n'.join(lines)

def code_text(code):
    lines = [o for o in code.splitlines() if not re.match(r'\s*%', o) and not re.search(r'#\|\s*hide_line\s*$', o)]
    return '\n'.join(lines).strip('\n')

def indent(s): return '\n'.join(f'    {o}'.rstrip() for o in s.rstrip().splitlines())

class Outputs:
    "The outputs of a cell as Markdown; the pictures among them are kept in `files`"
    def __init__(self, pages): self.pages, self.files = pages, {}

    def picture(self, data, ext, opts):
        name = f'{images}/figure-{len(self.files) + 1}.{ext}'
        self.files[name] = base64.b64decode(text(data)) if ext != 'svg' else text(data).encode()
        cap = opts.get('fig-cap', '')
        return f"![{opts.get('fig-alt') or cap}]({name})" + (f'\n\n*{cap}*' if cap else '')

    def one(self, o, opts):
        if o['output_type'] == 'stream': return indent(ANSI.sub('', text(o['text']))) if o['name'] == 'stdout' else ''
        data = o.get('data', {})
        if 'application/vnd.jupyter.widget-view+json' in data: return ''
        for mime, ext in {'image/png': 'png', 'image/jpeg': 'jpg', 'image/svg+xml': 'svg'}.items():
            if mime in data: return self.picture(data[mime], ext, opts)
        if 'text/markdown' in data: return markdown(text(data['text/markdown']), self.pages)
        if 'text/html' in data: return re.sub(r'<style.*?</style>\n?', '', text(data['text/html']), flags=re.S).strip()
        return indent(ANSI.sub('', text(data.get('text/plain'))))

def readme(nb):
    "README text, and the pictures it shows"
    pages = page_sources()
    outs, parts = Outputs(pages), []
    for cell in nb['cells']:
        src = text(cell['source'])
        if cell['cell_type'] == 'raw' or re.match(r'---\n.*\n---\s*$', src, re.S): continue
        if cell['cell_type'] == 'markdown': parts.append(markdown(src, pages)); continue
        opts, code = directives(src)
        if HIDDEN & opts.keys() or opts.get('include') == 'false': continue
        code = code_text(code)
        if code and opts.get('echo') != 'false': parts.append(f'```python\n{code}\n```')
        if opts.get('output') != 'false': parts += [outs.one(o, opts) for o in cell.get('outputs', [])]
    parts = [o for o in parts if o]
    head = 1 if parts and parts[0].startswith('# ') else 0
    if head:   # the banner goes under the title
        title, _, rest = parts[0].partition('\n')
        parts[:1] = [title, banner] + ([rest.strip('\n')] if rest.strip() else [])
    else: parts.insert(0, banner)
    return '\n\n'.join(parts) + '\n', outs.files

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='write nothing; exit 1 with a diff if README.md is out of date')
    check = parser.parse_args().check
    new, files = readme(json.loads((root/nbs/'index.ipynb').read_text(encoding='utf-8')))
    path, folder = root/'README.md', root/images
    extra = [p for p in folder.glob('*') if p.relative_to(root).as_posix() not in files] if folder.exists() else []
    if not check:
        path.write_text(new, encoding='utf-8')
        folder.mkdir(exist_ok=True) if files else None
        for name, data in files.items(): (root/name).write_bytes(data)
        for p in extra: p.unlink()
        if folder.exists() and not files: folder.rmdir()
        return print(f'README.md written: {len(new.splitlines())} lines, {len(files)} pictures')
    old = path.read_text(encoding='utf-8') if path.exists() else ''
    diff = list(difflib.unified_diff(old.splitlines(True), new.splitlines(True), 'README.md', 'from nbs/index.ipynb'))
    stale = [n for n, d in files.items() if not (root/n).exists() or (root/n).read_bytes() != d] + [str(p) for p in extra]
    sys.stdout.writelines(diff)
    for o in stale: print(f'{o}: not as in nbs/index.ipynb')
    if diff or stale: sys.exit('README.md is out of date: run `make readme`')
    print('README.md agrees with nbs/index.ipynb')

if __name__ == '__main__': main()
