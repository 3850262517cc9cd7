#!/bin/sh
# Gets English to train on, and text of another kind to test on, from Debian:
#
#   sh examples/language_model/fetch.sh FOLDER
#
# FOLDER/dictionary.txt: the GNU Collaborative International Dictionary of
# English, 40 MB. FOLDER/manuals.txt: the Linux kernel's documentation.
set -eu
[ $# -eq 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
manuals=$(apt-cache search --names-only '^linux-doc-[0-9.]+$' |
  cut -d ' ' -f 1 | sort -V | tail -n 1)
[ -n "$manuals" ] || { echo "fetch.sh: no linux-doc; apt-get update?" >&2
  exit 1; }
apt-get download dict-gcide "$manuals"
for package in *.deb; do dpkg-deb -x "$package" files; done
zcat files/usr/share/dictd/gcide.dict.dz >"$out/dictionary.txt.part"
find files/usr/share/doc -path '*Documentation*' \
  \( -name '*.rst' -o -name '*.rst.gz' -o -name '*.txt' -o -name '*.txt.gz' \) \
  -print0 | LC_ALL=C sort -z | xargs -0 zcat -f >"$out/manuals.txt.part"
for name in dictionary manuals; do
  mv "$out/$name.txt.part" "$out/$name.txt"
done
ls -l "$out"
