"""The development set pins an older fastai, because nbdev 2 needs it; users get the newest. So the newest is laid over
the installed packages, every module is imported, and the pages that hang most on fastai run on it as scripts."""
import os, re, sys
from concurrent.futures import ThreadPoolExecutor
import pytest
from conftest import ROOT

VERSION = '2.8.12'
NEWEST = [f'fastai=={VERSION}', 'fastcore>=2.2.22,<3', 'fasttransform>=0.0.3,<0.1', 'plum-dispatch<2.10']

# The three stages, the optimizer, resuming and many processes: what hangs most on fastai's insides. NEWEST_FASTAI=all runs every page of a module that imports fastai.
PAGES = '05_optim 05c_resume 05d_distributed 06_pretrain 07_finetune 08_distill'.split()

def of_fastai(notebook):
    "Does what this notebook exports import fastai?"
    name = re.search(r'default_exp (\w+)', notebook.read_text(encoding='utf-8'))[1]
    return re.search(r'^\s*(from|import) fastai', (ROOT/'simclrv2_nb'/f'{name}.py').read_text(encoding='utf-8'), re.M)

ALL = [o for o in sorted((ROOT/'nbs'/'api').glob('[!_.]*.ipynb')) if of_fastai(o)]
NOTEBOOKS = ALL if os.environ.get('NEWEST_FASTAI') == 'all' else [o for o in ALL if o.stem in PAGES]
NO_NETWORK = r'NewConnectionError|NameResolutionError|Temporary failure in name resolution|ConnectTimeout|ProxyError|Network is unreachable|\(from versions: none\)'

@pytest.fixture(scope='module')
def overlay(pip, tmp_path_factory):
    path = tmp_path_factory.mktemp('newest')
    r = pip('install', '--quiet', '--no-deps', '--target', path, *NEWEST, cwd=path, check=False)
    if r.returncode and re.search(NO_NETWORK, r.stdout): pytest.skip('pip reaches no package index, so the newest fastai cannot be fetched')
    assert r.returncode == 0, r.stdout
    return path

@pytest.fixture(scope='module')
def runs(overlay, run):
    "Every notebook's run, two at a time: {path: future}"
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        yield {nb: pool.submit(run, sys.executable, ROOT/'tests'/'core_suite.py', nb, cwd=ROOT, check=False, PYTHONPATH=overlay, MPLBACKEND='Agg')
               for nb in NOTEBOOKS}
        pool.shutdown(wait=False, cancel_futures=True)

def test_the_overlay_is_what_runs(overlay, run, tmp_path):
    code = 'import fastai, fastcore, plum, importlib, pkgutil, simclrv2_nb; [importlib.import_module(o.name) for o in pkgutil.iter_modules(simclrv2_nb.__path__, "simclrv2_nb.") if not o.name.endswith("__main__")]; print(fastai.__version__, fastcore.__version__); print(fastai.__file__)'
    versions, where = run(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=overlay).stdout.splitlines()[-2:]
    fastai, fastcore = versions.split()
    assert fastai == VERSION and int(fastcore.split('.')[0]) >= 2 and where.startswith(str(overlay))

@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda o: o.stem)
def test_notebook_on_the_newest_fastai(runs, notebook):
    r = runs[notebook].result()
    assert r.returncode == 0, r.stdout[-6000:]
    assert f'fastai {VERSION},' in r.stdout or 'skip_exec' in r.stdout
