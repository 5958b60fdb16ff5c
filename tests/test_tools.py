"The scripts in tools/ on pages small enough to check by eye."
import base64, importlib.util, json
import pytest

@pytest.fixture
def tool(root):
    def load(name):
        spec = importlib.util.spec_from_file_location(name, root/'tools'/f'{name}.py')
        spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
        return module
    return load

def md(src): return dict(cell_type='markdown', source=src)
def code(src, *outputs): return dict(cell_type='code', source=src, outputs=list(outputs))
def printed(text, name='stdout'): return dict(output_type='stream', name=name, text=text)

def test_readme_cells(tool):
    png = dict(output_type='display_data', data={'image/png': base64.b64encode(b'picture').decode()})
    text, files = tool('readme').readme(dict(cells=[
        md('# name\n\n> summary'), code('#| hide\nsecret()'), code('#| export\ndef secret(): pass'),
        code('#| eval: false\n%matplotlib inline\nloss(z)', printed('0.24\n'), printed('a warning', 'stderr')),
        code('#| echo: false\n#| fig-alt: "a plot"\nplot()', png)]))
    assert text.startswith('# name\n\n<!--') and '> summary' in text
    assert '```python\nloss(z)\n```\n\n    0.24\n\n![a plot](README_files/figure-1.png)' in text
    assert not any(o in text for o in ('secret', 'plot()', 'matplotlib', 'warning', '#|'))
    assert files == {'README_files/figure-1.png': b'picture'}

@pytest.mark.parametrize('quarto, github', [
    ('[a](api/04_loss.ipynb#x) ![b](images/b.png){width=50%}', '[a](nbs/api/04_loss.ipynb#x) ![b](nbs/images/b.png)'),
    ('[a](api/loss.html) [b](../LICENSE) [c](https://d.e)', '[a](nbs/api/04_loss.ipynb) [b](LICENSE) [c](https://d.e)'),
    ('`[a](b.ipynb)` and $\\sqrt[3]{x}$', '`[a](b.ipynb)` and $\\sqrt[3]{x}$'),
    ('::: {.callout-note}\n## Title\nText\n:::\nAfter', '> **Title**\n>\n> Text\nAfter'),
    ('::: {.callout-tip}\nText\n:::', '> **Tip:** Text'),
    ('::: {.column}\nText\n:::', 'Text'),
    ('```{python}\n[a](b.ipynb)\n:::\n```', '```python\n[a](b.ipynb)\n:::\n```'),
])
def test_readme_markdown(tool, quarto, github):
    assert tool('readme').markdown(quarto, {'api/loss.html': 'api/04_loss.ipynb'}) == github

def test_readme_refuses_links_out_of_the_repository(tool):
    with pytest.raises(SystemExit, match='outside the repository'): tool('readme').markdown('[a](../../b)', {})

@pytest.mark.parametrize('url, why', [
    ('b.ipynb', None), ('b.html#heading-one', None), ('#x', None), ('pic.png', None), ('https://a.b/c', None), ('https://site/a.html#x', None),
    ('c.ipynb', 'no such file'), ('b.ipynb#two', 'no such anchor'), ('no.png', 'no such file'), ('../b.ipynb', 'outside what is published'),
    ('https://site/c.html', 'no such file'), ('https://site/a.html#y', 'no such anchor')])
def test_links(tool, tmp_path, url, why):
    t, base = tool('check_docs'), tmp_path.resolve()/'docs'
    base.mkdir()
    (base/'pic.png').touch()
    for name, src in dict(a=f'# X\n[link]({url})', b='## Heading `one`').items(): (base/f'{name}.ipynb').write_text(json.dumps(dict(cells=[md(src)])))
    a, b = (t.notebook_page(base/f'{o}.ipynb') for o in 'ab')
    pages = {p: o for o in (a, b) for p in (o.path, o.html)}
    assert a.links == [url] and t.broken(a, url, pages, 'https://site', base) == why

@pytest.mark.parametrize('src, nested', [('[[`f`](https://a/b.html#f)](b.ipynb)', 1), ('[see [`f`](https://a) there](#x)', 1),
    ('[`f`](https://a) and [g](b.ipynb)', 0), ('```\n[[`f`](a)](b)\n```', 0), ('([`f`](https://a)) [h](b)', 0)])
def test_links_within_links(tool, tmp_path, src, nested): assert len(tool('check_docs').Page(tmp_path, [src]).nested) == nested

@pytest.mark.parametrize('src, found', [('```python\n z, # see [`f`](https://a/b.html#f)\n```', 1), ('[`f`](https://a)', 0), ('```\n[`f`](b)\n```', 0)])
def test_links_within_code(tool, tmp_path, src, found): assert len(tool('check_docs').Page(tmp_path, [src]).in_code) == found

def test_pages_of_the_sidebar(tool):
    f = tool('check_docs').not_in_sidebar
    sidebar = 'website:\n  sidebar:\n    contents:\n      - a.ipynb\n      - section: B\n        contents:\n          - b/c.ipynb\n'
    assert f(['a.ipynb','b/c.ipynb'], sidebar) == []
    assert f(['a.ipynb','d.ipynb'], sidebar) == ['b/c.ipynb','d.ipynb'] and f(['a.ipynb','b/c.ipynb'], sidebar+'      - a.ipynb\n') == ['a.ipynb']

def test_text_beside_the_title_is_told(tool, tmp_path):
    (tmp_path/'a.ipynb').write_text(json.dumps(dict(cells=[md('# Title\n\n> Summary\n\nLost.')])))
    assert tool('check_docs').lost_text(tmp_path/'a.ipynb') == ['Lost.']
