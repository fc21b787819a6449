#!/usr/bin/env bash
# Runs the quick tests with the lowest versions that requirements.txt allows, in .venv-lowest.
set -euo pipefail
cd "$(dirname "$0")/.."

pins() { sed 's/\[.*\]//; s/>=/==/' requirements.txt; }

python3 -m venv .venv-lowest
# Of the tests' packages, transformers needs a newer huggingface_hub.
.venv-lowest/bin/pip install -q -r tests/requirements.txt -c <(pins | grep -v '^huggingface_hub')
.venv-lowest/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow'
.venv-lowest/bin/pip uninstall -q -y transformers
.venv-lowest/bin/pip install -q "$(pins | grep '^huggingface_hub')"
.venv-lowest/bin/python -m pytest tests/weights/test_hub.py tests/weights/test_files.py
