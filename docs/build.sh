#!/usr/bin/env bash
# Builds the site from mkdocs.yml into build/site: pip install -c constraints.txt -e '.[docs]' && docs/build.sh
# Pages keep their paths of the repository, so that one relative link serves both; README.md is the site's first page.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf build/pages build/site
mkdir -p build/pages
tar -cf - ./*.md LICENSE benchmarks/*.md configs/*.py docs examples/*.py launch notebooks tests/*.py \
  vgg_jax/recipe.py |
  tar -xf - -C build/pages
zensical build --clean --strict
