#!/usr/bin/env bash
# Installs the missing Debian packages of tools/debian-packages.txt and prints what it does. With --dry it only prints
# what it would do. Nothing is upgraded; if nothing is missing, nothing is done.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
cd "$(dirname "$0")/.."

readonly list=tools/debian-packages.txt
readonly source_file=/etc/apt/sources.list.d/stead-backports.sources
readonly pin_file=/etc/apt/preferences.d/stead-backports
# Package lists older than this may name versions that the mirror no longer has.
readonly lists_max_age_days=7

dry=0
case "${1-}" in
  '') ;;
  --dry) dry=1 ;;
  *) echo "usage: tools/deps.sh [--dry]" >&2; exit 2 ;;
esac

say() { printf 'deps: %s\n' "$*"; }
die() { printf 'deps: %s\n' "$*" >&2; exit 1; }

command -v apt-get >/dev/null && command -v dpkg-query >/dev/null ||
  die "this needs Debian's apt-get and dpkg-query; on another system, install the packages in $list by hand"
codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME-}")
[ -n "$codename" ] || die "/etc/os-release names no VERSION_CODENAME; is this Debian?"

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing=() from_backports=()
while read -r entry _why; do
  case "$entry" in '' | '#'*) continue ;; esac
  name=${entry%/backports}
  installed "$name" && continue
  missing+=("$name")
  [ "$entry" = "$name" ] || from_backports+=("$name")
done <"$list"

if [ ${#missing[@]} -eq 0 ]; then
  say "every package of $list is installed"
  exit 0
fi
say "missing: ${missing[*]}"

# The readers of pipes below read to the end: under pipefail, a writer killed by SIGPIPE would count as a failure.
has_candidate() { [ -n "$(apt-cache policy "$1" 2>/dev/null | sed -n '/^  Candidate: [0-9]/p')" ]; }
# Every apt-get update writes to `partial`, whatever the mirror's dates are.
lists_are_stale() {
  [ -z "$(find /var/lib/apt/lists -maxdepth 1 -name '*_Packages*' -print -quit 2>/dev/null)" ] ||
    [ -z "$(find /var/lib/apt/lists/partial -maxdepth 0 -mtime "-$lists_max_age_days" 2>/dev/null)" ]
}

# Prints the archive that this machine uses for its own suite, as "URI<tab>source entry" (FILE:N, where N is the line of
# a .list file or the paragraph of a .sources file).
own_archive() {
  apt-get indextargets --format '$(REPO_URI)	$(SOURCESENTRY)' \
    'Created-By: Packages' "Release: $codename" 'Component: main' | sed -n 1p
}

# Prints the Signed-By field (deb822 form, with continuation lines) of the source entry FILE:N, if it has one.
signed_by() {
  local file=${1%:*} n=${1##*:}
  case "$file" in
    *.sources)
      awk -v n="$n" '
        /^[[:space:]]*$/ { if (inside) { inside = 0 } ; keep = 0; next }
        /^#/ { next }
        { if (!inside) { inside = 1; paragraph++ } }
        paragraph == n && /^[^[:space:]]/ { keep = tolower($0) ~ /^signed-by:/ }
        paragraph == n && keep { print }' "$file" ;;
    *)
      sed -n "${n}p" "$file" | sed -nE 's/.*\[[^]]*signed-by=([^] ]+).*/Signed-By: \1/p' ;;
  esac
}

backports_source() {
  local archive uri entry
  archive=$(own_archive)
  [ -n "$archive" ] || die "no apt source of this machine has suite $codename with component main; add one, then run again"
  uri=${archive%%	*} entry=${archive#*	}
  printf 'Types: deb\nURIs: %s\nSuites: %s-backports\nComponents: main\n' "$uri" "$codename"
  signed_by "$entry"
}

# Nothing is installed from backports by default (priority 50, below installed packages), except the packages listed.
backports_pin() {
  printf 'Package: *\nPin: release n=%s-backports\nPin-Priority: 50\n' "$codename"
  printf '\nPackage: %s\nPin: release n=%s-backports\nPin-Priority: 500\n' "${from_backports[*]}" "$codename"
}

if [ "$dry" = 1 ]; then
  lists_are_stale && say "would run: apt-get update"
  for name in "${from_backports[@]}"; do
    has_candidate "$name" && continue
    say "would write $source_file:"
    backports_source | sed 's/^/deps:   /'
    say "would write $pin_file, so that only ${from_backports[*]} comes from there"
    break
  done
  say "would run: apt-get install --yes --no-install-recommends ${missing[*]}"
  exit 0
fi

[ "$(id -u)" = 0 ] || die "installing packages needs root; \`make deps DRY=1\` shows what would be done"

if lists_are_stale; then
  say "apt-get update (package lists are absent or over $lists_max_age_days days old)"
  apt-get update -qq
fi
for name in "${from_backports[@]}"; do
  has_candidate "$name" && continue
  say "$name is not in $codename: adding $codename-backports from the same archive ($source_file)"
  text=$(backports_source)
  printf '%s\n' "$text" >"$source_file"
  backports_pin >"$pin_file"
  apt-get update -qq -o Dir::Etc::sourcelist="$source_file" -o Dir::Etc::sourceparts=- -o APT::Get::List-Cleanup=0
  break
done
for name in "${missing[@]}"; do
  has_candidate "$name" || die "no apt source of this machine offers $name"
done
say "apt-get install --yes --no-install-recommends ${missing[*]}"
apt-get install --yes --no-install-recommends -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "${missing[@]}" </dev/null
say "installed ${#missing[@]} packages"
