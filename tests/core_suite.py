"""Run one notebook as a script: `python core_suite.py NOTEBOOK`. Every cell that `nbdev_test` would run is run, in
the notebook's folder, without nbdev and without Jupyter, so it also works where nbdev does not."""
import ast, builtins, json, linecache, os, re, sys, time, types
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIRECTIVE = re.compile(r'^\s*#\s*\|\s*([\w-]+)\s*:?\s*(.*?)\s*$')

def stub_nbdev():
    "Stand-ins for the names of nbdev that pages import"
    def nothing(*args, **kwargs): return None
    for name, exports in {'nbdev': ['nbdev_export'], 'nbdev.showdoc': ['show_doc', 'doc'], 'nbdev.test': [], 'nbdev.export': ['nb_export']}.items():
        module = types.ModuleType(name)
        module.__all__, module.__path__ = exports, []
        for o in exports: setattr(module, o, nothing)
        sys.modules[name] = module

def directives(src):
    found = {}
    for line in src.splitlines():
        if m := DIRECTIVE.match(line): found[m[1]] = m[2].lower()
        elif line.strip(): break
    return found

def strip_magics(src):
    "Without IPython's magics and shell lines: a magic that wraps a cell leaves the cell, other languages leave nothing"
    lines = src.splitlines()
    first = next((i for i, o in enumerate(lines) if o.strip() and not DIRECTIVE.match(o)), None)
    if first is not None and (m := re.match(r'\s*%%(\w+)', lines[first])):
        if m[1] not in ('time', 'timeit', 'capture', 'prun'): return ''
        lines[first] = ''
    try: ast.parse('\n'.join(lines))     # a `%` or `!` that opens a line of valid Python is no magic
    except SyntaxError: lines = [re.sub(r'^(\s*)[%!?].*', r'\1pass', o) for o in lines]
    return '\n'.join(lines)

def main(path):
    config = ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini', encoding='utf-8')
    skip = set(config['DEFAULT']['tst_flags'].split())
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    if any(c['cell_type'] == 'raw' and re.search(r'^skip_exec:\s*true', ''.join(c['source']), re.M | re.I) for c in cells): return print('skipped: skip_exec')
    os.environ['IN_TEST'] = '1'
    os.environ.setdefault('MPLBACKEND', 'Agg')
    sys.path.insert(0, str(ROOT))
    stub_nbdev()
    from IPython.display import display
    builtins.display = display
    module = sys.modules['__main__'] = types.ModuleType('__main__')   # so that what the cells define can be pickled
    import fastai, fastcore
    print(f'fastai {fastai.__version__}, fastcore {fastcore.__version__}')
    os.chdir(path.parent)
    start, ran = time.time(), 0
    for i, cell in enumerate(cells):
        src = ''.join(cell['source'])
        found = directives(src)
        if cell['cell_type'] != 'code' or found.get('eval') == 'false' or skip & found.keys() or 'nbdev_export(' in src: continue
        src, name = strip_magics(src), f'{path.name}[{i}]'
        linecache.cache[name] = len(src), None, src.splitlines(True), name    # tracebacks and `inspect.getsource` find the cell
        exec(compile(src, name, 'exec'), module.__dict__)
        ran += bool(src.strip())
    print(f'{path.name}: {ran} cells in {time.time() - start:.0f} s')

if __name__ == '__main__': main(Path(sys.argv[1]).resolve())
