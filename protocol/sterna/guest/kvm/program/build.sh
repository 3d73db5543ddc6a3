#!/usr/bin/env bash
# Builds program.bin, which is kept in the tree so that nobody needs a compiler: `bash build.sh`.
# `bash build.sh --check` builds it elsewhere and compares. The bytes are those of Debian 12's gcc (12.2).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cp "$here/program.c" "$here/program.ld" .
gcc -std=gnu11 -O2 -Wall -Wextra -Werror -ffreestanding -fno-pic -fno-pie -no-pie -static -nostdlib \
  -mgeneral-regs-only -mno-red-zone -fomit-frame-pointer -fcf-protection=none -fno-stack-protector \
  -fno-asynchronous-unwind-tables -fno-ident -Wl,--build-id=none -Wl,-z,norelro -Wl,-z,noexecstack \
  -Wl,--no-warn-rwx-segments -Wl,-T,program.ld -o program.elf program.c
objcopy -O binary -j .text program.elf program.bin
if [ "${1-}" = --check ]; then
  cmp program.bin "$here/program.bin"
else
  install -m 644 program.bin "$here/program.bin"
fi
