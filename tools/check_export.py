#!/usr/bin/env python3
"""Check that the library is exactly what the notebooks export, and that the notebooks are clean.

Works on a copy in a temporary folder, so the tree stays as it is. Exit status 1 if anything differs.
"""
import difflib, os, shutil, subprocess, sys, tempfile
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parent.parent
config = ConfigParser(delimiters=['='])
config.read(root/'settings.ini', encoding='utf-8')
lib, nbs = config['DEFAULT']['lib_path'], config['DEFAULT']['nbs_path']
bin_dir = Path(sys.executable).parent
REFRESH = 'from nbdev.quarto import refresh_quarto_yml as f; f()'

def files(base, *patterns):
    "Paths under `base` that match, without what is hidden or cached"
    found = {p.relative_to(base) for o in patterns for p in base.glob(o) if p.is_file()}
    return {p for p in found if not any(o[0] == '.' or o == '__pycache__' for o in p.parts)}

def compare(base, copy, paths):
    "Print how `copy` differs from `base`; the number of files that do"
    bad = 0
    for p in sorted(paths):
        old, new = ((o/p).read_text(encoding='utf-8').splitlines(True) if (o/p).exists() else [] for o in (base, copy))
        if old == new and (base/p).exists() == (copy/p).exists(): continue
        bad += 1
        if not (copy/p).exists(): print(f'{p}: no notebook makes it'); continue
        if not (base/p).exists(): print(f'{p}: missing'); continue
        diff = list(difflib.unified_diff(old, new, f'{p} (committed)', f'{p} (from the notebooks)', n=1))
        sys.stdout.writelines(o if o.endswith('\n') else o + '\n' for o in diff[:20])
        if len(diff) > 20: print(f'… {len(diff) - 20} more lines of difference')
    return bad

def nbdev(copy, *args):
    "Run a tool of nbdev's in `copy`, out of reach of the user's own settings"
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | {'XDG_CONFIG_HOME': str(copy/'.config')}
    r = subprocess.run([str(bin_dir/args[0]), *args[1:]], cwd=copy, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if r.returncode: sys.exit(f'{args[0]} failed:\n{r.stdout}')
    if 'Failed to clean' in r.stdout: sys.exit(r.stdout)

def main():
    ignore = shutil.ignore_patterns('.*', '_proc', '__pycache__')
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/root.name
        copy.mkdir()
        shutil.copy(root/'settings.ini', copy)
        for o in ('_quarto.yml', 'README.md'):
            if (root/o).exists(): shutil.copy(root/o, copy)
        shutil.copytree(root/nbs, copy/nbs, symlinks=True, ignore=ignore)
        nbdev(copy, 'nbdev_export')
        nbdev(copy, 'python', '-c', REFRESH)
        pages = files(root/nbs, '**/*.ipynb')
        modules = files(root/lib, '**/*.py') | files(copy/lib, '**/*.py')
        differ = compare(root/lib, copy/lib, modules) + compare(root/nbs, copy/nbs, {Path('nbdev.yml')})
        nbdev(copy, 'nbdev_clean')
        dirty = [p for p in sorted(pages) if (root/nbs/p).read_bytes() != (copy/nbs/p).read_bytes()]
    for p in dirty: print(f'{nbs}/{p}: not clean')
    if differ: print(f'{differ} files are not what the notebooks export: run `make export`')
    else: print(f'{lib}/: {len(modules)} modules, exactly what {len(pages)} notebooks export')
    if dirty: print(f'{len(dirty)} notebooks are not clean: run `nbdev_clean`')
    else: print(f'{nbs}/: {len(pages)} notebooks, all clean')
    return 1 if differ or dirty else 0

if __name__ == '__main__': sys.exit(main())
