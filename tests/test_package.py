"What a user gets: the sdist and the wheel, built and installed away from the repository."
import shutil, sys, tarfile, zipfile
import pytest

IMPORTED = "import sys, {module} as m; print(m.__file__); print(sorted({names} & set(sys.modules)))"

@pytest.fixture(scope='module')
def dist(root, run, tmp_path_factory):
    "The sdist, and the wheel that is built from it"
    src, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('dist')
    for o in ('settings.ini', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE', 'CONTRIBUTING.md', 'CHANGELOG.md'): shutil.copy(root/o, src)
    shutil.copytree(root/'simclrv2_nb', src/'simclrv2_nb', ignore=shutil.ignore_patterns('__pycache__'))
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, src, cwd=out)
    return next(out.glob('*.tar.gz')), next(out.glob('*.whl'))

@pytest.fixture(scope='module')
def installed(dist, pip, tmp_path_factory):
    "A folder with the wheel and nothing else"
    path = tmp_path_factory.mktemp('site')
    pip('install', '--quiet', '--no-deps', '--target', path, dist[1], cwd=path)
    return path

def library_files(root):
    return {p.relative_to(root).as_posix() for p in (root/'simclrv2_nb').rglob('*')
            if p.is_file() and '__pycache__' not in p.parts and not p.name.startswith('.')}

def test_wheel_holds_the_whole_library(root, dist):
    names = set(zipfile.ZipFile(dist[1]).namelist())
    assert library_files(root) <= names, f'missing: {sorted(library_files(root) - names)}'
    assert any(o.endswith('.npz') for o in names), 'no sample data'
    assert any('/assets/' in o and not o.endswith('.npz') for o in names), 'no licence notice beside the sample data'
    assert any(o.endswith('licenses/LICENSE') for o in names)
    assert {o.split('/')[0] for o in names} == {'simclrv2_nb', next(o for o in names if '.dist-info' in o).split('/')[0]}

def test_sdist_can_be_built_from(root, dist):
    names = {o.partition('/')[2] for o in tarfile.open(dist[0]).getnames()}
    wanted = library_files(root) | {'settings.ini', 'setup.py', 'README.md', 'LICENSE', 'CONTRIBUTING.md', 'CHANGELOG.md'}
    assert wanted <= names, f'missing: {sorted(wanted - names)}'

def test_wheel_metadata(dist):
    z = zipfile.ZipFile(dist[1])
    meta, entry = (z.read(next(n for n in z.namelist() if n.endswith(f'dist-info/{o}'))).decode() for o in ('METADATA', 'entry_points.txt'))
    assert 'Requires-Python: >=3.10' in meta and 'Requires-Dist: fastai>=2.8.7' in meta
    assert not any('==' in o and 'extra ==' not in o for o in meta.splitlines() if o.startswith('Requires-Dist')), 'a pin reached the users'
    assert 'simclrv2 = simclrv2_nb.cli:main' in entry and 'simclrv2_nb = simclrv2_nb._modidx:d' in entry

@pytest.mark.parametrize('module, unwanted', [('simclrv2_nb', {'torch', 'fastai'}), ('simclrv2_nb.loss', {'fastai.vision'})])
def test_imports_from_the_wheel_and_no_more_than_it_needs(installed, run, tmp_path, module, unwanted):
    code = IMPORTED.format(module=module, names=unwanted)
    where, loaded = run(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=installed).stdout.splitlines()[-2:]
    assert where.startswith(str(installed)), f'imported from {where}'
    assert loaded == '[]'

def test_every_module_imports(root, installed, run, tmp_path):
    names = sorted(f'simclrv2_nb.{p.stem}' for p in (root/'simclrv2_nb').glob('[a-z]*.py'))
    code = f'import importlib, simclrv2_nb\nfor o in {names}: importlib.import_module(o)\nprint(simclrv2_nb.__file__)'
    assert run(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=installed).stdout.splitlines()[-1].startswith(str(installed))

def test_installed_command(installed, run, tmp_path):
    out = run(installed/'bin'/'simclrv2', '--help', cwd=tmp_path, PYTHONPATH=installed, COLUMNS='120').stdout
    assert 'demo' in out
