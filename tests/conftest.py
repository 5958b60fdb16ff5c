import multiprocessing as mp, os, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
mp.set_forkserver_preload(['simclrv2_nb.memory', 'numpy', 'pytest'])         # imported once for all processes that tests start by it

def run_command(*cmd, cwd, timeout=600, check=True, **env):
    "Run `cmd` in `cwd` with one thread, and with `env` over the environment; stdout and stderr come back as one text"
    one_thread = dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1')
    full = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | one_thread | {k: str(v) for k, v in env.items()}
    if 'PYTHONPATH' in env: full['PYTHONPATH'] = os.pathsep.join(filter(None, [full['PYTHONPATH'], os.environ.get('PYTHONPATH')]))
    r = subprocess.run([str(o) for o in cmd], cwd=cwd, env=full, timeout=timeout, stdin=subprocess.DEVNULL,
                       text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if check: assert r.returncode == 0, f"{' '.join(map(str, cmd))} exited with {r.returncode}:\n{r.stdout[-6000:]}"
    return r

@pytest.fixture(scope='session')
def root(): return ROOT

@pytest.fixture(scope='session')
def run(): return run_command

@pytest.fixture(scope='session')
def pip(run):
    "Run pip of this interpreter"
    return lambda *args, **kw: run(sys.executable, '-m', 'pip', '--disable-pip-version-check', '--no-input', *args, **kw)
