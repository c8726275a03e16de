#!/bin/bash
# One stage of gpu.py on a machine with a GPU and no network, in under ten minutes with the build:
#
#     bash benchmarks/gpu.sh build|correctness|ceilings|layered|selection|sparse|variants [OUT] [options of gpu.py]
#
# Wheels that the machine lacks lie in .whl/. What was built stays in .site/ and is built anew when a source changes.
# CMAKE_ARGS goes to the build; FASTSAE_GPU_ARCHITECTURES (90a: H100 and H200) says for which GPUs.
set -euo pipefail
shopt -s nullglob
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stage=${1:?one of build, correctness, ceilings, layered, selection, sparse, variants}
out=${2:-benchmarks/results}
shift $(($# < 2 ? $# : 2))
mkdir -p "$out"
end=570 # seconds of the whole script

sources() {
  find CMakeLists.txt pyproject.toml cmake cpp cuda python -type f ! -name '*.so' ! -name '*.pyc' -print0 |
    sort -z | xargs -0 sha256sum | sha256sum
  echo "${FASTSAE_GPU_ARCHITECTURES:-90a} ${CMAKE_ARGS:-}"
}

install() {
  python3 -m pip install -q --no-index --no-deps --no-cache-dir --upgrade --target .site "$@"
}

build() {
  local wheels=(.whl/*.whl)
  mkdir -p .site
  if ((${#wheels[@]})); then
    install --no-compile "${wheels[@]}"
  fi
  install --no-build-isolation \
    --config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES="${FASTSAE_GPU_ARCHITECTURES:-90a}" .
}

export PYTHONPATH=$PWD/.site
if [[ "$(cat .site/.sources 2>/dev/null)" != "$(sources)" ]]; then
  export -f build install
  timeout -k 5 480 bash -euo pipefail -O nullglob -c build 2>&1 | tee "$out/gpu-build.log"
  sources >.site/.sources
  echo "built in $SECONDS s"
fi
python3 -c 'import fastsae; print(fastsae.__version__, fastsae.devices(), fastsae.cuda_unavailable_reason())'
[[ $stage != build ]] || exit 0

limit=$((end - SECONDS))
timeout -k 5 "$limit" python3 benchmarks/gpu.py --stage "$stage" --out "$out" --limit $((limit - 20)) "$@"
