"README.md is what the home page makes."
import sys

def test_readme_agrees_with_the_home_page(root, run):
    run(sys.executable, 'tools/readme.py', '--check', cwd=root)
