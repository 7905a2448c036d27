#!/usr/bin/env bash
# A real OpenLDAP server for tests.
#
#	slapd.sh load DIR      add the entries that standard input holds (LDIF), before it runs
#	slapd.sh run DIR URLS  run in the foreground at URLS (ldap://127.0.0.1:port …); the
#	                       end of standard input ends it
#
# DIR/slapd.conf is its configuration, with the database in DIR/db. Needs Debian's slapd;
# any user may run it.
set -eu
usage() { sed -n '2,/^set/{/^set/d; s/^# \{0,1\}//; p}' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
what=$1 dir=$2
PATH=$PATH:/usr/sbin

case $what in
load)
	mkdir -p "$dir/db"
	cat >"$dir/load.ldif"
	slapadd -q -f "$dir/slapd.conf" -l "$dir/load.ldif" >"$dir/load.log" 2>&1 || { tail -n 20 "$dir/load.log" >&2; exit 1; }
	;;
run)
	[ $# = 3 ] || usage
	# The shell becomes the server, so that signals sent to the one that was started reach
	# it. The child left behind waits for the end of standard input.
	self=$$
	exec 4<&0 </dev/null
	(
		while read -r _ <&4; do :; done
		# Still our parent, or the number may be another's by now.
		read -r _ _ _ parent _ </proc/self/stat
		[ "$parent" != "$self" ] || kill -TERM "$self"
	) &
	exec 4<&-
	exec slapd -d "${DEBUG:-0}" -f "$dir/slapd.conf" -h "$3"
	;;
*) usage ;;
esac
