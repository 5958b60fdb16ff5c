"""`make pytest` lays the newest fastai, which users get, over the older one that nbdev 2 needs (tests/newest.txt). So all of
tests/ runs on it, and here pages that hang on its insides run on it as scripts, and every module is imported."""
import os, re, sys
from concurrent.futures import ThreadPoolExecutor
import fastai, pytest
from conftest import ROOT

VERSION = re.search(r'^fastai==(\S+)', (ROOT/'tests'/'newest.txt').read_text(), re.M)[1]

# The optimizer, and the stages. NEWEST_FASTAI=all runs every page of a module that imports fastai.
PAGES = '05_optim 06_pretrain 08_distill'.split()

def of_fastai(notebook):
    "Does what this notebook exports import fastai?"
    name = re.search(r'default_exp (\w+)', notebook.read_text(encoding='utf-8'))[1]
    return re.search(r'^\s*(from|import) fastai', (ROOT/'simclrv2_nb'/f'{name}.py').read_text(encoding='utf-8'), re.M)

ALL = [o for o in sorted((ROOT/'nbs'/'api').glob('[!_.]*.ipynb')) if of_fastai(o)]
NOTEBOOKS = ALL if os.environ.get('NEWEST_FASTAI') == 'all' else [o for o in ALL if o.stem in PAGES]

pytestmark = pytest.mark.skipif(fastai.__version__ != VERSION, reason=f'this is fastai {fastai.__version__}: `make pytest` lays {VERSION} over it')

@pytest.fixture(scope='module')
def runs(run):
    "Every notebook's run, two at a time: {path: future}"
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        yield {nb: pool.submit(run, sys.executable, ROOT/'tests'/'core_suite.py', nb, cwd=ROOT, check=False, MPLBACKEND='Agg') for nb in NOTEBOOKS}
        pool.shutdown(wait=False, cancel_futures=True)

def test_every_module(run, tmp_path):
    code = 'import fastai, importlib, pkgutil, simclrv2_nb; [importlib.import_module(o.name) for o in pkgutil.iter_modules(simclrv2_nb.__path__, "simclrv2_nb.") if not o.name.endswith("__main__")]; print(fastai.__version__)'
    assert run(sys.executable, '-c', code, cwd=tmp_path).stdout.split()[-1] == VERSION

@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda o: o.stem)
def test_notebook(runs, notebook):
    r = runs[notebook].result()
    assert r.returncode == 0, r.stdout[-6000:]
    assert f'fastai {VERSION},' in r.stdout
