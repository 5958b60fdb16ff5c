"Everything here comes from settings.ini: edit that file, not this one."
import shlex
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

root = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(root/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

expected = 'lib_name version description keywords author license min_python status audience language git_url requirements'.split()
if missing := [o for o in expected if not cfg.get(o)]: raise SystemExit(f"settings.ini lacks: {', '.join(missing)}")

licenses = dict(apache2='Apache-2.0', mit='MIT', gpl2='GPL-2.0-only', gpl3='GPL-3.0-only', bsd3='BSD-3-Clause')
statuses = ['1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable', '6 - Mature', '7 - Inactive']
suffix = '_requirements'
lib, first_minor = cfg['lib_name'], int(cfg['min_python'].split('.')[1])
readme = root/'README.md'

setup(
    name=lib,
    version=cfg['version'],
    description=cfg['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '',
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg.get('author_email') or None,
    url=cfg['git_url'],
    project_urls=dict(Documentation=cfg['doc_host'] + cfg['doc_baseurl']),
    keywords=cfg['keywords'].split(),
    license=licenses[cfg['license']],
    license_files=['LICENSE'],
    classifiers=[
        f"Development Status :: {statuses[int(cfg['status']) - 1]}",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        'Programming Language :: Python :: 3',
        *(f'Programming Language :: Python :: 3.{o}' for o in range(first_minor, 14)),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=[lib, f'{lib}.*']),
    package_data={lib: shlex.split(cfg.get('package_data', ''))},
    python_requires=f">={cfg['min_python']}",
    install_requires=shlex.split(cfg['requirements']),
    extras_require={k[:-len(suffix)]: shlex.split(v) for k, v in cfg.items() if k.endswith(suffix)},
    entry_points=dict(console_scripts=shlex.split(cfg.get('console_scripts', '')), nbdev=[f'{lib}={lib}._modidx:d']),
    zip_safe=False,
)
