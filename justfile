# The commands of everyday work; `just` lists them.

_default:
    @just --list

# What CI runs.
test:
    bash .ci/run

# What the default suite leaves out: browser, clusters, kills, notebooks, site, exports, fuzz, benchmarks.
long:
    uv run pytest -m "long and not slow"

# The tests that take longer than a minute.
slow:
    uv run pytest -m slow

lint:
    uv run ruff check .
    uv run ruff format --check .
    uv run pyright

# Write the results tables of the READMEs anew, from results/.
readme:
    uv run python -m etude.report.markdown README.md docs/results.md src/etude/studies/*/README.md

# The site, in site/; `just docs serve` shows it and builds it anew when a page changes.
docs verb="build":
    uv run mkdocs {{verb}}

# The notebooks in a browser; their test is `uv run pytest -m notebook`.
notebooks:
    uv run --with jupyterlab jupyter lab notebooks

# Accept changed presets, after reading the difference.
golden:
    ETUDE_UPDATE_GOLDEN=1 uv run pytest tests/golden

# Speed beside the peers; wants an idle machine.
bench:
    uv run --extra bench python benchmarks/protonet.py
    uv run python benchmarks/norms.py
    uv run --extra bench python benchmarks/resnet.py
    uv run --extra bench python benchmarks/text2math.py
    uv run python benchmarks/dcgan.py
    uv run python benchmarks/pix2pix.py
    uv run --extra bench python benchmarks/slots.py
    uv run --extra bench python benchmarks/slotdiffusion.py
    uv run python benchmarks/darts.py
    uv run python benchmarks/startup.py

demo:
    uv run etude demo
