# Sourced by the programs of this folder, in the repository's root: the targets, what each needs, and where things are cached.

CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/brokertuner
TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}

# Triple, linker, how its programs run here, what it is for. zig links statically against musl.
# One word of the runner stands for a blank: `+`.
TARGETS='
x86_64-unknown-linux-musl      zig                      -                                     any x86-64 Linux, static
aarch64-unknown-linux-musl     zig                      qemu-aarch64                          any 64-bit ARM Linux, static
arm-unknown-linux-musleabihf   zig                      qemu-arm+-cpu+arm1176                 any 32-bit ARM Linux from ARMv6 on (Pi Zero, Pi 1), static
aarch64-unknown-linux-gnu      aarch64-linux-gnu-gcc    qemu-aarch64+-L+/usr/aarch64-linux-gnu    64-bit ARM with glibc 2.34 or newer
armv7-unknown-linux-gnueabihf  arm-linux-gnueabihf-gcc  qemu-arm+-L+/usr/arm-linux-gnueabihf      ARMv7 with glibc 2.34 or newer (not Pi Zero, Pi 1)
riscv64gc-unknown-linux-gnu    riscv64-linux-gnu-gcc    qemu-riscv64+-L+/usr/riscv64-linux-gnu    64-bit RISC-V with glibc 2.34 or newer
'
# What is handed out: runs everywhere, needs no library of the gateway's.
RELEASE='x86_64-unknown-linux-musl aarch64-unknown-linux-musl arm-unknown-linux-musleabihf'

fail() { echo "cross/${0##*/}: $*" >&2; exit 2; }

list_targets() {
  echo "$TARGETS" | awk 'NF { triple = $1; $1 = $2 = $3 = ""; sub(/^ +/, ""); printf "  %-30s %s\n", triple, $0 }'
}

# field TRIPLE COLUMN
field() { echo "$TARGETS" | awk -v t="$1" -v c="$2" '$1 == t { print $c }'; }

# expand NAME...   Targets of the command line; `release` is the set that is handed out.
expand() {
  for name; do
    if [ "$name" = release ]; then echo "$RELEASE"; continue; fi
    [ -n "$(field "$name" 1)" ] || { echo "cross/${0##*/}: no target is called '$name'; there are:" >&2
      list_targets >&2; echo "  release                        the static ones" >&2; exit 2; }
    echo "$name"
  done
}

# packages TRIPLE   What apt has to give, besides QEMU.
packages() {
  case $(field "$1" 2) in
    aarch64-linux-gnu-gcc) echo gcc-aarch64-linux-gnu libc6-dev-arm64-cross;;
    arm-linux-gnueabihf-gcc) echo gcc-arm-linux-gnueabihf libc6-dev-armhf-cross;;
    riscv64-linux-gnu-gcc) echo gcc-riscv64-linux-gnu libc6-dev-riscv64-cross;;
    zig) echo python3-venv;;
  esac
}

# links GCC   It is there, and so is its C library, which Debian's packages of gcc only recommend.
links() { command -v "$1" >/dev/null && [ -e "$("$1" -print-file-name=crt1.o)" ]; }

# apt_install PACKAGE...   As root or through sudo.
apt_install() {
  command -v apt-get >/dev/null || fail "missing: $* (Debian's names); install them with this system's package manager"
  sudo=''
  [ "$(id -u)" -eq 0 ] || { command -v sudo >/dev/null && sudo=sudo || fail "missing: as root, \`apt-get install -y $*\`"; }
  install="$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $*"
  $install >&2 || { $sudo apt-get update -q >&2 && $install >&2; } || fail "these packages could not be installed: $*"
}

# need_linker TRIPLE   Stops with the command that installs what is missing.
need_linker() {
  linker=$(field "$1" 2)
  if [ "$linker" = zig ]; then
    [ -x "$CACHE/zig/bin/cargo-zigbuild" ] ||
      fail "zig, which links $1, is missing: run \`cross/setup $1\`"
  elif ! links "$linker"; then
    fail "$linker, or the C library for it, is missing: run \`cross/setup $1\`, or \`sudo apt-get install -y $(packages "$1")\`"
  fi
}

# runner TRIPLE   The command in front of its programs; nothing where they run by themselves.
runner() {
  runner=$(field "$1" 3 | tr + ' ')
  [ "$runner" != - ] || return 0
  command -v "${runner%% *}" >/dev/null ||
    fail "${runner%% *} is missing: run \`cross/setup $1\`, or \`sudo apt-get install -y qemu-user\`"
  echo "$runner"
}

# use_toolchain TRIPLE...   Selects a toolchain with std for them, as CROSS_STD says.
use_toolchain() {
  line=$(cross/toolchain "$CACHE/toolchain" "$@") || exit
  eval "$line"
}

# say_to_cargo TRIPLE   Its linker, and with a runner how its programs run. Said here and not in .cargo/config.toml: a machine
# of that kind builds for itself by its own means.
say_to_cargo() {
  name=CARGO_TARGET_$(echo "$1" | tr 'a-z-' 'A-Z_')
  export "${name}_LINKER=$(field "$1" 2)"
  [ -z "${2:-}" ] || export "${name}_RUNNER=$2"
}

# flags FLAG...   As cargo takes them where one may hold a blank.
flags() {
  separator=$(printf '\037')
  # No place of this machine in what is handed out.
  printf %s "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo$separator--remap-path-prefix=$PWD=brokertuner"
  for flag; do printf %s "$separator$flag"; done
}

# cargo_build TRIPLES OPTION...   With $FLAGS for the compiler, and $LINK_SCRIPT for the linker. Several, as one word, have
# one linker in common.
cargo_build() {
  triples=$1; shift
  for triple in $triples; do set -- --target "$triple" "$@"; done
  is_zig=no; [ "$(field "$triple" 2)" != zig ] || is_zig=yes
  # shellcheck disable=SC2086
  CARGO_ENCODED_RUSTFLAGS=$(
    # zig brings the start-up code that a std built from source does not.
    [ "$is_zig" = no ] || [ "${CROSS_STD:-rustup}" != apt ] || FLAGS="${FLAGS:-} -Clink-self-contained=no"
    flags ${FLAGS:-} ${LINK_SCRIPT:+"-Clink-arg=-Wl,-T,$LINK_SCRIPT"}
  )
  export CARGO_ENCODED_RUSTFLAGS
  if [ "$is_zig" = yes ]; then
    PATH="$CACHE/zig/bin:$PATH" cargo zigbuild "$@"
  else
    say_to_cargo "$triple"
    cargo build "$@"
  fi
}
