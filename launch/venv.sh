# Sourced by quickstart.sh and test.sh, in the repository's root: makes .venv and keeps it up to date.
# shellcheck shell=bash

python=.venv/bin/python

supported() { # true if command $1 is a Python this project runs on
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

create_venv() {
  local name bare=
  for name in python3.13 python3.12 python3.11 python3; do
    supported "$name" || continue
    if ! "$name" -c 'import ensurepip, venv' 2>/dev/null; then
      bare=${bare:-$("$name" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')}
      continue
    fi
    echo "creating .venv with $("$name" --version)"
    "$name" -m venv --clear .venv
    return
  done
  if [ -n "$bare" ]; then
    echo "error: $bare has no venv module; on Debian and Ubuntu: apt-get install $bare-venv, then run this again" >&2
  else
    echo "error: no Python 3.11, 3.12 or 3.13 found (tried python3.13, 3.12, 3.11, python3); install one, then run this again" >&2
  fi
  return 1
}

# prepare_venv FILE...: .venv with these requirement files installed. What was installed is remembered as copies of
# the files inside .venv, so that nothing is asked of the network while they stay the same.
prepare_venv() {
  local file stale=()
  if ! supported "$python" || ! "$python" -m pip --version >/dev/null 2>&1; then
    create_venv
  fi
  for file in "$@"; do
    cmp -s "$file" ".venv/installed-$file" || stale+=("$file")
  done
  if [ ${#stale[@]} -eq 0 ]; then
    echo "reusing .venv ($* unchanged)"
    return
  fi
  echo "installing ${stale[*]} into .venv (the first time takes some minutes)"
  local began=$SECONDS
  if ! "$python" -m pip install -qq --disable-pip-version-check "${stale[@]/#/--requirement=}"; then
    echo "error: pip could not install ${stale[*]}; its reason stands above; after an installation that was interrupted: rm -r .venv, then this again" >&2
    return 1
  fi
  for file in "${stale[@]}"; do
    cp "$file" ".venv/installed-$file"
  done
  echo "installed in $((SECONDS - began)) s"
}
