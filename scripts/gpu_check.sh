#!/bin/sh
# Everything that only a GPU can show, in one command of under nine minutes: the tests marked gpu, then benchmarks.gpu.
# Results go to $OUT, else to gpu-results/. On a machine without a network, `make gpu-pack` has packed what it lacks.
# GPU_MINUTES: of the benchmark. GPU_ARGS: more arguments of it, such as "--cpu --tiny" to try this script itself.
set -eu
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
out="${OUT:-gpu-results}"
mkdir -p "$out"
unsloth=""
version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
if [ -f "dist/gpu-packages-$version.tgz" ]; then
    site="$(mktemp -d)"
    tar xzf "dist/gpu-packages-$version.tgz" -C "$site"
    export PYTHONPATH="$site"
fi
if [ -f "dist/gpu-unsloth-$version.tgz" ]; then
    unsloth="$(mktemp -d)"
    tar xzf "dist/gpu-unsloth-$version.tgz" -C "$unsloth"
fi
export PYTHONDONTWRITEBYTECODE=1
scratch="${TMPDIR:-/tmp}"
# 20 GB of bases, faster to read from memory where there is plenty
if [ "$(df -k --output=avail /dev/shm 2>/dev/null | tail -n 1)" -gt 40000000 ] 2>/dev/null; then scratch=/dev/shm; fi
timeout 150 "$python" -m pytest -q -n "${GPU_TEST_PROCESSES:-4}" -m gpu -p no:cacheprovider --durations=5 \
    tests/test_device_parity.py tests/test_quantization.py tests/test_decode_loop.py >"$out/tests.txt" 2>&1 || echo "tests: see $out/tests.txt"
tail -n 15 "$out/tests.txt"
# shellcheck disable=SC2086
"$python" -m benchmarks.gpu --minutes "${GPU_MINUTES:-6}" --out "$out" --scratch "$scratch" ${unsloth:+--unsloth "$unsloth"} ${GPU_ARGS:-}
